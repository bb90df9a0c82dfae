"""Turn token lists into vectors or scores, several at a time, with a context of their own.

What this room does: packs inputs of all waiting tickets into steps, first come first served, and
answers each ticket when its last input is done.
What it knows: a model that doesn't look only back needs a whole input in one step; what is pooled
of a reranker is what its head says, a short vector whose first value is the score.
What it never does: cut an input, or mix two models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from appliance.errors import (
    ApplianceError,
    ContextTooLong,
    DeadlineExceeded,
    DecodeFailed,
    InvalidRequest,
    QueueFull,
)
from appliance.runtime import wire
from appliance.runtime.cost import StepShape
from appliance.runtime.llama import Context, DecodeCode, EngineLost
from appliance.runtime.pool import Pool
from appliance.runtime.submission import check_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class _EmbedJob:
    """One ticket: its inputs, and the vectors of those that are done, in order."""

    frame: wire.SubmitEmbed
    vectors: list[bytes] = field(default_factory=list)
    planned: int = 0


class EmbeddingEngine:
    """The engine of an embedding model or a reranker. Used by one thread; blocks in `step` only."""

    def __init__(
        self,
        *,
        context: Context,
        vocabulary_size: int,
        batch_tokens: int,
        context_tokens: int,
        queue_requests_max: int,
        pool: Pool,
        clock: Callable[[], float],
        stall_factor: float,
    ) -> None:
        """Own the context. A step holds `batch_tokens`, or one input that is longer than that."""
        self._context = context
        self._vocabulary_size = vocabulary_size
        self._batch_tokens = batch_tokens
        self._context_tokens = context_tokens
        self._queue_requests_max = queue_requests_max
        self._cost = pool.cost
        self._pool = pool
        self._clock = clock
        self._stall_factor = stall_factor
        self._jobs: deque[_EmbedJob] = deque()
        self._answers: list[wire.Frame] = []
        self._started: list[int] = []
        self._step = 0

    @property
    def has_work(self) -> bool:
        """Say whether a step would do anything."""
        return bool(self._jobs or self._answers)

    @property
    def input_tokens_max(self) -> int:
        """The longest input: what the model may be given, and one step can hold."""
        context = self._context
        return min(context.batch_tokens, context.sequence_tokens_max, self._context_tokens)

    @property
    def step_ms_worst(self) -> float:
        """Predict the longest step that may be planned now: one whole input, all of the batch."""
        tokens = self.input_tokens_max
        return self._cost.predict_ms(StepShape(decode=0, prefill=tokens, kv_span=tokens))

    def submit(self, frame: wire.Submit | wire.SubmitEmbed) -> None:
        """Check and queue a request; a refusal comes with the next step."""
        if isinstance(frame, wire.Submit):
            error = InvalidRequest(field="model", reason="generates no text")
            self._refuse(frame.ticket, error)
            return
        try:
            self._check(frame)
        except ApplianceError as error:
            self._refuse(frame.ticket, error)
            return
        self._jobs.append(_EmbedJob(frame))

    def cancel(self, ticket: int) -> None:
        """Forget a ticket, before the next step; one that has ended already is not an error."""
        self._jobs = deque(job for job in self._jobs if job.frame.ticket != ticket)

    def load_adapter(self, frame: wire.LoadAdapter) -> wire.AdapterFailed:
        """Refuse an adapter: only generating models have any."""
        return wire.AdapterFailed(key=frame.key, reason="a model that embeds takes no adapters")

    def unload_adapter(self, key: str) -> None:
        """Do nothing: there is none."""

    def step(self) -> tuple[wire.Frame, ...]:
        """Evaluate as many waiting inputs as fit; blocks until done.

        Raises:
            EngineLost: the engine failed in a way that leaves the context undefined.
        """
        began_ms = self._clock()
        self._expire(began_ms)
        batch, tokens = self._take()
        shape = StepShape(decode=0, prefill=tokens, kv_span=tokens)
        predicted_ms = self._cost.predict_ms(shape) if tokens else 0.0
        if batch:
            self._pool.prepare(shape)
            self._evaluate(batch, tokens)
            now_ms = self._clock()
            self._pool.observe(shape, now_ms - began_ms, now_ms)
        while self._jobs and len(self._jobs[0].vectors) == len(self._jobs[0].frame.inputs):
            self._answer(self._jobs.popleft())
        return (*self._flush(), self._report(tokens, self._clock() - began_ms, predicted_ms))

    def _check(self, frame: wire.SubmitEmbed) -> None:
        for token_ids in frame.inputs:
            if not token_ids:
                raise InvalidRequest(field="input", reason="must not be empty")
            if len(token_ids) > self.input_tokens_max:
                raise ContextTooLong(
                    prompt_tokens=len(token_ids), limit_tokens=self.input_tokens_max
                )
            check_ids("input", token_ids, self._vocabulary_size)
        if not frame.inputs:
            raise InvalidRequest(field="input", reason="must not be empty")
        if len(self._jobs) >= self._queue_requests_max:
            limit = self._queue_requests_max
            raise QueueFull(bound="engine.queue_requests", limit=limit, retry_after_s=1.0)

    def _expire(self, now_ms: float) -> None:
        for job in list(self._jobs):
            deadline_ms = job.frame.deadline_ms
            if deadline_ms is not None and deadline_ms <= now_ms:
                self._jobs.remove(job)
                phase = "generation" if job.planned else "queue"
                self._refuse(job.frame.ticket, DeadlineExceeded(phase=phase))

    def _take(self) -> tuple[list[tuple[_EmbedJob, tuple[int, ...]]], int]:
        batch: list[tuple[_EmbedJob, tuple[int, ...]]] = []
        tokens = 0
        for job in self._jobs:
            for token_ids in job.frame.inputs[job.planned :]:
                full = tokens + len(token_ids) > self._batch_tokens
                if batch and (full or len(batch) == self._context.sequences_max):
                    return batch, tokens
                if not job.planned:
                    self._started.append(job.frame.ticket)
                job.planned += 1
                batch.append((job, token_ids))
                tokens += len(token_ids)
        return batch, tokens

    def _evaluate(self, batch: list[tuple[_EmbedJob, tuple[int, ...]]], tokens: int) -> None:
        code = self._decode([token_ids for _, token_ids in batch])
        if code is DecodeCode.OK:
            for seq_id, (job, _) in enumerate(batch):
                self._take_vector(job, self._context.embedding(seq_id))
        elif len(batch) > 1 and code in (DecodeCode.NO_ROOM, DecodeCode.INVALID):
            # One input may be at fault: each is tried alone, so that only its own ticket fails.
            for entry in batch:
                if entry[0] in self._jobs:
                    self._evaluate([entry], len(entry[1]))
        elif code in (DecodeCode.NO_ROOM, DecodeCode.INVALID):
            job = batch[0][0]
            self._jobs.remove(job)
            self._refuse(job.frame.ticket, DecodeFailed(reason=f"{tokens} tokens were refused"))
        else:
            raise EngineLost(f"llama_decode: {code.name}")

    def _decode(self, inputs: list[tuple[int, ...]]) -> DecodeCode:
        self._context.clear()
        at = 0
        for seq_id, token_ids in enumerate(inputs):
            start = at
            at = self._context.put(at, token_ids, seq_id, 0)
            self._context.want_rows(start, at)
        return self._context.decode(at)

    def _take_vector(self, job: _EmbedJob, vector: NDArray[np.float32]) -> None:
        if not np.isfinite(vector).all():
            if job in self._jobs:
                self._jobs.remove(job)
                reason = "the model produced a vector that is not numbers"
                self._refuse(job.frame.ticket, DecodeFailed(reason=reason))
            return
        if job.frame.normalize:
            length = float(np.linalg.norm(vector.astype(np.float64)))
            vector = vector / np.float32(length) if length > 0.0 else vector
        job.vectors.append(vector.astype("<f4").tobytes())

    def _answer(self, job: _EmbedJob) -> None:
        self._answers.append(
            wire.Embedded(
                ticket=job.frame.ticket,
                size=len(job.vectors[0]) // 4,
                vectors=tuple(job.vectors),
            )
        )

    def _refuse(self, ticket: int, error: ApplianceError) -> None:
        failure = wire.Failure(ticket=ticket, code=error.code, fields=error.fields)
        self._answers.append(wire.TicketFailed(failure=failure))

    def _flush(self) -> list[wire.Frame]:
        answers, self._answers = self._answers, []
        return answers

    def _report(self, tokens: int, step_ms: float, predicted_ms: float) -> wire.Step:
        self._step += 1
        started, self._started = tuple(self._started), []
        running = sum(1 for job in self._jobs if job.planned)
        gauges = wire.EngineGauges(
            running=running,
            waiting=len(self._jobs) - running,
            sequences_used=0,
            cells_used=0,
            cells_total=self._context.cells,
            preemptions_total=0,
            decode_tokens=0,
            prefill_tokens=tokens,
            step_ms=step_ms,
            predicted_ms=predicted_ms,
            stall_limit_ms=self._stall_factor * self.step_ms_worst,
            threads_decode=self._pool.counts.decode,
            threads_prefill=self._pool.counts.prefill,
            threads_change=self._pool.take_change(),
        )
        return wire.Step(step=self._step, gauges=gauges, started=started)
