"""Prefixes, classes, clients, adapters and the pressure ladder, as the scheduler decides them."""

from __future__ import annotations

from appliance.domain import Priority
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.jobs import Job, MoveKind, Plan, SchedulerLimits
from appliance.runtime.scheduler import Scheduler


def scheduler(**changes: float) -> Scheduler:
    values: dict[str, float] = {
        "context_tokens": 2000,
        "cells_total": 2000,
        "sequences_max": 8,
        "batch_tokens": 64,
        "queue_requests_max": 100,
        "output_reserve_tokens": 10,
        "step_ms_while_streaming": 30.0,
        "step_ms_max": 100.0,
        "parked_max": 8,
        "parked_cells_max": 1000,
        "turn_ms": 20.0,
    }
    cost = CostModel()
    for rows in (1, 16, 64):
        cost.observe(StepShape(decode=0, prefill=rows, kv_span=rows), 1.0 + rows)
        cost.observe(StepShape(decode=rows, prefill=0, kv_span=rows), 1.0 + rows)
    cost.settle()
    return Scheduler(SchedulerLimits(**(values | changes)), cost)  # type: ignore[arg-type]


def job(ticket: int, prompt: range | list[int], **fields: object) -> Job:
    made = Job(ticket=ticket, prompt=list(prompt), max_tokens=None)
    for name, value in fields.items():
        setattr(made, name, value)
    made.add_choice()
    return made


class Played:
    """A scheduler with a clock, whose engine draws a token of its own wherever one is drawn."""

    def __init__(self, planner: Scheduler) -> None:
        self.planner = planner
        self.now_ms = 0.0
        self.rows: dict[int, int] = {}
        self.first_step: dict[int, int] = {}
        self.steps = 0

    def step(self) -> Plan:
        plan = self.planner.plan(self.now_ms)
        self.steps += 1
        for span in plan.spans:
            ticket = span.choice.job.ticket
            self.rows[ticket] = self.rows.get(ticket, 0) + span.count
            self.first_step.setdefault(ticket, self.steps)
        for choice, _ in self.planner.advance(plan.spans).draws:
            self.planner.accept(choice, 5000 + choice.job.ticket)
        self.now_ms += plan.predicted_ms
        return plan

    def until_drawn(self, made: Job, tokens: int = 1) -> None:
        while len(made.choices[0].outputs) < tokens:
            self.step()

    def finish(self, made: Job, tokens: int = 1) -> None:
        self.until_drawn(made, tokens)
        self.planner.finish(made.choices[0], self.now_ms)


def test_a_prompt_takes_over_what_a_finished_one_began_with() -> None:
    played = Played(scheduler())
    first = job(1, range(100))
    played.planner.submit(first)
    played.finish(first)
    second = job(2, [*range(80), *range(900, 920)])
    played.planner.submit(second)
    played.until_drawn(second)
    assert second.cached == 80
    assert played.rows[2] == 20
    assert played.planner.cache.prefix_tokens_total == 80


def test_what_is_kept_in_host_memory_holds_no_cell_and_is_restored() -> None:
    played = Played(scheduler(swap_bytes_max=1000, cell_bytes=1))
    first = job(1, range(100))
    played.planner.submit(first)
    played.finish(first)
    kinds = [move.kind for move in played.planner.plan(played.now_ms).moves]
    assert kinds == [MoveKind.SAVE, MoveKind.REMOVE]
    assert played.planner.cache.ledger.is_empty
    assert played.planner.cache.swapped_bytes == 100
    second = job(2, [*range(80), *range(900, 920)])
    played.planner.submit(second)
    (move,) = played.step().moves
    assert (move.kind, move.tokens) == (MoveKind.RESTORE, 80)
    played.finish(second)
    assert second.cached == 80
    assert played.rows[2] == 20


def test_kept_states_are_bounded_and_the_preempted_come_before_them() -> None:
    played = Played(scheduler(swap_bytes_max=250, cell_bytes=1))
    for ticket in range(1, 9):
        made = job(ticket, range(1000 * ticket, 1000 * ticket + 90))
        played.planner.submit(made)
        played.finish(made)
    cache = played.planner.cache
    assert (len(cache.hosted), cache.swapped_bytes) == (2, 180)
    running = job(10, range(200))
    played.planner.submit(running)
    played.until_drawn(running)
    assert cache.swap_out(running.choices[0])
    assert (len(cache.hosted), cache.swapped_bytes) == (0, 200)


def test_the_same_prompt_is_evaluated_but_for_its_last_token() -> None:
    played = Played(scheduler())
    for ticket in (1, 2):
        made = job(ticket, range(100))
        played.planner.submit(made)
        played.finish(made)
    assert played.rows == {1: 100, 2: 1}


def test_the_next_turn_of_a_chat_takes_over_question_and_answer() -> None:
    played = Played(scheduler())
    first = job(1, range(50))
    played.planner.submit(first)
    played.finish(first, 10)
    second = job(2, [*range(50), *[5001] * 9, *range(900, 930)])
    played.planner.submit(second)
    played.until_drawn(second)
    assert second.cached == 59


def test_prompts_that_arrive_together_wait_for_the_prefix_they_share() -> None:
    played = Played(scheduler())
    jobs = [job(ticket, [*range(200), 900 + ticket]) for ticket in range(8)]
    for made in jobs:
        played.planner.submit(made)
    for made in jobs:
        played.until_drawn(made)
    assert sum(played.rows.values()) - sum(len(made.choices[0].outputs) for made in jobs) < 300


def test_nobody_waits_for_a_prefix_of_a_lower_class() -> None:
    played = Played(scheduler())
    slow = job(1, range(500), priority=Priority.BATCH)
    played.planner.submit(slow)
    played.step()
    quick = job(2, range(400))
    played.planner.submit(quick)
    played.step()
    assert quick in list(played.planner.jobs())


def test_a_prefix_is_shared_within_one_key_and_one_adapter_only() -> None:
    played = Played(scheduler())
    first = job(1, range(100), cache_key="a")
    played.planner.submit(first)
    played.finish(first)
    for ticket, fields in enumerate(({"cache_key": "b"}, {"cache_key": "a", "adapter": "x"}), 2):
        made = job(ticket, range(100), **fields)
        played.planner.submit(made)
        played.finish(made)
        assert made.cached == 0


def test_what_an_operator_pinned_is_for_everybody_and_stays() -> None:
    played = Played(scheduler(parked_cells_max=150))
    pin = job(1, range(100), is_pin=True, max_tokens=0)
    played.planner.submit(pin)
    while pin.live:
        plan = played.planner.plan(played.now_ms)
        for choice, _ in played.planner.advance(plan.spans).draws:
            played.planner.finish(choice, played.now_ms)
    for ticket in range(2, 12):
        made = job(ticket, [*range(100), *range(1000 * ticket, 1000 * ticket + 60)])
        made.cache_key = f"{ticket}"
        played.planner.submit(made)
        played.finish(made)
        assert made.cached == 100


def test_kept_prefixes_are_bounded_by_their_share_of_the_cells() -> None:
    played = Played(scheduler(parked_cells_max=250))
    for ticket in range(20):
        made = job(ticket, range(1000 * ticket, 1000 * ticket + 90))
        played.planner.submit(made)
        played.finish(made)
    assert played.planner.cache.cells_parked <= 250
    assert len(played.planner.cache.parked) == 2


def test_kept_prefixes_make_way_before_anybody_is_preempted() -> None:
    played = Played(scheduler(cells_total=300, parked_cells_max=300))
    first = job(1, range(200))
    played.planner.submit(first)
    played.finish(first)
    second = job(2, range(1000, 1250))
    played.planner.submit(second)
    played.until_drawn(second)
    assert played.planner.cache.evictions_total == 1
    assert played.planner.preemptions_total == 0


def test_the_youngest_of_the_lowest_class_makes_way_and_never_the_oldest_of_the_highest() -> None:
    played = Played(scheduler(cells_total=120, parked_max=0, output_reserve_tokens=1))
    high = job(1, range(30), priority=Priority.INTERACTIVE)
    low = job(2, range(30), priority=Priority.BATCH)
    younger = job(3, range(30), priority=Priority.INTERACTIVE)
    played.planner.submit(low)
    played.until_drawn(low)
    played.planner.submit(high)
    played.planner.submit(younger)
    while not played.planner.preemptions_total:
        played.step()
    assert [made.ticket for made in played.planner.jobs()] == [1, 3]
    while played.planner.preemptions_total < 2:
        played.step()
    assert [made.ticket for made in played.planner.jobs()] == [1]


def test_a_preempted_sequence_is_saved_and_restored_where_that_is_cheaper() -> None:
    played = Played(
        scheduler(
            cells_total=100,
            parked_max=0,
            output_reserve_tokens=1,
            swap_bytes_max=10_000,
            cell_bytes=10,
        )
    )
    old, young = job(1, range(40)), job(2, range(40))
    played.planner.submit(old)
    played.planner.submit(young)
    moves = []
    while not played.planner.preemptions_total:
        moves = [move.kind for move in played.step().moves]
    assert moves == [MoveKind.SAVE, MoveKind.REMOVE]
    held = young.choices[0].swapped
    assert held == young.choices[0].length - 1
    assert played.planner.cache.swapped_bytes == 10 * held
    played.planner.finish(old.choices[0], played.now_ms)
    kinds = [move.kind for move in played.step().moves]
    assert MoveKind.TAKE_BACK in kinds
    assert played.planner.cache.swapped_bytes == 0
    assert young.choices[0].evaluated == held + 1  # it went on where it was


def test_a_higher_class_starts_first_and_takes_the_sequence_of_a_lower_one() -> None:
    played = Played(scheduler(sequences_max=1))
    low = job(1, range(10), priority=Priority.BATCH)
    played.planner.submit(low)
    played.until_drawn(low)
    high = job(2, range(100, 110), priority=Priority.INTERACTIVE)
    played.planner.submit(high)
    played.step()
    assert [made.ticket for made in played.planner.jobs()] == [2]


def test_a_request_that_has_waited_long_counts_as_a_higher_class() -> None:
    played = Played(scheduler(sequences_max=1, ageing_ms=1000.0))
    running = job(0, range(10), priority=Priority.INTERACTIVE)
    played.planner.submit(running, 0.0)
    played.step()
    played.planner.submit(job(1, range(10), priority=Priority.BATCH), 0.0)
    played.now_ms = 2500.0
    played.planner.submit(job(2, range(10), priority=Priority.INTERACTIVE), 2500.0)
    played.planner.finish(running.choices[0], 2500.0)
    played.step()
    assert [made.ticket for made in played.planner.jobs()] == [1]


def test_a_greedy_client_and_a_polite_one_share_the_time() -> None:
    played = Played(scheduler(sequences_max=32, cells_total=20_000))
    for ticket in range(1, 32):
        played.planner.submit(job(ticket, [ticket * 100], client="greedy"))
    for _ in range(40):
        played.step()
    polite = job(99, [5], client="polite")
    played.planner.submit(polite)
    began_ms = played.now_ms
    played.until_drawn(polite, 100)
    alone_ms = 100 * played.planner.cost.predict_rows_ms(1, 0, 2000)
    assert played.now_ms - began_ms < 2.2 * alone_ms
    greedy = sum(played.rows[ticket] for ticket in range(1, 32))
    assert greedy > 31 * 40 / 4  # and the other goes on all the while


def test_a_client_with_more_than_its_part_of_the_sequences_makes_way_for_another() -> None:
    played = Played(scheduler(sequences_max=4))
    for ticket in range(1, 9):
        played.planner.submit(job(ticket, [ticket * 100], client="greedy"))
    played.step()
    polite = job(99, range(20), client="polite")
    played.planner.submit(polite)
    played.step()
    assert polite in list(played.planner.jobs())
    assert played.planner.preemptions_total == 1


def test_batch_requests_hardly_slow_the_class_above_and_never_stop() -> None:
    played = Played(scheduler(sequences_max=32, cells_total=20_000))
    for ticket in range(1, 21):
        made = job(ticket, [ticket * 100], client="b", priority=Priority.BATCH)
        played.planner.submit(made)
    for _ in range(20):
        played.step()
    before = sum(played.rows.values())
    high = job(99, [5], client="a")
    played.planner.submit(high)
    began_ms = played.now_ms
    played.until_drawn(high, 200)
    alone_ms = 200 * played.planner.cost.predict_rows_ms(1, 0, 2000)
    assert played.now_ms - began_ms < 1.3 * alone_ms
    assert sum(played.rows.values()) - played.rows[99] > before


def test_the_shorter_rest_is_finished_first_and_the_longer_one_is_not_forgotten() -> None:
    played = Played(scheduler())
    long = job(1, range(1500))
    played.planner.submit(long, 0.0)
    played.step()
    for ticket in range(2, 80):
        played.planner.submit(job(ticket, range(ticket * 2000, ticket * 2000 + 30)), played.now_ms)
        played.step()
        if ticket == 3:
            assert played.rows.get(2, 0) >= 30
        for made in list(played.planner.jobs()):
            if made is not long and made.choices[0].outputs:
                played.planner.finish(made.choices[0], played.now_ms)
    assert played.rows[1] > 500


def test_adapters_take_turns_and_a_step_has_one() -> None:
    played = Played(scheduler(adapter_turn_steps=3))
    for ticket, adapter in enumerate(("", "x", "y")):
        played.planner.submit(job(ticket, [ticket], adapter=adapter))
    seen = [played.step().adapter for _ in range(27)]
    assert {adapter: seen.count(adapter) for adapter in ("", "x", "y")} == {"": 9, "x": 9, "y": 9}
    assert seen[:3] == [seen[0]] * 3


def test_a_step_is_filled_to_whole_tiles_of_rows() -> None:
    played = Played(scheduler())
    stream = job(1, range(10))
    played.planner.submit(stream)
    played.until_drawn(stream)
    played.planner.submit(job(2, range(1000, 1500)))
    shape = played.step().shape
    assert (shape.decode + shape.prefill) % 16 == 0
