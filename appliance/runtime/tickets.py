"""Hold a request's place on a worker, and the events on their way to its reader.

What this room does: tickets for generation and for embeddings: what was asked, what came so far
(enough to ask again after a worker's end), the bounded queue towards one reader, and the one end.
What it knows: the frames that ask a worker, and the events a reader gets.
What it never does: I/O; decide where or when a ticket is submitted; touch another ticket.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import TypeAlias

from appliance.domain import (
    ChoiceEnd,
    Client,
    Constraint,
    Delta,
    EmbedResult,
    Final,
    FinishReason,
    Priority,
    Progress,
    RequestId,
    Sample,
    SamplingOptions,
    StopOptions,
    Timings,
    Usage,
    Value,
)
from appliance.errors import ApplianceError, ClientTooSlow, Overloaded, RequestCancelled
from appliance.runtime import wire
from appliance.runtime.event_queue import EventQueue, Moved, TicketEvent
from appliance.runtime.measure import is_looping


class Job(Value):
    """A generation, tokenised and checked. deadline_ms is monotonic; None: none.

    may_move: until it has answered anything, another version may answer instead (`Moved`).
    is_shadow: nobody reads the answer; it is measured. is_check: it is ours; it is not measured.
    """

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    seed: int
    n: int = 1
    sampling: SamplingOptions = SamplingOptions()
    stop: StopOptions = StopOptions()
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    deadline_ms: float | None = None
    client: Client | None = None
    priority: Priority = Priority.NORMAL
    adapter: str = ""
    cache_salt: str = ""
    is_pin: bool = False
    may_move: bool = False
    is_shadow: bool = False
    is_check: bool = False


class EmbedJob(Value):
    """Token lists to embed or to score, checked. deadline_ms is monotonic; None: none.

    `field` is what the client calls the inputs, for refusals; may_move as in `Job`.
    """

    request_id: RequestId
    inputs: tuple[tuple[int, ...], ...]
    field: str = "input"
    normalize: bool = True
    deadline_ms: float | None = None
    client: Client | None = None
    may_move: bool = False


@dataclasses.dataclass(slots=True)
class _Choice:
    token_ids: list[int] = dataclasses.field(default_factory=list)
    finish: FinishReason | None = None


class Ticket:
    """One generation's admission to a worker.

    `events` is for one reader, once. `cancel` may be called by anybody, any number of times.
    """

    def __init__(
        self,
        ticket_id: int,
        job: Job,
        *,
        events_max: int,
        now_ms: float,
        clock: Callable[[], float],
        forget: Callable[[AnyTicket, bool], None],
    ) -> None:
        """Begin the life of a ticket.

        `forget(ticket, drop)` is called once when it has ended; drop: the worker doesn't know yet.
        """
        self.id = ticket_id
        self.job = job
        self.tokens_sent = 0
        self._queue = EventQueue(events_max)
        self._events_max = events_max
        self._clock = clock
        self._forget = forget
        self._admitted_ms = now_ms
        self._started_ms: float | None = None
        self._first_token_ms: float | None = None
        self._cached_tokens = 0
        self._choices = [_Choice() for _ in range(job.n)]
        self._last_token_ms = now_ms
        self._has_answered = False
        self._has_text = False
        self._last: Final | ApplianceError | Moved | None = None
        self._over = asyncio.Event()

    # --- for the reader ---

    async def events(self) -> AsyncGenerator[TicketEvent, None]:
        """Yield what comes, Final last. Leaving early cancels (close the iterator to be sure).

        Raises:
            ApplianceError: exactly one, instead of Final.
            Moved: instead of all that, if the job allows it.
        """
        try:
            while True:
                event = await self._queue.get()
                yield event
                if isinstance(event, Final):
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the ticket now; the worker drops it within a step. Idempotent, does not block."""
        self.fail(RequestCancelled())

    # --- for whoever measures ---

    async def over(self) -> tuple[tuple[int, ...], ...] | None:
        """Wait for the end; return the tokens of each choice, None if it ended in an error."""
        await self._over.wait()
        if not isinstance(self._last, Final):
            return None
        return tuple(tuple(choice.token_ids) for choice in self._choices)

    def measured(self) -> Sample | None:
        """Say how it went, once it has ended; None where that says nothing of the version."""
        last = self._last
        no_fault = (Moved, RequestCancelled, ClientTooSlow)
        if last is None or isinstance(last, no_fault) or self.job.is_pin or self.job.is_check:
            return None
        if self.job.is_shadow and isinstance(last, Overloaded):
            return None  # it made way
        first_ms, gaps = self._first_token_ms, self.tokens_sent / self.job.n - 1
        span_ms = self._last_token_ms - (first_ms or 0.0)
        is_cut = any(choice.finish is FinishReason.LENGTH for choice in self._choices)
        return Sample(
            error=last.code if isinstance(last, ApplianceError) else "",
            first_token_ms=None if first_ms is None else first_ms - self._admitted_ms,
            token_gap_ms=span_ms / gaps if first_ms is not None and gaps > 0 else None,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens_sent,
            is_empty=not self._has_text and self.job.stop.max_tokens != 0,
            is_looping=any(is_looping(choice.token_ids) for choice in self._choices),
            is_constrained=self.job.constraint is not None,
            is_unfinished_schema=self.job.constraint is not None and is_cut,
            is_shadow=self.job.is_shadow,
        )

    # --- for the router ---

    @property
    def started(self) -> bool:
        """Tell whether the engine has ever planned a token of it."""
        return self._started_ms is not None

    @property
    def prompt_tokens(self) -> int:
        """Count the tokens of the prompt."""
        return len(self.job.prompt_ids)

    @property
    def deadline_ms(self) -> float | None:
        """Name the monotonic deadline, if there is one."""
        return self.job.deadline_ms

    @property
    def priority(self) -> Priority:
        """Name the class."""
        return self.job.priority

    def submission(self) -> wire.Submit:
        """Ask the worker: from the beginning, or from where the last worker ended."""
        job = self.job
        return wire.Submit(
            ticket=self.id,
            prompt_ids=job.prompt_ids,
            n=job.n,
            seed=job.seed,
            sampling=job.sampling,
            stop=job.stop,
            top_logprobs=job.top_logprobs,
            constraint=job.constraint,
            deadline_ms=job.deadline_ms,
            accepted_ids=tuple(tuple(choice.token_ids) for choice in self._choices)
            if self.tokens_sent
            else (),
            ended=tuple(i for i, choice in enumerate(self._choices) if choice.finish is not None),
            client=_client_id(job.client),
            weight=1.0 if job.client is None else job.client.weight,
            priority=job.priority,
            adapter=job.adapter,
            cache_key=f"{_client_id(job.client)}\n{job.cache_salt}",  # an id holds no newline
            is_pin=job.is_pin,
        )

    def start(self) -> None:
        """Note that the engine has planned its first token; later calls change nothing."""
        if self._started_ms is None:
            self._started_ms = self._clock()

    def progress(self, news: wire.PrefillNews) -> None:
        """Pass on how far the prompt has come."""
        if not self.tokens_sent:  # a replay finds more: what it had computed itself
            self._cached_tokens = news.cached
        self._put(
            Progress(
                prompt_tokens_done=news.done,
                prompt_tokens_total=news.total,
                cached_tokens=news.cached,
            )
        )

    def advance(self, news: wire.News) -> None:
        """Take in one step's news of one choice; the last one ends the ticket."""
        choice = self._choices[news.choice]
        assert choice.finish is None, "news of a choice that had ended"
        self._has_answered = True
        if news.token_ids:
            self._last_token_ms = self._clock()
            if self._first_token_ms is None:
                self._first_token_ms = self._last_token_ms
            choice.token_ids.extend(news.token_ids)
            self.tokens_sent += len(news.token_ids)
        if news.token_ids or news.text:
            self._has_text = self._has_text or not (news.text == "" or news.text.isspace())
            self._put(
                Delta(
                    choice=news.choice,
                    text=news.text,
                    token_ids=news.token_ids,
                    logprobs=news.logprobs,
                )
            )
        if news.finish is not None:
            choice.finish = news.finish
            self._put(ChoiceEnd(choice=news.choice, finish_reason=news.finish))
            reasons = tuple(c.finish for c in self._choices if c.finish is not None)
            if len(reasons) == self.job.n:
                self._end(self._final(reasons), drop=False)

    def fail(self, error: ApplianceError, *, drop: bool = True) -> None:
        """End in an error; idempotent. drop: the worker doesn't know yet."""
        self._end(error, drop=drop)

    def move(self) -> bool:
        """Send the reader elsewhere, if the job allows it and nothing was answered; tell whether.

        The worker forgets the ticket. Does not block.
        """
        if self._last is not None or self._has_answered or not self.job.may_move:
            return False
        self._end(Moved(), drop=True)
        return True

    def _put(self, event: TicketEvent) -> None:
        if not self._queue.put(event):
            self._end(ClientTooSlow(limit_events=self._events_max), drop=True)

    def _end(self, last: Final | ApplianceError | Moved, *, drop: bool) -> None:
        if self._last is None:
            self._last = last
            self._queue.end(last)
            self._over.set()
            self._forget(self, drop)

    def _final(self, reasons: tuple[FinishReason, ...]) -> Final:
        now_ms = self._clock()
        started_ms = self._started_ms if self._started_ms is not None else now_ms
        first_ms = self._first_token_ms if self._first_token_ms is not None else now_ms
        return Final(
            usage=Usage(
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.tokens_sent,
                cached_tokens=self._cached_tokens,
            ),
            timings=Timings(
                queue_ms=started_ms - self._admitted_ms,
                first_token_ms=first_ms - self._admitted_ms,
                total_ms=now_ms - self._admitted_ms,
            ),
            finish_reasons=reasons,
        )


def _client_id(client: Client | None) -> str:
    return "" if client is None else client.id


class EmbedTicket:
    """One embedding's admission to a worker."""

    started = False
    tokens_sent = 0
    priority = Priority.NORMAL

    def __init__(
        self,
        ticket_id: int,
        job: EmbedJob,
        label: str,
        forget: Callable[[AnyTicket, bool], None],
    ) -> None:
        """Begin the life of a ticket; for `forget` see Ticket."""
        self.id = ticket_id
        self.job = job
        self._label = label
        self._forget = forget
        self._ended = False
        self._sample: Sample | None = None
        self._result: asyncio.Future[EmbedResult] = asyncio.get_running_loop().create_future()

    @property
    def prompt_tokens(self) -> int:
        """Count the tokens of all inputs."""
        return sum(len(tokens) for tokens in self.job.inputs)

    @property
    def deadline_ms(self) -> float | None:
        """Name the monotonic deadline, if there is one."""
        return self.job.deadline_ms

    def submission(self) -> wire.SubmitEmbed:
        """Ask the worker."""
        return wire.SubmitEmbed(
            ticket=self.id,
            inputs=self.job.inputs,
            normalize=self.job.normalize,
            deadline_ms=self.job.deadline_ms,
        )

    async def result(self) -> EmbedResult:
        """Wait for the vectors; cancelling the wait cancels the ticket.

        Raises:
            ApplianceError: the ticket ended in it.
            Moved: it goes on elsewhere, if the job allows it.
        """
        try:
            return await self._result
        finally:
            self.cancel()

    def finish(self, frame: wire.Embedded) -> None:
        """End with the vectors."""
        result = EmbedResult(
            version=self._label,
            size=frame.size,
            vectors=frame.vectors,
            prompt_tokens=self.prompt_tokens,
        )
        self._sample = Sample(prompt_tokens=self.prompt_tokens)
        if self._end(drop=False):
            self._result.set_result(result)

    def measured(self) -> Sample | None:
        """Say how it went, once it has ended; None where that says nothing of the version."""
        return self._sample

    def fail(self, error: ApplianceError, *, drop: bool = True) -> None:
        """End in an error; idempotent. drop: the worker doesn't know yet."""
        if not self._ended:
            self._sample = Sample(error=error.code, prompt_tokens=self.prompt_tokens)
        if self._end(drop=drop):
            self._result.set_exception(error)

    def move(self) -> bool:
        """Send the reader elsewhere, if the job allows it; tell whether. Does not block."""
        if self._ended or not self.job.may_move:
            return False
        if self._end(drop=True):
            self._result.set_exception(Moved())
        return True

    def cancel(self) -> None:
        """End the ticket now; idempotent, does not block."""
        if self._end(drop=True):
            self._result.cancel()

    def _end(self, *, drop: bool) -> bool:
        """Tell whether the ticket had not ended and its reader still waits."""
        if self._ended:
            return False
        self._ended = True
        self._forget(self, drop)
        return not self._result.done()


AnyTicket: TypeAlias = Ticket | EmbedTicket
