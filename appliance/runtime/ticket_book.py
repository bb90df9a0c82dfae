"""Keep the tickets of one worker: let them in, hand them over, bring their news, end each once.

What this room does: admission against the bounds and the model's context; the order of submission
(`replay`); folding a step's news into the tickets; judgement after a loss; deadlines.
What it knows: the tickets of one served version, and a way to send frames while a worker is ready.
What it never does: start or watch a worker, or wait for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable

from appliance.config import Engine, Limits
from appliance.domain import ModelFacts, Priority
from appliance.errors import (
    ApplianceError,
    ContextTooLong,
    DeadlineExceeded,
    DecodeFailed,
    InvalidRequest,
    RequestUnsafe,
    WorkerLost,
    from_wire,
)
from appliance.runtime import wire
from appliance.runtime.admission import Admission
from appliance.runtime.fairness import RANKS
from appliance.runtime.measure import Measure
from appliance.runtime.replay import LOSSES_ALONE_MAX, Judgement, Place, Replay
from appliance.runtime.tickets import AnyTicket, EmbedJob, EmbedTicket, Job, Ticket


class TicketBook:
    """Every ticket of one served version, through all the lives of its worker."""

    def __init__(
        self,
        label: str,
        engine: Engine,
        limits: Limits,
        *,
        ticket_ids: itertools.count[int],
        clock: Callable[[], float],
        measure: Measure,
    ) -> None:
        """Begin empty, with no worker. How requests end is told to `measure`."""
        self.measure = measure
        self.idle = asyncio.Event()  # set while there is no ticket
        self.idle.set()
        self._label = label
        self._limits = limits
        self._grace_ms = 2 * engine.step_ms_max
        self._ticket_ids = ticket_ids
        self._clock = clock
        self._tickets: dict[int, AnyTicket] = {}
        self._adapters: Counter[str] = Counter()  # how many tickets name each
        self._replay = Replay(engine.replays_max)
        self._admission = Admission(limits)
        self._send: Callable[[wire.Frame], None] | None = None  # only while a worker is ready
        self._just_started: tuple[int, ...] = ()
        self._pins: list[Job] = []

    # --- counting ---

    @property
    def waiting(self) -> int:
        """Count the tickets that have never started."""
        return sum(not ticket.started for ticket in self._tickets.values())

    @property
    def running(self) -> int:
        """Count the tickets that have started."""
        return len(self._tickets) - self.waiting

    def count_adapter(self, key: str) -> int:
        """Count the tickets that name this adapter."""
        return self._adapters[key]

    def retry_after_s(self) -> float:
        """Guess when it is worth asking again."""
        return self._admission.retry_after_s(self.waiting)

    # --- letting in ---

    def admit(self, job: Job, facts: ModelFacts, *, again: bool = False) -> Ticket:
        """Give the job a ticket, or refuse it now; does not block.

        again: it was let in before, and moved here: it waits even beyond the bounds, which then
        bound what two books let in together.

        Raises:
            ContextTooLong: the prompt leaves no room for a token.
            InvalidRequest: the prompt is empty, or n is more than the engine has sequences.
            QueueFull: a bound on what waits is reached.
            DeadlineExceeded: it would start too late, as fast as those before it start.
        """
        if not job.prompt_ids:
            raise InvalidRequest(field="prompt", reason="must not be empty")
        if len(job.prompt_ids) >= facts.context_tokens:
            raise ContextTooLong(
                prompt_tokens=len(job.prompt_ids), limit_tokens=facts.context_tokens
            )
        if job.n > facts.sequences_max:
            raise InvalidRequest(field="n", reason=f"must be at most {facts.sequences_max}")
        if not again:
            self._check_queue(len(job.prompt_ids), job.deadline_ms, job.priority)
        return self._ticket(job)

    def pin(self, job: Job) -> None:
        """Have a prefix evaluated and kept, now and by every later worker; nobody reads of it."""
        self._pins.append(job)
        self._ticket(job)

    def _ticket(self, job: Job) -> Ticket:
        ticket = Ticket(
            next(self._ticket_ids),
            job,
            events_max=self._limits.stream_events,
            now_ms=self._clock(),
            clock=self._clock,
            forget=self._forget,
        )
        self._add(ticket)
        return ticket

    def admit_embed(self, job: EmbedJob, facts: ModelFacts, *, again: bool = False) -> EmbedTicket:
        """Give an embedding job a ticket, or refuse it now; does not block. Raises as `admit`."""
        for tokens in job.inputs:
            if not tokens:
                raise InvalidRequest(field=job.field, reason="must not be empty")
            if len(tokens) > facts.context_tokens:
                raise ContextTooLong(prompt_tokens=len(tokens), limit_tokens=facts.context_tokens)
        total = sum(len(tokens) for tokens in job.inputs)
        if total > self._limits.queue_prompt_tokens:
            reason = f"has {total} tokens in all; the limit is {self._limits.queue_prompt_tokens}"
            raise InvalidRequest(field=job.field, reason=reason)
        if not again:
            self._check_queue(total, job.deadline_ms)
        ticket = EmbedTicket(next(self._ticket_ids), job, self._label, self._forget)
        self._add(ticket)
        return ticket

    # --- while a worker is ready ---

    def attach(self, send: Callable[[wire.Frame], None]) -> None:
        """Hand over through this from now on."""
        self._send = send
        under_way = [ticket.job for ticket in self._tickets.values()]
        for job in self._pins:
            if job not in under_way:
                self._ticket(job)
        self.submit_next()

    def detach(self) -> None:
        """Hand nothing over until the next `attach`."""
        self._send = None
        self._just_started = ()

    def submit_next(self) -> None:
        """Hand over every ticket whose turn it is; nothing while there is no ready worker."""
        while self._send is not None and (ids := self._replay.take_next()):
            for ticket_id in ids:
                self._send(self._tickets[ticket_id].submission())

    def take_step(self, step: wire.Step) -> None:
        """Fold the outcome of one step into the tickets, in the order of their news."""
        for ticket_id in self._just_started:  # a whole step after its first token was planned
            self._replay.show(ticket_id)
        self._just_started = step.started
        for ticket_id in step.started:
            ticket = self._tickets.get(ticket_id)
            if isinstance(ticket, Ticket) and not ticket.started:
                ticket.start()
                self._admission.started(self._clock(), others_wait=self.waiting > 0)
        for prefill in step.prefills:
            self._replay.show(prefill.ticket)
            ticket = self._tickets.get(prefill.ticket)
            if isinstance(ticket, Ticket):
                ticket.progress(prefill)
        for news in step.news:
            self._replay.show(news.ticket)
            ticket = self._tickets.get(news.ticket)
            if isinstance(ticket, Ticket):
                ticket.start()
                ticket.advance(news)
        for failure in step.failures:
            self.fail_one(failure)
        self._replay.step()

    def finish_embed(self, frame: wire.Embedded) -> None:
        """End an embedding with its vectors."""
        ticket = self._tickets.get(frame.ticket)
        if isinstance(ticket, EmbedTicket):
            ticket.finish(frame)

    def fail_one(self, failure: wire.Failure) -> None:
        """End a ticket in what the worker says; unknown tickets have ended here already."""
        ticket = self._tickets.get(failure.ticket)
        if ticket is None:
            return
        try:
            error = from_wire(failure.code, failure.fields)
        except (KeyError, TypeError):
            error = DecodeFailed(reason=failure.code)
        ticket.fail(error, drop=False)

    # --- losses, moves and deadlines ---

    def judge(self, cause: str) -> None:
        """Pass judgement on every ticket after the worker's end."""
        for ticket_id, judgement in self._replay.lose().items():
            ticket = self._tickets[ticket_id]
            if judgement is Judgement.UNSAFE:
                ticket.fail(RequestUnsafe(worker_losses=LOSSES_ALONE_MAX))
            elif judgement is Judgement.EXHAUSTED:
                ticket.fail(WorkerLost(cause=cause, tokens_sent=ticket.tokens_sent))

    def move_unanswered(self) -> tuple[int, int]:
        """Send every reader elsewhere that has no answer yet; count those, and those that stay.

        Does not block. What nobody reads (`pin`) is not counted.
        """
        tickets = tuple(self._tickets.values())
        moved = sum(ticket.move() for ticket in tickets)
        pins = sum(isinstance(one, Ticket) and one.job.is_pin for one in tickets)
        return moved, len(tickets) - moved - pins

    def fail_adapter(self, key: str, error: ApplianceError) -> None:
        """End every ticket that names an adapter which can't be had any more."""
        for ticket in tuple(self._tickets.values()):
            if _adapter(ticket) == key:
                ticket.fail(error)

    def fail_all(self, cause: str) -> None:
        """End every ticket as lost with its worker."""
        for ticket in tuple(self._tickets.values()):
            ticket.fail(WorkerLost(cause=cause, tokens_sent=ticket.tokens_sent))

    def expire(self) -> None:
        """End tickets past their deadline; the worker, if it is alive, has a grace to say so."""
        now_ms = self._clock()
        grace_ms = self._grace_ms if self._send is not None else 0.0
        for ticket in tuple(self._tickets.values()):
            if ticket.deadline_ms is not None and now_ms > ticket.deadline_ms + grace_ms:
                phase = "generation" if ticket.started else "queue"
                ticket.fail(DeadlineExceeded(phase=phase))

    def _check_queue(
        self,
        prompt_tokens: int,
        deadline_ms: float | None,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        waiting = [ticket for ticket in self._tickets.values() if not ticket.started]
        lower = sum(RANKS[ticket.priority] > RANKS[priority] for ticket in waiting)
        self._admission.check(
            len(waiting),
            sum(ticket.prompt_tokens for ticket in waiting),
            prompt_tokens,
            ahead=len(waiting) - lower,
            left_ms=None if deadline_ms is None else deadline_ms - self._clock(),
        )

    def _add(self, ticket: AnyTicket) -> None:
        self._tickets[ticket.id] = ticket
        self._adapters[_adapter(ticket)] += 1
        self._replay.admit(ticket.id)
        self.idle.clear()
        self.submit_next()

    def _forget(self, ticket: AnyTicket, drop: bool) -> None:  # noqa: FBT001 - a callback
        if self._tickets.pop(ticket.id, None) is not None:
            self._adapters -= Counter((_adapter(ticket),))  # which leaves out what is zero
            sample = ticket.measured()
            if sample is not None:
                self.measure.take(sample)
        inside = False
        with contextlib.suppress(KeyError):
            inside = self._replay.record(ticket.id).place is not Place.HELD
        self._replay.end(ticket.id)
        if drop and inside and self._send is not None:
            self._send(wire.Cancel(ticket=ticket.id))
        if not self._tickets:
            self.idle.set()
        self.submit_next()


def _adapter(ticket: AnyTicket) -> str:
    """Name the key of a ticket's adapter, "" for none."""
    return ticket.job.adapter if isinstance(ticket, Ticket) else ""
