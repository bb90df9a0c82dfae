"""Decide what goes into the next step, and fold back what came of it.

What this room does: the queue, admission, the plan of each step, preemption, deadlines; who holds
which sequence and how many KV cells.
What it knows: prompts, the tokens drawn so far, the ledger of cells and the price of a step.
What it never does: touch the engine, a clock, text or randomness. Times are arguments, decisions
are returned.

A job is one request of n choices. Its prompt is evaluated once, in the sequence of its first live
choice, and then forked to the others. A choice is `pending` by the tokens that it has and the
cache has not: one while it decodes, more after a preemption or a replay, when its tokens are
evaluated again. So a preempted job, a replayed one and a new one are the same thing.

A step, in this order:
 1. Expire deadlines; admit from the queue while sequences and cells allow.
 2. Every choice with exactly one pending token gets its row. If there are not cells enough, the
    youngest job is preempted until there are; if it is alone, its last choice ends as full.
 3. The rest of the time budget goes to prompts, the oldest job first: finishing one early beats
    halving two. The oldest job always gets a row, so that it always progresses.

Admission books, for each running choice, what it still has to evaluate and a rolling reserve of
`min(tokens it may still draw, output_reserve_tokens)`. A job that doesn't fit may be overtaken by
smaller ones `overtakes_max` times; after that nobody passes it. Jobs keep the order in which they
came for life, so whoever is preempted goes back to where it belongs: before all that came later.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

from appliance.errors import ApplianceError, ContextTooLong, DeadlineExceeded, QueueFull
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.jobs import Advance, Choice, Job, Plan, SchedulerLimits, Span
from appliance.runtime.ledger import Ledger

_CHUNK_MIN = 8  # a prompt goes on, however short the budget
_SEEN_JOBS = 0.1  # weight of the newest job in the mean duration


class Scheduler:
    """The owner of queue, sequences and cells. Called by one thread; nothing here blocks."""

    def __init__(self, limits: SchedulerLimits, cost: CostModel) -> None:
        """Begin idle, with every sequence and cell free."""
        assert 0 < limits.sequences_max <= limits.batch_tokens
        self.limits = limits
        self.cost = cost
        self.ledger = Ledger(limits.cells_total)
        self.preemptions_total = 0
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._jobs: dict[int, Job] = {}
        self._free_ids = list(range(limits.sequences_max - 1, -1, -1))
        self._removed: list[int] = []
        self._exhausted: list[Choice] = []
        self._next_order = 0
        self._rows_max = limits.batch_tokens
        self._job_ms = 1000.0

    # --- what comes in ---------------------------------------------------------------------------

    def submit(self, job: Job) -> ApplianceError | None:
        """Queue a job, or return why it is refused; decides at once and changes nothing then.

        Sequences that are free don't count as queue, so a restarted engine takes back all it had.
        """
        assert job.ticket not in self._jobs
        assert job.live, "a job without a live choice"
        limits = self.limits
        room = 0 if job.max_tokens == 0 else 1
        limit = min(limits.context_tokens, limits.cells_total - len(job.live) + 1)
        if len(job.live) > limits.sequences_max or len(job.prompt) + room > limit:
            return ContextTooLong(prompt_tokens=len(job.prompt), limit_tokens=limit)
        if len(self._waiting) >= limits.queue_requests_max + len(self._free_ids):
            return QueueFull(
                bound="engine.queue_requests",
                limit=limits.queue_requests_max,
                retry_after_s=self._retry_after_s(),
            )
        job.order = self._next_order
        self._next_order += 1
        self._jobs[job.ticket] = job
        self._waiting.append(job)
        return None

    def remove(self, ticket: int) -> bool:
        """Forget a job, whatever it is doing (a cancel, or its failure); False if unknown."""
        self._exhausted = [choice for choice in self._exhausted if choice.job.ticket != ticket]
        job = self._jobs.pop(ticket, None)
        if job is None:
            return False
        if job in self._running:
            self._running.remove(job)
            for choice in job.live:
                self._close(choice)
        else:
            self._waiting.remove(job)
        return True

    # --- a step ----------------------------------------------------------------------------------

    def plan(self, now_ms: float) -> Plan:
        """Compose the next step.

        Follow with `advance`, `no_room` or `preempt_all`; with nothing if it has no spans.
        """
        failed = self._expire(now_ms)
        started = self._admit(now_ms)
        spans, shape = self._compose()
        removed, self._removed = tuple(self._removed), []
        exhausted, self._exhausted = tuple(self._exhausted), []
        self._rows_max = self.limits.batch_tokens
        return Plan(
            spans=spans,
            shape=shape,
            predicted_ms=self.cost.predict_ms(shape) if spans else 0.0,
            removed=removed,
            started=started,
            exhausted=exhausted,
            failed=failed,
        )

    def advance(self, spans: Sequence[Span]) -> Advance:
        """Fold in a step, or a part of it, that the engine evaluated.

        Draws come in the order of jobs and choices; each has a row of logits, which the choices
        of a prompt just finished share.
        """
        forks: list[tuple[int, int]] = []
        draws: list[tuple[Choice, int]] = []
        prefills: list[tuple[int, int, int]] = []
        for span in spans:
            choice, job = span.choice, span.choice.job
            choice.evaluated += span.count
            self.ledger.grow(span.seq_id, span.count)
            if job.is_forked:
                if span.row >= 0:
                    draws.append((choice, span.row))
                continue
            prefills.extend(self._progress(job, choice))
            if choice.evaluated == len(job.prompt):
                forks.extend(self._fork(job, choice))
                draws.extend((other, span.row) for other in job.live if not other.outputs)
        return Advance(forks=tuple(forks), draws=tuple(draws), prefills=tuple(prefills))

    def accept(self, choice: Choice, token_id: int) -> bool:
        """Append a drawn token; returns whether the context has no room for another."""
        choice.outputs.append(token_id)
        return choice.length >= self.limits.context_tokens

    def finish(self, choice: Choice, now_ms: float) -> bool:
        """End a choice well; returns whether that completed its job."""
        self._end(choice)
        job = choice.job
        if job.live:
            return False
        self._complete(job, now_ms)
        return True

    def no_room(self, plan: Plan) -> None:
        """Make room after the engine found none for a plan (llama_decode returned 1).

        Nothing of the plan has happened. The youngest job is preempted; a job that is alone gets
        half as many rows, and at one row its last choice ends as full.
        """
        rows = plan.shape.decode + plan.shape.prefill
        if len(self._running) == 1 and rows > plan.shape.decode and rows > 1:
            self._rows_max = max(1, plan.shape.decode, rows // 2)
        else:
            self._relieve()

    def preempt_all(self) -> None:
        """Send every running job back to the queue: the cache is not to be trusted."""
        while self._running:
            self._preempt(self._running[-1])

    # --- what it holds ---------------------------------------------------------------------------

    @property
    def running_count(self) -> int:
        """Count the jobs that hold sequences."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Count the jobs in the queue."""
        return len(self._waiting)

    @property
    def sequences_used(self) -> int:
        """Count the sequences that choices hold."""
        return self.limits.sequences_max - len(self._free_ids)

    @property
    def has_work(self) -> bool:
        """Say whether a plan would do anything."""
        return bool(self._jobs or self._removed or self._exhausted)

    def job(self, ticket: int) -> Job | None:
        """Find a job that has not ended."""
        return self._jobs.get(ticket)

    def jobs(self) -> Iterator[Job]:
        """Go through running jobs, the oldest first."""
        return iter(self._running)

    # --- admission -------------------------------------------------------------------------------

    def _expire(self, now_ms: float) -> tuple[tuple[Job, ApplianceError], ...]:
        late = [
            job
            for job in self._jobs.values()
            if job.deadline_ms is not None and job.deadline_ms <= now_ms
        ]
        for job in late:
            self.remove(job.ticket)
        return tuple(
            (job, DeadlineExceeded(phase="generation" if job.started_ms >= 0.0 else "queue"))
            for job in late
        )

    def _admit(self, now_ms: float) -> tuple[int, ...]:
        if not self._waiting or not self._free_ids:
            return ()
        started = []
        room = self.ledger.free - sum(self._claim(job) for job in self._running)
        passed: list[Job] = []
        for job in list(self._waiting):
            need = self._claim(job)
            if any(other.overtaken >= self.limits.overtakes_max for other in passed):
                break
            if len(job.live) > len(self._free_ids) or (need > room and self._running):
                passed.append(job)
                continue
            for other in passed:
                other.overtaken += 1
            self._start(job)
            room -= need
            if job.started_ms < 0.0:
                job.started_ms = now_ms
                started.append(job.ticket)
        return tuple(started)

    def _claim(self, job: Job) -> int:
        """Count the free cells that a job may ask for soon."""
        reserve = self.limits.output_reserve_tokens
        drawn = sum(min(job.may_draw(choice), reserve) for choice in job.live)
        if job.is_forked:
            return drawn + sum(choice.pending for choice in job.live)
        prompt = len(job.prompt) - max(choice.evaluated for choice in job.live)
        return drawn + prompt + sum(len(choice.outputs) for choice in job.live)

    def _start(self, job: Job) -> None:
        self._waiting.remove(job)
        bisect.insort(self._running, job, key=_order)
        for choice in job.live:
            choice.seq_id = self._free_ids.pop()
            choice.evaluated = 0
        job.is_forked = False
        self.ledger.open(job.live[0].seq_id)

    def _retry_after_s(self) -> float:
        turns = (len(self._waiting) + 1) / max(1, len(self._running))
        return min(60.0, max(1.0, turns * self._job_ms / 1000.0))

    # --- composing -------------------------------------------------------------------------------

    def _compose(self) -> tuple[tuple[Span, ...], StepShape]:
        while self._running:
            decode = [choice for job in self._running for choice in _decoding(job)]
            if len(decode) <= self.ledger.free:
                spans, shape = self._fill(decode)
                oldest = self._running[0]
                if any(span.choice.job is oldest for span in spans):
                    return spans, shape
            self._relieve()
        return (), StepShape(decode=0, prefill=0, kv_span=self.ledger.used)

    def _fill(self, decode: list[Choice]) -> tuple[tuple[Span, ...], StepShape]:
        spans: list[Span] = []
        row = 0
        for choice in decode:
            spans.append(Span(choice, choice.seq_id, choice.evaluated, 1, row))
            row += 1
        room = self._prefill_room(len(decode))
        prefill = 0
        for job in self._running:
            for choice, pending in _prefilling(job):
                count = min(pending, room - prefill)
                if count <= 0:
                    break
                ends = choice.evaluated + count == choice.length or (
                    not job.is_forked
                    and count == pending
                    and any(not other.outputs for other in job.live)
                )
                spans.append(
                    Span(choice, choice.seq_id, choice.evaluated, count, row if ends else -1)
                )
                row += ends
                prefill += count
        kv_span = self.ledger.used + len(decode) + prefill
        return tuple(spans), StepShape(decode=len(decode), prefill=prefill, kv_span=kv_span)

    def _prefill_room(self, decode: int) -> int:
        limits = self.limits
        budget_ms = limits.step_ms_while_streaming if decode else limits.step_ms_max
        fits = self.cost.prefill_room(decode, self.ledger.used, min(budget_ms, limits.step_ms_max))
        return min(max(fits, _CHUNK_MIN), self._rows_max - decode, self.ledger.free - decode)

    def _progress(self, job: Job, choice: Choice) -> list[tuple[int, int, int]]:
        """Report prompt tokens once: not again when they are evaluated after a preemption."""
        if choice.evaluated <= job.prompt_reported:
            return []
        job.prompt_reported = choice.evaluated
        return [(job.ticket, choice.evaluated, len(job.prompt))]

    def _fork(self, job: Job, leader: Choice) -> list[tuple[int, int]]:
        job.is_forked = True
        forks = []
        for other in job.live:
            if other is not leader:
                self.ledger.fork(leader.seq_id, other.seq_id)
                other.evaluated = leader.evaluated
                forks.append((leader.seq_id, other.seq_id))
        return forks

    # --- pressure --------------------------------------------------------------------------------

    def _relieve(self) -> None:
        youngest = self._running[-1]
        if len(self._running) > 1:
            self._preempt(youngest)
            return
        choice = youngest.live[-1]
        self._end(choice)
        self._exhausted.append(choice)
        if not youngest.live:
            self._complete(youngest, youngest.started_ms)

    def _preempt(self, job: Job) -> None:
        self._running.remove(job)
        for choice in job.live:
            self._close(choice)
        job.is_forked = False
        bisect.insort(self._waiting, job, key=_order)
        self.preemptions_total += 1

    def _end(self, choice: Choice) -> None:
        job = choice.job
        was_leader = not job.is_forked and choice is job.live[0]
        assert not was_leader or len(job.live) == 1, "the evaluator of a prompt ended before it"
        self._close(choice)
        choice.is_ended = True

    def _close(self, choice: Choice) -> None:
        if choice.job.is_forked or choice is choice.job.live[0]:
            self.ledger.close(choice.seq_id)
            self._removed.append(choice.seq_id)
        self._free_ids.append(choice.seq_id)
        choice.seq_id = -1
        choice.evaluated = 0

    def _complete(self, job: Job, now_ms: float) -> None:
        self._running.remove(job)
        del self._jobs[job.ticket]
        duration_ms = max(0.0, now_ms - job.started_ms)
        self._job_ms += _SEEN_JOBS * (duration_ms - self._job_ms)


def _order(job: Job) -> int:
    return job.order


def _decoding(job: Job) -> list[Choice]:
    """List the choices that need exactly one row: also a prompt's last token when it is alone."""
    if not job.is_forked:
        leader = job.live[0]
        return [leader] if not leader.outputs and leader.pending == 1 else []
    return [choice for choice in job.live if choice.pending == 1]


def _prefilling(job: Job) -> list[tuple[Choice, int]]:
    """List the choices that need more rows, each with how many until its next boundary."""
    if not job.is_forked:
        leader = job.live[0]
        pending = len(job.prompt) - leader.evaluated
        return [] if _decoding(job) else [(leader, pending)]
    return [(choice, choice.pending) for choice in job.live if choice.pending > 1]
