"""Thousands of random lives of the scheduler against an engine that is only books.

Each schedule is made from a seed that a failure prints: jobs arrive at random with random sizes,
choices, replays, deadlines and cancels; the engine refuses steps at random. The engine keeps what
each sequence holds, position by position, and what llama.cpp would refuse is an error here. After
every step the invariants are checked; at the end everything must have ended, exactly once.
"""

# ruff: noqa: SLF001 - the invariants look at the books themselves

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from appliance.errors import ApplianceError, ContextTooLong, DeadlineExceeded, QueueFull
from appliance.runtime.cost import CostModel
from appliance.runtime.jobs import Choice, Job, Plan, SchedulerLimits, Span
from appliance.runtime.scheduler import Scheduler

SCHEDULES_PER_CASE = 180
STEPS_MAX = 20_000


class BookEngine:
    """A unified KV cache as plain books: cell → (position, token, holders)."""

    def __init__(self, cells_total: int) -> None:
        self.cells_total = cells_total
        self.sequences: dict[int, list[object]] = {}

    @property
    def used(self) -> int:
        return len({id(cell) for cells in self.sequences.values() for cell in cells})

    def remove(self, seq_id: int) -> None:
        self.sequences.pop(seq_id, None)

    def copy(self, source: int, target: int) -> None:
        assert not self.sequences.get(target), "copied onto a sequence that is not empty"
        self.sequences[target] = list(self.sequences[source])

    def decode(self, spans: tuple[Span, ...], batch_tokens: int) -> None:
        rows = sum(span.count for span in spans)
        assert 0 < rows <= batch_tokens
        assert self.used + rows <= self.cells_total, "no room: the ledger promised it"
        assert len({span.seq_id for span in spans}) == len(spans)
        wanted = [span.row for span in spans if span.row >= 0]
        assert wanted == list(range(len(wanted))), "logit rows are not in batch order"
        for span in spans:
            cells = self.sequences.setdefault(span.seq_id, [])
            assert len(cells) == span.start, "a gap in the positions"
            tokens = span.choice.tokens(span.start, span.count)
            assert len(tokens) == span.count
            cells.extend([token] for token in tokens)

    def text(self, seq_id: int) -> list[int]:
        return [cell[0] for cell in self.sequences[seq_id]]  # type: ignore[index]


@dataclass
class World:
    """One schedule: the scheduler, its engine, a clock, and what clients have seen."""

    seed: int
    rng: random.Random = field(init=False)
    now_ms: float = 0.0
    ends: dict[int, str] = field(default_factory=dict)
    live: dict[int, Job] = field(default_factory=dict)
    length_of: dict[tuple[int, int], int] = field(default_factory=dict)
    progress: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.rng = random.Random(self.seed)
        sequences = rng.choice([1, 2, 4, 16])
        cells = rng.choice([24, 64, 200, 1000])
        self.refusal_ratio = rng.choice([0.0, 0.0, 0.05, 0.3])
        self.row_ms = rng.choice([0.01, 1.0, 20.0])
        limits = SchedulerLimits(
            context_tokens=rng.choice([16, 100, 2000]),
            cells_total=cells,
            sequences_max=sequences,
            batch_tokens=max(sequences, rng.choice([16, 32, 512])),
            queue_requests_max=rng.choice([0, 3, 50]),
            output_reserve_tokens=rng.choice([1, 8, 64]),
            step_ms_while_streaming=30.0,
            step_ms_max=100.0,
            overtakes_max=rng.choice([0, 2, 16]),
        )
        self.scheduler = Scheduler(limits, CostModel())
        self.engine = BookEngine(cells)

    # --- clients ---------------------------------------------------------------------------------

    def arrive(self, ticket: int) -> None:
        rng, limits = self.rng, self.scheduler.limits
        size = rng.choice([1, 2, 5, 12, 40, rng.randint(1, limits.cells_total + 2)])
        job = Job(
            ticket=ticket,
            prompt=[rng.randrange(1000) for _ in range(size)],
            max_tokens=rng.choice([None, 0, 1, 5, 40]),
            deadline_ms=self.now_ms + rng.uniform(0, 3000) if rng.random() < 0.2 else None,
        )
        count = rng.choice([1, 1, 1, 2, 4])
        for index in range(count):
            replayed = min(rng.choice([0, 0, 0, 1, 3, 9]), job.max_tokens or 9)
            if size + replayed >= limits.context_tokens or job.max_tokens == 0:
                replayed = 0
            accepted = [_token(ticket, index, size + k) for k in range(replayed)]
            is_ended = index > 0 and rng.random() < 0.2
            job.add_choice(accepted, is_ended=is_ended)
            if not is_ended:
                self.length_of[ticket, index] = rng.choice([1, 3, 10, 60])
        free = limits.sequences_max - self.scheduler.sequences_used
        waiting = self.scheduler.waiting_count
        refusal = self.scheduler.submit(job)
        if refusal is None:
            self.live[ticket] = job
        elif isinstance(refusal, QueueFull):
            assert waiting >= limits.queue_requests_max + free
            self.end(ticket, "queue_full")
        else:
            assert isinstance(refusal, ContextTooLong)
            assert (
                size + 1 + count > min(limits.context_tokens, limits.cells_total)
                or count > limits.sequences_max
            )
            self.end(ticket, "too_long")

    def end(self, ticket: int, how: str) -> None:
        assert ticket not in self.ends, f"ticket {ticket} ended twice: {self.ends[ticket]}, {how}"
        self.ends[ticket] = how
        self.live.pop(ticket, None)

    # --- a step ----------------------------------------------------------------------------------

    def step(self) -> Plan:
        scheduler = self.scheduler
        plan = scheduler.plan(self.now_ms)
        for seq_id in plan.removed:
            self.engine.remove(seq_id)
        for job, error in plan.failed:
            self.expire(job, error)
        for choice in plan.exhausted:
            self.over(choice)
        self.check_plan(plan)
        if not plan.spans:
            assert not scheduler.running_count, "jobs run and nothing is planned for them"
            # (a job that ended as full left its cells only after this plan's admission)
            assert plan.exhausted or not scheduler.waiting_count, "jobs wait for an idle engine"
        elif self.rng.random() < self.refusal_ratio:
            running = scheduler.running_count
            scheduler.no_room(plan)
            assert running == 1 or not scheduler._exhausted, "a neighbour was ended for room"
        else:
            self.evaluate(plan)
        self.check_books()
        return plan

    def evaluate(self, plan: Plan) -> None:
        scheduler = self.scheduler
        self.engine.decode(plan.spans, scheduler.limits.batch_tokens)
        rows = plan.shape.decode + plan.shape.prefill
        step_ms = 1.0 + rows * self.row_ms
        scheduler.cost.observe(plan.shape, step_ms)
        self.now_ms += step_ms
        advance = scheduler.advance(plan.spans)
        for source, target in advance.forks:
            self.engine.copy(source, target)
        for ticket, done, total in advance.prefills:
            assert self.progress.get(ticket, 0) < done <= total
            self.progress[ticket] = done
        for choice, row in advance.draws:
            assert row >= 0
            self.draw(choice)

    def draw(self, choice: Choice) -> None:
        job = choice.job
        assert choice.pending == 0, "drawn before all tokens were evaluated"
        held = [*job.prompt, *choice.outputs]
        assert self.engine.text(choice.seq_id) == held, "the cache holds something else"
        if job.max_tokens is not None and len(choice.outputs) >= job.max_tokens:
            self.finish(choice)
            return
        token = _token(job.ticket, choice.index, choice.length)
        is_full = self.scheduler.accept(choice, token)
        wanted = self.length_of[job.ticket, choice.index]
        if is_full or len(choice.outputs) >= min(wanted, job.max_tokens or wanted):
            self.finish(choice)

    def finish(self, choice: Choice) -> None:
        if self.scheduler.finish(choice, self.now_ms):
            self.over(choice)

    def over(self, choice: Choice) -> None:
        job = choice.job
        for other in job.choices:
            expected = [
                _token(job.ticket, other.index, len(job.prompt) + k)
                for k in range(len(other.outputs))
            ]
            assert other.outputs == expected, "a preemption changed what was drawn"
        if not job.live and job.ticket in self.live:
            self.end(job.ticket, "done")

    def expire(self, job: Job, error: ApplianceError) -> None:
        assert isinstance(error, DeadlineExceeded)
        assert job.deadline_ms is not None
        assert job.deadline_ms <= self.now_ms
        self.end(job.ticket, "deadline")

    # --- invariants ------------------------------------------------------------------------------

    def check_plan(self, plan: Plan) -> None:
        scheduler = self.scheduler
        running = list(scheduler.jobs())
        assert running == sorted(running, key=lambda job: job.order)
        if not running:
            return
        planned = {span.seq_id: span for span in plan.spans}
        assert any(span.choice.job is running[0] for span in plan.spans), "the oldest stands still"
        for job in running:
            for choice in job.live:
                if job.is_forked and choice.pending == 1:
                    assert planned[choice.seq_id].count == 1, "a decode row was left out"
        singles = [span for span in plan.spans if span.count == 1]
        assert plan.shape.decode <= len(singles)
        budget_ms = 30.0 if plan.shape.decode else 100.0
        if plan.shape.prefill > 8:
            assert plan.predicted_ms <= budget_ms, "a prompt was given more than the budget"

    def check_books(self) -> None:
        scheduler = self.scheduler
        ledger = scheduler.ledger
        assert ledger.used == ledger.recount()
        pending = set(scheduler._removed)
        held = {
            seq_id: cells
            for seq_id, cells in self.engine.sequences.items()
            if seq_id not in pending
        }
        assert ledger.used == len({id(cell) for cells in held.values() for cell in cells})
        holding = sum(len(job.live) for job in scheduler.jobs())
        assert scheduler.sequences_used == holding
        untold = {choice.job.ticket for choice in scheduler._exhausted}
        queued = {job.ticket for job in (*scheduler.jobs(), *scheduler._waiting)}
        assert set(self.live) == queued | untold

    def check_idle(self) -> None:
        scheduler = self.scheduler
        assert scheduler.ledger.is_empty
        assert scheduler.sequences_used == 0
        assert self.engine.used == 0
        assert not scheduler.has_work


def _token(ticket: int, choice: int, position: int) -> int:
    """Name the token that this choice draws here, whatever else happens: like a seeded draw."""
    return (ticket * 7919 + choice * 104_729 + position * 31) % 50_000


def live(seed: int) -> None:
    world = World(seed)
    rng = world.rng
    tickets = rng.choice([1, 5, 20])
    arrived = 0
    for _ in range(STEPS_MAX):
        while arrived < tickets and rng.random() < 0.3:
            world.arrive(arrived)
            arrived += 1
        if world.live and rng.random() < 0.02:
            ticket = rng.choice(sorted(world.live))
            world.scheduler.remove(ticket)
            assert not world.scheduler.remove(ticket)
            world.end(ticket, "cancelled")
        if rng.random() < 0.002:
            world.scheduler.preempt_all()
        world.step()
        world.now_ms += 1.0
        if arrived == tickets and not world.scheduler.has_work:
            break
    else:
        pytest.fail("the schedule does not come to an end")
    world.check_idle()
    assert set(world.ends) == set(range(tickets))


@pytest.mark.parametrize("case", range(12))
def test_random_schedules_keep_every_invariant(case: int) -> None:
    for number in range(SCHEDULES_PER_CASE):
        seed = case * SCHEDULES_PER_CASE + number
        try:
            live(seed)
        except BaseException:
            print(f"schedule seed: {seed}")  # noqa: T201 - shown by pytest with the failure
            raise
