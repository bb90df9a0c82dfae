"""The rules of admission, composition and pressure, one by one."""

from __future__ import annotations

from appliance.errors import ContextTooLong, DeadlineExceeded, QueueFull
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.jobs import Choice, Job, Plan, SchedulerLimits
from appliance.runtime.scheduler import Scheduler


def scheduler(**changes: float) -> Scheduler:
    values: dict[str, float] = {
        "context_tokens": 1000,
        "cells_total": 1000,
        "sequences_max": 8,
        "batch_tokens": 64,
        "queue_requests_max": 4,
        "output_reserve_tokens": 10,
        "step_ms_while_streaming": 30.0,
        "step_ms_max": 100.0,
    }
    cost = CostModel()
    for rows in (1, 16, 64):
        cost.observe(StepShape(decode=0, prefill=rows, kv_span=rows), 1.0 + rows)
        cost.observe(StepShape(decode=rows, prefill=0, kv_span=rows), 1.0 + rows)
    cost.settle()
    return Scheduler(SchedulerLimits(**(values | changes)), cost)  # type: ignore[arg-type]


def job(ticket: int, size: int = 5, *, n: int = 1, **fields: object) -> Job:
    made = Job(
        ticket=ticket,
        prompt=list(range(size)),
        max_tokens=fields.get("max_tokens"),  # type: ignore[arg-type]
        deadline_ms=fields.get("deadline_ms"),  # type: ignore[arg-type]
    )
    for _ in range(n):
        made.add_choice()
    return made


def step(planner: Scheduler, now_ms: float = 0.0) -> tuple[Plan, list[Choice]]:
    """Plan and fold in one step, drawing token 7 wherever a token is drawn."""
    plan = planner.plan(now_ms)
    drawn = [choice for choice, _ in planner.advance(plan.spans).draws]
    for choice in drawn:
        planner.accept(choice, 7)
    return plan, drawn


def planned(plan: Plan) -> dict[int, int]:
    rows: dict[int, int] = {}
    for span in plan.spans:
        rows[span.choice.job.ticket] = rows.get(span.choice.job.ticket, 0) + span.count
    return rows


def test_decode_rows_come_first_and_a_prompt_fills_what_the_budget_leaves() -> None:
    planner = scheduler()
    planner.submit(job(1))
    step(planner)
    planner.submit(job(2, 500))
    plan, _ = step(planner)
    assert plan.spans[0].choice.job.ticket == 1
    assert plan.shape.decode == 1
    assert 0 < plan.shape.prefill < 30  # a token costs a millisecond; the budget is 30 ms
    assert plan.predicted_ms <= 30.0


def test_a_lone_prompt_may_fill_the_longest_step() -> None:
    planner = scheduler()
    planner.submit(job(1, 500))
    plan, _ = step(planner)
    assert 30 < plan.shape.prefill <= 64
    assert plan.predicted_ms <= 100.0


def test_the_oldest_prompt_is_finished_before_the_next_gets_any() -> None:
    planner = scheduler(batch_tokens=32)
    planner.submit(job(1, 50))
    planner.submit(job(2, 50))
    assert planned(step(planner)[0]) == {1: 32}
    assert planned(step(planner)[0]) == {1: 18, 2: 14}


def test_choices_share_the_prompts_row_and_its_cells() -> None:
    planner = scheduler()
    planner.submit(job(1, 20, n=3))
    plan, drawn = step(planner)
    assert [choice.index for choice in drawn] == [0, 1, 2]
    assert len(plan.spans) == 1
    assert planner.cache.ledger.used == 20
    step(planner)
    assert planner.cache.ledger.used == 23


def test_a_queue_refuses_beyond_its_bound_and_free_sequences_are_no_queue() -> None:
    planner = scheduler(sequences_max=2, queue_requests_max=1)
    refusals = [planner.submit(job(ticket)) for ticket in range(4)]
    assert refusals[:3] == [None, None, None]
    assert isinstance(refusals[3], QueueFull)
    assert refusals[3].retryable


def test_what_can_never_fit_is_refused_at_once() -> None:
    planner = scheduler(context_tokens=100, cells_total=200)
    assert isinstance(planner.submit(job(1, 100)), ContextTooLong)
    assert planner.submit(job(2, 100, max_tokens=0)) is None
    assert planner.submit(job(3, 99)) is None
    assert isinstance(planner.submit(job(4, 5, n=9)), ContextTooLong)


def test_admission_counts_cells_and_lets_a_smaller_job_pass_for_a_while() -> None:
    planner = scheduler(cells_total=100, overtakes_max=2, queue_requests_max=50)
    planner.submit(job(1, 50))
    planner.submit(job(2, 60))
    for ticket in range(3, 7):
        planner.submit(job(ticket, 3, max_tokens=1))
    started = [job.ticket for job in planner.plan(0.0).started]
    assert started[0] == 1
    assert 2 not in started
    assert len(started) == 3  # two passed, then nobody does
    assert planner.waiting_count == 3


def test_pressure_preempts_the_youngest_and_its_tokens_come_back() -> None:
    planner = scheduler(cells_total=24, output_reserve_tokens=1)
    old, young = job(1, 8), job(2, 8)
    planner.submit(old)
    planner.submit(young)
    while not planner.preemptions_total:
        step(planner)
    assert young.choices[0].outputs
    drawn_before = list(young.choices[0].outputs)
    assert [running.ticket for running in planner.jobs()] == [1]
    planner.finish(old.choices[0], 0.0)
    while young.choices[0].pending != 1:
        step(planner)
    assert young.choices[0].outputs[: len(drawn_before)] == drawn_before
    assert planner.cache.ledger.held(young.choices[0].seq_id) == young.choices[0].length - 1


def test_a_job_alone_ends_as_full_when_the_cells_are() -> None:
    planner = scheduler(cells_total=20)
    planner.submit(job(1, 10))
    exhausted: tuple[Choice, ...] = ()
    while not exhausted:
        exhausted = step(planner)[0].exhausted
    assert exhausted[0].length == 21
    assert planner.plan(0.0).moves == ()
    assert not planner.has_work
    assert planner.cache.ledger.is_empty


def test_a_step_refused_for_room_is_halved_for_a_lone_job() -> None:
    planner = scheduler()
    planner.submit(job(1, 500))
    plan = planner.plan(0.0)
    planner.no_room(plan)
    assert planner.plan(0.0).shape.prefill == plan.shape.prefill // 2


def test_deadlines_are_kept_in_the_queue_and_while_generating() -> None:
    planner = scheduler(sequences_max=1)
    planner.submit(job(1, deadline_ms=50.0))
    step(planner, 0.0)
    planner.submit(job(2, deadline_ms=20.0))
    (late, error), *_ = planner.plan(20.0).failed
    assert (late.ticket, error.fields) == (2, {"phase": "queue"})
    (late, error), *_ = planner.plan(50.0).failed
    assert isinstance(error, DeadlineExceeded)
    assert (late.ticket, error.fields) == (1, {"phase": "generation"})


def test_a_cancel_empties_its_sequences_before_the_next_step() -> None:
    planner = scheduler()
    planner.submit(job(1, n=2))
    step(planner)
    held = {choice.seq_id for choice in next(planner.jobs()).choices}
    assert planner.remove(1)
    assert not planner.remove(1)
    assert planner.has_work
    assert {move.seq_id for move in planner.plan(0.0).moves} == held
    assert not planner.has_work


def test_a_replay_evaluates_the_prompt_once_and_each_choices_own_tokens() -> None:
    planner = scheduler()
    replay = job(1, 10)
    replay.choices.clear()
    replay.add_choice((7, 7, 7))
    replay.add_choice()
    replay.add_choice((7,), is_ended=True)
    planner.submit(replay)
    plan, drawn = step(planner)
    assert (plan.shape.prefill, [choice.index for choice in drawn]) == (10, [1])
    plan, drawn = step(planner)
    assert planned(plan) == {1: 4}
    assert [choice.index for choice in drawn] == [1, 0]
    assert planner.cache.sequences_used == 2
