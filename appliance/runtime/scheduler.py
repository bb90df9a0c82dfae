"""Decide what goes into the next step, and fold back what came of it.

What this room does: the queue, admission, the plan of each step, preemption, deadlines; who holds
which sequence; which moves of sequences a plan needs.
What it knows: prompts, the tokens drawn so far, and the rooms it asks: `cache` for cells and
prefixes, `compose` for the rows of a step, `fairness` for whose time it is, `cost` for prices.
What it never does: touch the engine, a clock, text or randomness. Times are arguments, decisions
are returned.

A job is one request of n choices. Its prompt is evaluated once, in the sequence of its first live
choice, and then forked to the others. A choice is `pending` by the tokens that it has and the
cache has not: one while it decodes, more after a preemption or a replay, when its tokens are
evaluated again. So a preempted job, a replayed one and a new one are the same thing.

A step, in this order:
 1. Expire deadlines.
 2. Admit from the queue (`_admit`): by class, then whose client was given least, then deadline,
    then age. A job that has waited `ageing_ms` competes as the next higher class. One whose prefix
    another job is about to evaluate waits for that. One that does not fit is passed over, at most
    `overtakes_max` times. One of a higher class, or of a client with less than its fair part of
    the sequences, displaces the youngest of those it comes before.
 3. Choose the adapter whose turn it is, and compose the rows (`compose`).
 4. Where a due row has no cell: the pressure ladder. Give up parked prefixes; preempt the youngest
    of the lowest class, never the oldest of the highest; give up pinned prefixes; then end the last
    choice of the one job that is left, as full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.domain import Priority
from appliance.errors import ApplianceError, ContextTooLong, DeadlineExceeded, QueueFull
from appliance.runtime.cache import Cache
from appliance.runtime.compose import Composed, Composer, span_of
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.fairness import RANKS, Fairness, Party
from appliance.runtime.jobs import Advance, Choice, Job, Move, Plan, SchedulerLimits, Span
from appliance.runtime.precedence import Precedence
from appliance.runtime.prefix import Match
from appliance.runtime.speculation import Speculation
from appliance.runtime.turns import AdapterTurns

_SEEN_JOBS = 0.1  # weight of the newest job in the mean duration
_EXAMINED_MAX = 64  # jobs that admission looks at in one step


class Scheduler:
    """The owner of queue and running jobs. Called by one thread; nothing here blocks."""

    def __init__(
        self, limits: SchedulerLimits, cost: CostModel, speculation: Speculation | None = None
    ) -> None:
        """Begin idle, with every sequence and cell free. speculation None: never guess."""
        assert 0 < limits.sequences_max <= limits.batch_tokens
        self.limits = limits
        self.cost = cost
        self.speculation = speculation
        self.cache = Cache(limits, cost)
        self.preemptions_total = 0
        self._fairness = Fairness(
            shares={
                Priority.INTERACTIVE: 1.0,
                Priority.NORMAL: limits.normal_share,
                Priority.BATCH: limits.batch_share,
            },
            credit_ms_max=limits.step_ms_while_streaming,
            debt_ms_max=limits.step_ms_max,
        )
        self._composer = Composer(limits, cost, self._fairness, speculation)
        self._order = Precedence(limits, self._fairness)
        self._turns = AdapterTurns(limits.adapter_turn_steps)
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._jobs: dict[int, Job] = {}
        self._parties: dict[Party, int] = {}  # how many jobs each has here
        self._exhausted: list[Choice] = []
        self._next_order = 0
        self._steps = 0
        self._accepted = 0  # guesses of this step that were right
        self._rows_max = limits.batch_tokens
        self._may_guess = True
        self._job_ms = 1000.0
        self._admit_again = True
        self._aged_ms = 0.0

    # --- what comes in ---------------------------------------------------------------------------

    def submit(self, job: Job, now_ms: float = 0.0) -> ApplianceError | None:
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
        if len(self._waiting) >= limits.queue_requests_max + self.cache.sequences_free:
            return QueueFull(
                bound="engine.queue_requests",
                limit=limits.queue_requests_max,
                retry_after_s=self._retry_after_s(),
            )
        job.order = self._next_order
        job.submitted_ms = now_ms
        self._next_order += 1
        self._jobs[job.ticket] = job
        self._waiting.append(job)
        if job.party not in self._parties:
            self._fairness.arrive(job.party, self._parties)
        self._parties[job.party] = self._parties.get(job.party, 0) + 1
        self._admit_again = True
        return None

    def remove(self, ticket: int) -> bool:
        """Forget a job, whatever it is doing (a cancel, or its failure); False if unknown."""
        self._exhausted = [choice for choice in self._exhausted if choice.job.ticket != ticket]
        job = self._jobs.get(ticket)
        if job is None:
            return False
        if job in self._running:
            for choice in job.live:
                self.cache.close(choice)
        else:
            for choice in job.live:
                self.cache.forget(choice)
        self._forget(job)
        return True

    # --- a step ----------------------------------------------------------------------------------

    def plan(self, now_ms: float) -> Plan:
        """Compose the next step.

        Follow with `advance`, `no_room` or `preempt_all`; with nothing if it has no spans.
        """
        self.cache.now_ms = now_ms
        self._steps += 1
        self._accepted = 0
        failed = self._expire(now_ms)
        started = self._admit(now_ms)
        composed, adapter = self._compose(now_ms)
        moves = self.cache.take_moves()
        exhausted, self._exhausted = tuple(self._exhausted), []
        self._rows_max, self._may_guess = self.limits.batch_tokens, True
        shape = composed.shape
        return Plan(
            moves=moves,
            spans=composed.spans,
            shape=shape,
            predicted_ms=self.cost.predict_ms(shape) if composed.spans else 0.0,
            adapter=adapter,
            started=started,
            exhausted=exhausted,
            failed=failed,
            readings=composed.readings,
        )

    def advance(self, spans: Sequence[Span]) -> Advance:
        """Fold in a step, or a part of it, that the engine evaluated.

        Draws come in the order of jobs and choices; each has a row of logits, which the choices
        of a prompt just finished share.
        """
        forks: list[tuple[int, int]] = []
        draws: list[tuple[Choice, Span]] = []
        prefills: list[tuple[Job, int]] = []
        rows: dict[Party, int] = {}
        for span in spans:
            choice, job = span.choice, span.choice.job
            choice.evaluated += span.count
            choice.last_ms = self.cache.now_ms
            rows[job.party] = rows.get(job.party, 0) + span.rows
            self.cache.ledger.grow(span.seq_id, span.rows)
            if job.is_forked:
                if span.row >= 0:
                    draws.append((choice, span))
                continue
            prefills.extend(self._progress(job, choice))
            if choice.evaluated == len(job.prompt):
                forks.extend(self._fork(job, choice))
                draws.extend((other, span) for other in job.live if not other.outputs)
        self._charge(rows, spans)
        return Advance(forks=tuple(forks), draws=tuple(draws), prefills=tuple(prefills))

    def accept(self, choice: Choice, token_id: int) -> bool:
        """Append a drawn token; returns whether the context has no room for another."""
        choice.outputs.append(token_id)
        return choice.length >= self.limits.context_tokens

    def settle(self, span: Span, *, kept: int) -> None:
        """Keep the guesses that came true, the first ones; give back the cells of the others.

        Call after the draws of a span with guesses, before its choice may end. The sequence must be
        cut to what the choice has evaluated then.
        """
        guessed = len(span.draft)
        span.choice.evaluated += kept
        self._accepted += kept
        self.cache.ledger.shrink(span.seq_id, guessed - kept)
        if span.by_model and self.speculation is not None:
            self.speculation.settle(span.choice, kept=kept, guessed=guessed)

    def observe(self, plan: Plan, step_ms: float, reading_ms: float = 0.0) -> None:
        """Learn from an evaluated plan what its guesses came to; step_ms has the draws in it.

        reading_ms: what the draft model took beside that, for guesses to come.
        """
        if self.speculation is not None:
            self.speculation.observe(
                plan.shape,
                drafted=plan.drafted,
                accepted=self._accepted,
                step_ms=step_ms,
                by_model=plan.by_model,
                reading_ms=reading_ms,
            )

    def finish(self, choice: Choice, now_ms: float) -> bool:
        """End a choice well; returns whether that completed its job. Its prefix may be kept."""
        self._check_leader(choice)
        self.cache.park(choice)
        choice.is_ended = True
        self._admit_again = True
        if choice.job.live:
            return False
        self._complete(choice.job, now_ms)
        return True

    def no_room(self, plan: Plan) -> None:
        """Take back a step that the engine refused for want of cells: make room, or ask for less.

        The ledger promises room, so this is the answer to what it can't know.
        """
        rows = plan.shape.decode + plan.shape.prefill
        if plan.drafted:
            self._may_guess = False
        elif len(self._running) == 1 and rows > plan.shape.decode and rows > 1:
            self._rows_max = max(1, plan.shape.decode, rows // 2)
        else:
            self._relieve()

    def preempt_all(self) -> None:
        """Send every running job back to the queue: the cache is not to be trusted."""
        for job in tuple(self._running):
            self._preempt(job, swap=False)
        self.cache.drop_parked()

    def restart(self, lost: Sequence[Move]) -> None:
        """Evaluate every running job again: states that they build on could not be restored.

        All of them, because another may have copied in the same plan what was never there.
        """
        for move in lost:
            self.cache.disown(move.state)
        for job in self._running:
            if not job.is_forked:
                job.cached = 0
        self.preempt_all()

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
    def has_work(self) -> bool:
        """Say whether a plan would do anything."""
        return bool(self._jobs or self._exhausted or self.cache.has_moves)

    def job(self, ticket: int) -> Job | None:
        """Find a job that has not ended."""
        return self._jobs.get(ticket)

    def jobs(self) -> Iterator[Job]:
        """Go through running jobs, the highest class and the oldest first."""
        return iter(self._running)

    def waiting(self) -> Iterator[Job]:
        """Go through the queue, in no order."""
        return iter(self._waiting)

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

    def _admit(self, now_ms: float) -> tuple[Job, ...]:
        is_late = now_ms - self._aged_ms >= self.limits.turn_ms
        if not self._waiting or not (self._admit_again or is_late):
            return ()
        self._admit_again, self._aged_ms = False, now_ms
        started: list[Job] = []
        passed: list[Job] = []
        refused: set[Party] = set()  # found nobody to make way for them
        self._waiting.sort(key=lambda job: self._order.key(job, now_ms))
        for job in self._waiting[:_EXAMINED_MAX]:
            if any(other.overtaken >= self.limits.overtakes_max for other in passed):
                break
            is_out_of_ids = len(job.live) > self.cache.sequences_free
            if is_out_of_ids and (len(self._parties) == 1 or job.party in refused):
                passed.append(job)
                continue
            match = self.cache.match(job)
            if self.cache.is_worth_waiting(job, match):
                continue
            if not self._fits(job, match):
                if not self._make_way(job, match):
                    refused.add(job.party)
                    passed.append(job)
                    continue
                match = self.cache.match(job)
            for other in passed:
                other.overtaken += 1
            self._start(job, match)
            if job.started_ms < 0.0:
                job.started_ms = now_ms
                started.append(job)
        return tuple(started)

    def _fits(self, job: Job, match: Match) -> bool:
        if len(job.live) > self.cache.sequences_free:
            return False
        return not self._running or self.cache.need(job, match) <= self.cache.room(self._running)

    def _make_way(self, job: Job, match: Match) -> bool:
        """Preempt those that this job comes before, if that gives it room; else change nothing."""
        victims = self._order.victims(job, match, self._running, self.cache)
        for other in victims:
            other.displaced += 1
            self._preempt(other)
        return bool(victims)

    def _start(self, job: Job, match: Match) -> None:
        self._waiting.remove(job)
        self._running.append(job)
        self._running.sort(key=_running_order)
        self.cache.start(job, match)

    def _retry_after_s(self) -> float:
        turns = (len(self._waiting) + 1) / max(1, len(self._running))
        return min(60.0, max(1.0, turns * self._job_ms / 1000.0))

    # --- composing -------------------------------------------------------------------------------

    def _compose(self, now_ms: float) -> tuple[Composed, str]:
        pending = sum(choice.pending for job in self._running for choice in job.live)
        self.cache.make_free(min(pending, self.limits.batch_tokens))
        while self._running:
            adapter = self._turns.choose(self._running)
            jobs = [job for job in self._running if job.adapter == adapter]
            composed = self._composer.compose(
                jobs,
                rows_max=self._rows_max,
                cells_used=self.cache.ledger.used,
                now_ms=now_ms,
                may_guess=self._may_guess,
            )
            if not composed.is_short:
                self._turns.took(adapter)
                return composed, adapter
            self._relieve()
        shape = StepShape(decode=0, prefill=0, kv_span=self.cache.ledger.used)
        return Composed(spans=(), shape=shape, is_short=False), ""

    def _progress(self, job: Job, choice: Choice) -> list[tuple[Job, int]]:
        """Report prompt tokens once: not again when they are evaluated after a preemption."""
        self._admit_again = True  # somebody may wait for this prefix
        if choice.evaluated <= job.prompt_reported:
            return []
        job.prompt_reported = choice.evaluated
        return [(job, choice.evaluated)]

    def _fork(self, job: Job, leader: Choice) -> list[tuple[int, int]]:
        job.is_forked = True
        forks = []
        for other in job.live:
            if other is not leader:
                self.cache.ledger.fork(leader.seq_id, other.seq_id)
                other.evaluated = leader.evaluated
                forks.append((leader.seq_id, other.seq_id))
        return forks

    def _charge(self, rows: dict[Party, int], spans: Sequence[Span]) -> None:
        parties = {job.party: job.weight for job in self._running}
        if len(parties) < 2 and len(self._parties) < 2:  # noqa: PLR2004 - nobody to share with
            return
        if not rows:
            return
        due = self._fairness.due(rows)
        alone = [span for span in spans if span.choice.job.party == due]
        self._fairness.charge(
            rows,
            parties,
            step_ms=self._price_ms(spans),
            alone_ms=self._price_ms(alone),
            row_ms=self.cost.row_ms,
        )

    def _price_ms(self, spans: Sequence[Span]) -> float:
        total = sum(span.rows for span in spans)
        decode = sum(span.rows for span in spans if span.count == 1)
        read = span_of(spans, self.cache.ledger.used)
        return self.cost.predict_rows_ms(decode, total - decode, read)

    # --- pressure --------------------------------------------------------------------------------

    def _relieve(self) -> None:
        """Go one rung down the pressure ladder."""
        if self.cache.evict(pinned=False):
            return
        first = self._running[0]
        victims = [job for job in self._running if job is not first]
        if victims:
            self._preempt(max(victims, key=lambda job: (RANKS[job.priority], job.order)))
            return
        if self.cache.evict(pinned=True):
            return
        choice = first.live[-1]
        self._check_leader(choice)
        self.cache.close(choice)
        choice.is_ended = True
        self._exhausted.append(choice)
        if not first.live:
            self._complete(first, first.started_ms)

    def _preempt(self, job: Job, *, swap: bool = True) -> None:
        self._running.remove(job)
        for choice in job.live:
            if not (swap and self.cache.swap_out(choice)):
                self.cache.close(choice)
        job.is_forked = False
        self._waiting.append(job)
        self.preemptions_total += 1
        self._admit_again = True

    def _check_leader(self, choice: Choice) -> None:
        job = choice.job
        was_leader = not job.is_forked and choice is job.live[0]
        assert not was_leader or len(job.live) == 1, "the evaluator of a prompt ended before it"

    def _complete(self, job: Job, now_ms: float) -> None:
        self._forget(job)
        duration_ms = max(0.0, now_ms - job.started_ms)
        self._job_ms += _SEEN_JOBS * (duration_ms - self._job_ms)

    def _forget(self, job: Job) -> None:
        del self._jobs[job.ticket]
        (self._running if job in self._running else self._waiting).remove(job)
        self._parties[job.party] -= 1
        if not self._parties[job.party]:
            del self._parties[job.party]
        self._admit_again = True


def _running_order(job: Job) -> tuple[int, int]:
    return RANKS[job.priority], job.order
