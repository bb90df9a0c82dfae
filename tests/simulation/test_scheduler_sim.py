"""Thousands of random lives of the scheduler against an engine that is only books.

Each schedule is made from a seed that a failure prints: jobs arrive at random with random sizes,
choices, replays, deadlines and cancels, of several classes, clients, adapters and cache keys, with
prompts that begin alike; the engine refuses steps at random. The engine keeps what each sequence
holds, position by position, and what llama.cpp would refuse is an error here. Some choices repeat
themselves, so that the scheduler guesses on; in some schedules a draft model guesses too, with few
cells of its own. Wrong guesses are cut off again. After every step the invariants are checked; at
the end everything must have ended, exactly once.
"""

# ruff: noqa: SLF001 - the invariants look at the books themselves

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from appliance.domain import Priority
from appliance.errors import ApplianceError, ContextTooLong, DeadlineExceeded, QueueFull
from appliance.runtime.cost import ATTENTION_TILE, CostModel
from appliance.runtime.draft import DraftLimits
from appliance.runtime.fairness import RANKS
from appliance.runtime.jobs import Choice, Job, Move, MoveKind, Plan, SchedulerLimits, Span
from appliance.runtime.scheduler import Scheduler
from appliance.runtime.speculation import Speculation
from tests.simulation.book_draft import VOCABULARY, BookContext, BookDraft

SCHEDULES_PER_CASE = 180
STEPS_MAX = 20_000
STANDS_MAX = 4000


class BookEngine:
    """A unified KV cache as plain books: cell → (position, token, holders)."""

    def __init__(self, cells_total: int) -> None:
        self.cells_total = cells_total
        self.sequences: dict[int, list[object]] = {}
        self.saved: dict[int, list[int]] = {}
        self.moves: set[MoveKind] = set()
        self.missing: set[int] = set()

    @property
    def used(self) -> int:
        return len({id(cell) for cells in self.sequences.values() for cell in cells})

    def remove(self, seq_id: int) -> None:
        self.sequences.pop(seq_id, None)

    def copy(self, source: int, target: int, tokens: int | None = None) -> None:
        assert not self.sequences.get(target), "copied onto a sequence that is not empty"
        held = self.sequences[source]
        assert tokens is None or len(held) >= tokens, "copied more than the source holds"
        self.sequences[target] = list(held[:tokens])

    def make(self, moves: Iterable[Move], is_refused: Callable[[], bool]) -> list[Move]:
        """Make the moves of a plan; returns those whose state was refused, as `Mover` does."""
        lost = [move for move in moves if not self.move(move, is_refused)]
        self.missing.clear()
        return lost

    def move(self, move: Move, is_refused: Callable[[], bool]) -> bool:
        self.moves.add(move.kind)
        if move.kind is MoveKind.REMOVE:
            self.remove(move.seq_id)
        elif move.kind is MoveKind.COPY:
            if move.source in self.missing:
                self.missing.add(move.seq_id)  # copied from what was never there
            else:
                self.copy(move.source, move.seq_id, move.tokens)
        elif move.kind is MoveKind.SAVE:
            assert move.state not in self.saved
            is_missing = move.seq_id in self.missing
            self.saved[move.state] = [] if is_missing else self.text(move.seq_id)
        elif move.kind is MoveKind.FORGET:
            del self.saved[move.state]
        else:
            assert not self.sequences.get(move.seq_id)
            text = self.saved[move.state]
            is_whole = move.tokens <= len(text)
            assert self.used + len(text) <= self.cells_total, "no room to restore"
            if move.kind is MoveKind.TAKE_BACK:
                del self.saved[move.state]
            if is_refused() or not is_whole:
                self.missing.add(move.seq_id)
                return False
            self.sequences[move.seq_id] = [[token] for token in text[: move.tokens]]
        return True

    def decode(self, spans: tuple[Span, ...], batch_tokens: int) -> None:
        rows = sum(span.rows for span in spans)
        assert 0 < rows <= batch_tokens
        assert self.used + rows <= self.cells_total, "no room: the ledger promised it"
        assert len({span.seq_id for span in spans}) == len(spans)
        given = [span for span in spans if span.row >= 0]
        wanted = [row for span in given for row in range(span.row, span.row_last + 1)]
        assert wanted == list(range(len(wanted))), "logit rows are not in batch order"
        for span in spans:
            cells = self.sequences.setdefault(span.seq_id, [])
            assert len(cells) == span.start, "a gap in the positions"
            tokens = span.choice.tokens(span.start, span.count)
            assert len(tokens) == span.count
            cells.extend([token] for token in (*tokens, *span.draft))

    def cut(self, seq_id: int, tokens: int) -> None:
        del self.sequences[seq_id][tokens:]

    def text(self, seq_id: int) -> list[int]:
        return [cell[0] for cell in self.sequences[seq_id]]  # type: ignore[index]


@dataclass
class World:
    """One schedule: the scheduler, its engine, a clock, and what clients have seen."""

    seed: int
    rng: random.Random = field(init=False)
    now_ms: float = 0.0
    drafted: int = 0
    accepted: int = 0
    foretold: int = 0
    ends: dict[int, str] = field(default_factory=dict)
    live: dict[int, Job] = field(default_factory=dict)
    length_of: dict[tuple[int, int], int] = field(default_factory=dict)
    progress: dict[int, int] = field(default_factory=dict)
    stood: dict[int, int] = field(default_factory=dict)

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
            parked_max=rng.choice([0, 2, 16]),
            parked_cells_max=cells // 2,
            prefix_tokens_min=rng.choice([1, 4]),
            ageing_ms=rng.choice([50.0, 30_000.0]),
            turn_ms=rng.choice([5.0, 100.0]),
            adapter_turn_steps=rng.choice([1, 8]),
            swap_bytes_max=rng.choice([0, 100, 100_000]),
            cell_bytes=1,
        )
        self.priorities = rng.choice([[Priority.NORMAL], list(Priority)])
        self.clients = rng.choice([[""], ["a", "b"], ["a", "b", "c", "d"]])
        self.adapters = rng.choice([[""], [""], ["", "x", "y"]])
        self.period = rng.choice([0, 2, 7])
        drafts = DraftLimits(
            tokens_max=rng.choice([1, 4, 20]),
            streams_max=rng.choice([2, 16]),
            lookback_tokens=64,
            ngram_min=2,
            ngram_max=4,
            stretch_max=1.25,
        )
        cost = CostModel()
        speculation = rng.choice([None, Speculation(drafts, cost)])
        self.draft = None
        if speculation is not None and rng.random() < 0.5:
            context = BookContext(
                rng,
                sequences=rng.choice([1, 3, 16]),
                cells=rng.choice([20, 60, 2000]),
                batch=rng.choice([8, 40, 512]),
            )
            context.refusal_ratio = self.refusal_ratio
            rate, tokens = rng.choice([0.0, 0.7, 1.0]), rng.choice([30, 2000])
            self.draft = BookDraft(rng, self.say, context, context_tokens=tokens)
            self.draft.rate = lambda _choice: rate
            speculation = Speculation(drafts, cost, self.draft.cache)
        self.scheduler = Scheduler(limits, cost, speculation)
        self.outputs_max = sequences + (drafts.tokens_max if speculation else 0)
        self.engine = BookEngine(cells)

    # --- clients ---------------------------------------------------------------------------------

    def arrive(self, ticket: int) -> None:
        rng, limits = self.rng, self.scheduler.limits
        size = rng.choice([1, 2, 5, 12, 40, rng.randint(1, limits.cells_total + 2)])
        job = Job(
            ticket=ticket,
            prompt=self.prompt(size),
            max_tokens=rng.choice([None, 0, 1, 5, 40]),
            deadline_ms=self.now_ms + rng.uniform(0, 3000) if rng.random() < 0.2 else None,
            client=rng.choice(self.clients),
            weight=rng.choice([1.0, 1.0, 0.5, 4.0]),
            priority=rng.choice(self.priorities),
            adapter=rng.choice(self.adapters),
            cache_key=rng.choice(["k", "l"]),
            is_pin=rng.random() < 0.03,
        )
        count = rng.choice([1, 1, 1, 2, 4])
        for index in range(count):
            replayed = min(rng.choice([0, 0, 0, 1, 3, 9]), job.max_tokens or 9)
            if size + replayed >= limits.context_tokens or job.max_tokens == 0:
                replayed = 0
            accepted = [self.token(ticket, index, size + k) for k in range(replayed)]
            is_ended = index > 0 and rng.random() < 0.2
            job.add_choice(accepted, is_ended=is_ended)
            if not is_ended:
                self.length_of[ticket, index] = rng.choice([1, 3, 10, 60])
        free = limits.sequences_max - self.scheduler.cache.sequences_used
        waiting = self.scheduler.waiting_count
        refusal = self.scheduler.submit(job, self.now_ms)
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

    def prompt(self, size: int) -> list[int]:
        """Make a prompt that often begins as others do, sometimes with what they were answered."""
        begin = [self.rng.choice([1, 2]), *range(3, 3 + self.rng.choice([0, 1, 5, 30]))]
        return (begin + [self.rng.randrange(1000) for _ in range(size)])[:size]

    def end(self, ticket: int, how: str) -> None:
        assert ticket not in self.ends, f"ticket {ticket} ended twice: {self.ends[ticket]}, {how}"
        self.ends[ticket] = how
        self.live.pop(ticket, None)
        if self.draft is not None:
            self.draft.model.forget(ticket)

    # --- a step ----------------------------------------------------------------------------------

    def step(self) -> Plan:
        scheduler = self.scheduler
        plan = scheduler.plan(self.now_ms)
        lost = self.engine.make(plan.moves, lambda: self.rng.random() < self.refusal_ratio)
        if lost:
            scheduler.restart(lost)
        for job, error in plan.failed:
            self.expire(job, error)
        for choice in plan.exhausted:
            self.over(choice)
        if lost:
            self.check_books()
            return plan
        if self.draft is not None:
            plan = self.draft.tell(plan).plan
            self.foretold += plan.by_model
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
        outputs = [1 + span.row_last for span in plan.spans if span.row >= 0]
        assert max(outputs, default=0) <= self.outputs_max
        rows = plan.shape.decode + plan.shape.prefill
        step_ms = 1.0 + rows * self.row_ms
        self.now_ms += step_ms
        advance = scheduler.advance(plan.spans)
        for source, target in advance.forks:
            self.engine.copy(source, target)
        for job, done in advance.prefills:
            assert self.progress.get(job.ticket, 0) < done <= len(job.prompt)
            self.progress[job.ticket] = done
        for choice, span in advance.draws:
            assert span.row >= 0
            self.draw(choice, span)
        scheduler.cost.observe(plan.shape, step_ms)
        scheduler.observe(plan, step_ms)

    def draw(self, choice: Choice, span: Span) -> None:
        assert choice.pending == 0, "drawn before all tokens were evaluated"
        held = [*choice.job.prompt, *choice.outputs, *span.draft]
        assert self.engine.text(choice.seq_id) == held, "the cache holds something else"
        kept, is_over = 0, False
        for guess in (*span.draft, None):
            is_over = self.draw_one(choice)
            if is_over or choice.outputs[-1] != guess:
                break
            kept += 1
        if span.draft:
            self.drafted += len(span.draft)
            self.accepted += kept
            self.scheduler.settle(span, kept=kept)
            self.engine.cut(choice.seq_id, choice.evaluated)
        if is_over:
            self.finish(choice)

    def draw_one(self, choice: Choice) -> bool:
        """Draw a token, if there may be one; returns whether that was the last."""
        job = choice.job
        if job.max_tokens is not None and len(choice.outputs) >= job.max_tokens:
            return True
        token = self.token(job.ticket, choice.index, choice.length)
        is_full = self.scheduler.accept(choice, token)
        wanted = self.length_of[job.ticket, choice.index]
        return is_full or len(choice.outputs) >= min(wanted, job.max_tokens or wanted)

    def token(self, ticket: int, choice: int, position: int) -> int:
        """Name the token that this choice draws here, whatever else happens: a seeded draw."""
        if self.period and (position % 13 or ticket % 2):
            position %= self.period
        return (ticket * 7919 + choice * 104_729 + position * 31) % VOCABULARY

    def say(self, choice: Choice, position: int) -> int:
        return self.token(choice.job.ticket, choice.index, position)

    def finish(self, choice: Choice) -> None:
        if self.scheduler.finish(choice, self.now_ms):
            self.over(choice)

    def over(self, choice: Choice) -> None:
        job = choice.job
        for other in job.choices:
            expected = [
                self.token(job.ticket, other.index, len(job.prompt) + k)
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
        assert running == sorted(running, key=lambda job: (RANKS[job.priority], job.order))
        if not running:
            return
        assert plan.spans, "jobs run and none gets a row"
        assert {span.choice.job.adapter for span in plan.spans} == {plan.adapter}
        self.check_progress(plan, running)
        planned = {span.seq_id: span for span in plan.spans}
        mine = [job for job in running if job.adapter == plan.adapter]
        if len({job.party for job in mine}) == 1 and plan.predicted_ms < 50.0:
            for job in mine:
                for choice in job.live:
                    if job.is_forked and choice.pending == 1:
                        assert planned[choice.seq_id].count == 1, "a decode row was left out"
        singles = [span for span in plan.spans if span.count == 1]
        assert plan.singles <= len(singles)
        budget_ms = 30.0 if plan.shape.decode else 100.0
        if plan.shape.decode + plan.shape.prefill == ATTENTION_TILE:  # it may be worth more
            budget_ms = max(budget_ms, 50.0)
        if plan.shape.prefill > 24:  # a chunk is never less than a whole tile
            assert plan.predicted_ms <= budget_ms, "a prompt was given more than the budget"

    def check_books(self) -> None:
        scheduler = self.scheduler
        cache, ledger = scheduler.cache, scheduler.cache.ledger
        assert ledger.used == ledger.recount() <= ledger.cells_total
        gone = {move.seq_id for move in cache._moves if move.kind is MoveKind.REMOVE}
        held = {
            seq_id: cells for seq_id, cells in self.engine.sequences.items() if seq_id not in gone
        }
        assert ledger.used == len({id(cell) for cells in held.values() for cell in cells})
        for seq_id in cache.parked.ids():
            assert self.engine.text(seq_id) == list(cache._tree.tokens(seq_id))
        holding = sum(len(job.live) for job in scheduler.jobs())
        assert cache.sequences_used == holding <= scheduler.limits.sequences_max
        assert len(cache.parked) <= scheduler.limits.parked_max
        ids = len(cache._free_ids) + holding + len(cache.parked)
        assert ids == scheduler.limits.sequences_max + scheduler.limits.parked_max
        saved = sum(choice.swapped for job in scheduler._waiting for choice in job.choices)
        for state in cache.hosted.ids():
            saved += cache.hosted.cells(state)
            if state in self.engine.saved:  # else it is about to be
                assert self.engine.saved[state] == list(cache._tree.tokens(state))
        assert cache.swapped_bytes == saved <= scheduler.limits.swap_bytes_max
        untold = {choice.job.ticket for choice in scheduler._exhausted}
        queued = {job.ticket for job in (*scheduler.jobs(), *scheduler._waiting)}
        assert set(self.live) == queued | untold

    def check_progress(self, plan: Plan, running: list[Job]) -> None:
        """Nobody that runs stands still for ever, whoever else is there."""
        served = {span.choice.job.ticket for span in plan.spans}
        for job in running:
            waited = 0 if job.ticket in served else self.stood.get(job.ticket, 0) + 1
            self.stood[job.ticket] = waited
            assert waited < STANDS_MAX, f"job {job.ticket} stands still"

    def check_idle(self) -> None:
        scheduler = self.scheduler
        cache = scheduler.cache
        assert cache.sequences_used == 0
        assert cache.ledger.used == cache.cells_parked == self.engine.used
        if len([1 for seq_id in cache.parked.ids(pinned=False)]) == len(cache.parked):
            assert cache.cells_parked <= scheduler.limits.parked_cells_max
        assert set(self.engine.saved) == set(cache.hosted.ids())
        assert not scheduler._parties
        if self.draft is not None:
            self.draft.model.check_idle()
        assert not scheduler.has_work
        assert len(cache._tree) == len(cache.parked) + len(cache.hosted)


def live(seed: int) -> World:
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
    return world


@pytest.mark.parametrize("case", range(12))
def test_random_schedules_keep_every_invariant(case: int) -> None:
    drafted = accepted = foretold = 0
    moves: set[MoveKind] = set()
    for number in range(SCHEDULES_PER_CASE):
        seed = case * SCHEDULES_PER_CASE + number
        try:
            world = live(seed)
            drafted += world.drafted
            accepted += world.accepted
            foretold += world.foretold
            moves |= world.engine.moves
        except BaseException:
            print(f"schedule seed: {seed}")  # noqa: T201 - shown by pytest with the failure
            raise
    assert 0 < accepted < drafted, "no guess was ever right, or none was ever wrong"
    assert foretold > 0, "a draft model was never asked"
    assert moves == set(MoveKind), "a kind of move was never made"
