"""What measurements say of a candidate, and that missing ones never let it pass."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.release import Trial
from appliance.domain import Sample, Verdict, Window
from appliance.sync.judge import Bars, Measures, Times, judge, measured

TRIAL = Trial(samples_min=20, duration_s=60.0)
BARS = Bars()
GOOD = Measures(
    requests=100,
    constrained=50,
    first_token=Times(count=100, p50_ms=100.0, p95_ms=200.0),
    token_gap=Times(count=100, p50_ms=20.0, p95_ms=30.0),
)


def verdict_of(
    candidate: Measures, active: Measures = GOOD, *, elapsed_s: float = 60.0, shadow: bool = False
) -> tuple[Verdict, str]:
    judgement = judge(candidate, active, TRIAL, BARS, elapsed_s=elapsed_s, shadow=shadow)
    assert judgement.reason
    return judgement.verdict, judgement.reason


def changed(**fields: object) -> Measures:
    return msgspec.structs.replace(GOOD, **fields)


def test_what_is_as_good_passes() -> None:
    assert verdict_of(GOOD)[0] is Verdict.PASS


@pytest.mark.parametrize("kind", ["errors", "empty", "looping", "unfinished"])
def test_bad_answers_of_each_kind_fail(kind: str) -> None:
    verdict, reason = verdict_of(changed(**{kind: 10}))
    assert verdict is Verdict.FAIL
    assert "10" in reason


@pytest.mark.parametrize("kind", ["errors", "empty", "looping", "unfinished"])
def test_what_the_active_version_does_as_often_is_no_fault(kind: str) -> None:
    assert verdict_of(changed(**{kind: 10}), changed(**{kind: 10}))[0] is Verdict.PASS


def test_a_lost_worker_fails_at_once() -> None:
    assert verdict_of(Measures(worker_losses=1), elapsed_s=0.0)[0] is Verdict.FAIL


def test_a_sure_fault_does_not_wait_for_more_samples() -> None:
    early = Measures(requests=3, errors=3)
    assert verdict_of(early, elapsed_s=1.0)[0] is Verdict.FAIL
    assert verdict_of(Measures(requests=2, errors=2), elapsed_s=1.0)[0] is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("series", ["first_token", "token_gap"])
@pytest.mark.parametrize("field", ["p50_ms", "p95_ms"])
def test_a_slow_candidate_fails_by_either_time_and_percentile(series: str, field: str) -> None:
    times = msgspec.structs.replace(getattr(GOOD, series), **{field: 5000.0})
    assert verdict_of(changed(**{series: times}))[0] is Verdict.FAIL


def test_times_of_copies_do_not_count() -> None:
    slow = changed(first_token=Times(count=100, p50_ms=9000.0, p95_ms=9000.0))
    assert verdict_of(slow, shadow=True)[0] is Verdict.PASS


def test_answers_unlike_the_actives_fail_where_a_bar_is_set() -> None:
    unlike = changed(compared=50, agreed_ratio=0.3)
    assert verdict_of(unlike)[0] is Verdict.PASS
    bars = Bars(agreed_min=0.5)
    judgement = judge(unlike, GOOD, TRIAL, bars, elapsed_s=60.0, shadow=True)
    assert judgement.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("candidate", "active", "elapsed_s"),
    [
        (changed(requests=19), GOOD, 60.0),
        (GOOD, GOOD, 59.0),
        (changed(first_token=Times()), GOOD, 60.0),
        (GOOD, changed(first_token=Times(count=19, p50_ms=1.0, p95_ms=1.0)), 60.0),
        (Measures(), Measures(), 1e9),
    ],
)
def test_missing_data_holds(candidate: Measures, active: Measures, elapsed_s: float) -> None:
    assert verdict_of(candidate, active, elapsed_s=elapsed_s)[0] is Verdict.INCONCLUSIVE


times = st.builds(
    Times, count=st.integers(0, 50), p50_ms=st.floats(0, 1e4), p95_ms=st.floats(0, 1e4)
)
counts = st.integers(0, 50)
measures = st.builds(
    Measures,
    requests=counts,
    errors=counts,
    empty=counts,
    looping=counts,
    constrained=counts,
    unfinished=counts,
    first_token=times,
    token_gap=times,
    worker_losses=st.integers(0, 2),
)


@given(candidate=measures, active=measures, elapsed_s=st.floats(0, 1e6), shadow=st.booleans())
def test_only_enough_samples_and_time_without_a_lost_worker_pass(
    candidate: Measures, active: Measures, elapsed_s: float, *, shadow: bool
) -> None:
    verdict, _ = verdict_of(candidate, active, elapsed_s=elapsed_s, shadow=shadow)
    if verdict is Verdict.PASS:
        assert candidate.requests >= TRIAL.samples_min
        assert elapsed_s >= TRIAL.duration_s
        assert candidate.worker_losses == 0
        assert shadow or active.first_token.count >= TRIAL.samples_min


def test_a_window_is_counted_apart_for_users_and_copies() -> None:
    samples = (
        Sample(first_token_ms=10.0, token_gap_ms=1.0),
        Sample(first_token_ms=30.0, is_empty=True),
        Sample(error="DECODE_FAILED", first_token_ms=999.0),
        Sample(first_token_ms=500.0, is_looping=True, is_shadow=True),
        Sample(is_constrained=True, is_unfinished_schema=True, is_shadow=True),
    )
    window = Window(samples=samples, worker_losses=2, compared_count=2, agreed_ratio=0.5)
    users = measured(window, shadow=False)
    assert (users.requests, users.errors, users.empty, users.looping) == (3, 1, 1, 0)
    assert users.first_token == Times(count=2, p50_ms=10.0, p95_ms=30.0)
    copies = measured(window, shadow=True)
    assert (copies.requests, copies.looping, copies.unfinished) == (2, 1, 1)
    assert (copies.worker_losses, copies.compared, copies.agreed_ratio) == (2, 2, 0.5)
