"""The table of a deployment's life: total, reachable, turned only by what may turn it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.release import Strategy, Trial
from appliance.domain import Digest
from appliance.sync.deployment import (
    Bounds,
    Decision,
    Deployment,
    Happening,
    Serving,
    Undo,
    decide,
    plan,
    stages,
    undoing,
)
from appliance.sync.states import (
    BLAMED,
    ENDS,
    ON_ENTERING,
    ROWS,
    SEEN,
    TABLE,
    TRIED,
    UNDER_WAY,
    Act,
    Event,
    State,
)

OLD, NEW = Digest("sha256:" + "0" * 64), Digest("sha256:" + "1" * 64)
BOUNDS = Bounds(entries_max=64, reboots_max=2)
FULL = Strategy(needs_approval=True, steps_percent=(10, 50), stop_then_start=True)
FORWARD = {
    State.PLANNED: Event.STARTED,
    State.FETCHING: Event.BLOBS_READY,
    State.STAGED: Event.WINDOW_OPEN,
    State.LOADING: Event.LOADED,
    State.CHECKING: Event.CHECKS_PASSED,
    State.SHADOWING: Event.VERDICT_PASS,
    State.AWAITING_APPROVAL: Event.APPROVED,
    State.SHIFTING: Event.VERDICT_PASS,
    State.PROBATION: Event.VERDICT_PASS,
}
strategies = st.builds(
    Strategy,
    shadow_share=st.sampled_from([0.0, 0.2]),
    needs_approval=st.booleans(),
    steps_percent=st.sampled_from([(), (10,), (10, 50), (1, 2, 3, 99)]),
    probation=st.sampled_from([None, Trial()]),
    stop_then_start=st.booleans(),
)


def planned(strategy: Strategy = FULL, previous: Digest = OLD) -> Deployment:
    return plan(
        model="m", version="2", digest=NEW, previous=previous, strategy=strategy, utc_ms=1000
    )


deployments = st.builds(
    planned,
    strategies,
    st.sampled_from([OLD, Digest("")]),
)


def happen(deployment: Deployment, event: Event, *, utc_ms: int = 2000) -> Decision:
    decision = decide(deployment, Happening(event=event, utc_ms=utc_ms, reason="why"), BOUNDS)
    assert decision is not None, (deployment.state, event)
    return decision


def driven(deployment: Deployment, state: State, step: int = 0) -> Deployment:
    """Drive forward until `state`."""
    while (deployment.state, deployment.step) != (state, step):
        deployment = happen(deployment, FORWARD[deployment.state]).deployment
    return deployment


def every(state: State) -> Deployment:
    if state is State.ROLLING_BACK:
        return happen(driven(planned(), State.PROBATION), Event.CANCELLED).deployment
    if state is State.ROLLED_BACK:
        return happen(every(State.ROLLING_BACK), Event.TRAFFIC_BACK).deployment
    if state is State.STRANDED:
        return happen(every(State.ROLLING_BACK), Event.ROLLBACK_FAILED).deployment
    if state is State.ABORTED:
        return happen(planned(), Event.CANCELLED).deployment
    return driven(planned(), state)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_in_every_state_is_decided_or_passed_over(state: State, event: Event) -> None:
    decision = decide(every(state), Happening(event=event, utc_ms=5), BOUNDS)
    assert (decision is not None) == ((state, event) in TABLE)
    if decision is not None:
        assert decision.deployment.entered_utc_ms == 5
        assert (
            decision.acts[-len(ON_ENTERING[decision.deployment.state]) :]
            == (ON_ENTERING[decision.deployment.state])
        )


def test_no_pair_stands_twice_and_nothing_happens_at_an_end() -> None:
    pairs = [pair for row in ROWS for pair in itertools.product(row.states, row.events)]
    assert len(pairs) == len(set(pairs))
    assert [state for state, _ in pairs if state in ENDS] == []


def test_every_state_is_reached_and_every_state_but_ends_can_be_left() -> None:
    reached, pending = set[State](), [planned()]
    seen = set[tuple[State, int, bool]]()
    while pending:
        deployment = pending.pop()
        key = (deployment.state, deployment.step, deployment.is_alone)
        if key in seen:
            continue
        seen.add(key)
        reached.add(deployment.state)
        for event in Event:
            decision = decide(deployment, Happening(event=event, utc_ms=1), BOUNDS)
            if decision is not None:
                pending.append(decision.deployment)
    assert reached == set(State)
    assert {state for state, _ in TABLE} == set(State) - ENDS


def test_every_restart_is_an_event_of_every_state_but_ends() -> None:
    restarts = (Event.RESTARTED_CLEAN, Event.RESTARTED_DIRTY, Event.RESTARTED_REBOOTED)
    missing = [p for p in itertools.product(set(State) - ENDS, restarts) if p not in TABLE]
    assert missing == []


@given(deployments)
def test_going_forward_ends_in_committed(deployment: Deployment) -> None:
    visited = [deployment.state]
    while not deployment.has_ended:
        deployment = happen(deployment, FORWARD[deployment.state]).deployment
        visited.append(deployment.state)
    assert deployment.state is State.COMMITTED
    assert (State.SHADOWING in visited) == (
        deployment.strategy.shadow_share > 0 and deployment.previous != ""
    )
    assert (State.AWAITING_APPROVAL in visited) == deployment.strategy.needs_approval
    steps = len(deployment.strategy.steps_percent) if deployment.previous else 0
    assert visited.count(State.SHIFTING) == steps
    assert (State.PROBATION in visited) == bool(
        deployment.strategy.probation and deployment.previous
    )


@given(deployments)
def test_what_the_strategy_leaves_out_is_all_that_is_left_out(deployment: Deployment) -> None:
    course = stages(deployment)
    assert course[0] == (State.PLANNED, 0)
    assert course[-1] == (State.COMMITTED, 0)
    assert len(set(course)) == len(course)


@given(deployments, st.lists(st.sampled_from(list(Event)), max_size=60))
def test_users_get_more_of_a_candidate_only_by_what_may_give_it(
    deployment: Deployment, events: list[Event]
) -> None:
    """A verdict, an approval, or the checks where no shadow is asked for."""
    for event in events:
        decision = decide(deployment, Happening(event=event, utc_ms=1), BOUNDS)
        if decision is None:
            continue
        after = decision.deployment
        if after.traffic.percent > deployment.traffic.percent:
            allowed = {Event.VERDICT_PASS, Event.APPROVED}
            no_shadow = after.strategy.shadow_share == 0 or after.is_alone
            assert event in allowed | ({Event.CHECKS_PASSED} if no_shadow else set())
        deployment = after


@given(deployments, st.lists(st.sampled_from(list(Event)), max_size=200))
def test_the_budget_breaks_every_loop(deployment: Deployment, events: list[Event]) -> None:
    bounds = Bounds(entries_max=5, reboots_max=2)
    for event in events:
        decision = decide(deployment, Happening(event=event, utc_ms=1), bounds)
        if decision is not None:
            deployment = decision.deployment
        assert deployment.entries <= 6
        if deployment.entries == 6:
            assert deployment.state not in TRIED


def test_a_spent_budget_goes_back_and_says_so() -> None:
    loading = driven(planned(), State.LOADING)
    bounds = Bounds(entries_max=3, reboots_max=2)
    for _ in range(2):
        decision = decide(loading, Happening(event=Event.RESTARTED_CLEAN, utc_ms=1), bounds)
        assert decision is not None
        loading = decision.deployment
    decision = decide(loading, Happening(event=Event.RESTARTED_CLEAN, utc_ms=1), bounds)
    assert decision is not None
    assert (decision.deployment.state, decision.deployment.cause) == (
        State.ABORTED,
        "budget_spent",
    )
    assert decision.deployment.is_blamed


@pytest.mark.parametrize("state", UNDER_WAY)
@pytest.mark.parametrize(
    "event", [Event.CANCELLED, Event.REVOKED, Event.SUPERSEDED, Event.DEADLINE, Event.BUDGET_SPENT]
)
def test_the_way_back_is_by_what_users_saw(state: State, event: Event) -> None:
    after = happen(every(state), event).deployment
    assert after.state is (State.ROLLING_BACK if state in SEEN else State.ABORTED)
    assert after.cause == event.value
    assert after.is_blamed == (event in BLAMED)


@pytest.mark.parametrize("state", [State.AWAITING_APPROVAL, State.SHIFTING, State.PROBATION])
def test_a_clean_restart_loads_the_candidate_again_and_keeps_the_step(state: State) -> None:
    before = driven(planned(), State.SHIFTING, 1) if state is State.SHIFTING else every(state)
    decision = happen(before, Event.RESTARTED_CLEAN)
    assert (decision.deployment.state, decision.deployment.step) == (before.state, before.step)
    assert decision.acts[:2] == (Act.LOAD, Act.DIRECT)


def test_a_dirty_restart_goes_back_where_users_saw_the_candidate() -> None:
    assert happen(every(State.PROBATION), Event.RESTARTED_DIRTY).deployment.state is (
        State.ROLLING_BACK
    )
    assert happen(every(State.SHADOWING), Event.RESTARTED_DIRTY).deployment.state is State.LOADING


def test_mains_failures_are_forgiven_twice() -> None:
    deployment = driven(planned(), State.SHIFTING, 1)
    for _ in range(2):
        deployment = happen(deployment, Event.RESTARTED_REBOOTED).deployment
        assert (deployment.state, deployment.step) == (State.SHIFTING, 1)
    deployment = happen(deployment, Event.RESTARTED_REBOOTED).deployment
    assert deployment.state is State.ROLLING_BACK
    assert not deployment.is_blamed


def test_where_both_do_not_fit_approval_comes_before_anything_is_stopped() -> None:
    loading = driven(planned(), State.LOADING)
    waiting = happen(loading, Event.NO_ROOM).deployment
    assert (waiting.state, waiting.is_alone) == (State.AWAITING_APPROVAL, True)
    staged = happen(waiting, Event.APPROVED).deployment
    assert staged.state is State.STAGED
    alone = driven(staged, State.CHECKING)
    assert alone.is_seen
    assert happen(alone, Event.CHECK_FAILED).deployment.state is State.ROLLING_BACK
    assert happen(alone, Event.CHECKS_PASSED).deployment.state is State.PROBATION


def test_where_stopping_is_not_allowed_no_room_aborts_without_blame() -> None:
    loading = driven(planned(Strategy(stop_then_start=False)), State.LOADING)
    after = happen(loading, Event.NO_ROOM).deployment
    assert (after.state, after.cause, after.is_blamed) == (State.ABORTED, "no_room", False)


def test_the_deadline_counts_from_the_first_loading() -> None:
    staged = driven(planned(Strategy(deadline_s=60.0)), State.STAGED)
    assert staged.deadline_utc_ms == 0
    loading = happen(staged, Event.WINDOW_OPEN, utc_ms=10_000).deployment
    assert loading.deadline_utc_ms == 70_000
    again = happen(loading, Event.RESTARTED_CLEAN, utc_ms=20_000).deployment
    assert again.deadline_utc_ms == 70_000


def test_committing_makes_the_previous_version_the_standby() -> None:
    serving = Serving(model="m", active=OLD, standby=Digest("x"), generation=4)
    committed = driven(planned(), State.COMMITTED)
    assert serving.after(committed) == Serving(model="m", active=NEW, standby=OLD, generation=5)
    assert serving.after(every(State.ROLLED_BACK)) is serving


def test_undoing_swaps_back_and_blames_the_version() -> None:
    serving = Serving(model="m", active=NEW, standby=OLD, generation=5)
    undo = undoing(
        model="m", version="2", digest=NEW, to=OLD, undo=Undo.OPERATOR, utc_ms=1, reason="by hand"
    )
    assert serving.after(undo) is serving
    back = happen(undo, Event.TRAFFIC_BACK).deployment
    assert serving.after(back) == Serving(model="m", active=OLD, generation=6)
    assert back.is_blamed
    assert (back.cause, back.reason) == ("operator", "why")


def test_only_the_way_forward_stops_when_it_can_not_be_saved() -> None:
    assert happen(every(State.PROBATION), Event.VERDICT_PASS).must_be_saved
    assert not happen(every(State.PROBATION), Event.VERDICT_FAIL).must_be_saved
    assert not happen(every(State.ROLLING_BACK), Event.TRAFFIC_BACK).must_be_saved
