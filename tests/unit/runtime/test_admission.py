"""The bounds on what waits, and when it is worth asking again."""

from __future__ import annotations

import pytest

from appliance.config import Limits
from appliance.errors import DeadlineExceeded, QueueFull
from appliance.runtime.admission import RETRY_AFTER_S_MAX, RETRY_AFTER_S_MIN, Admission

LIMITS = Limits(queue_requests=2, queue_prompt_tokens=100)


def test_both_bounds_are_held_and_named() -> None:
    admission = Admission(LIMITS)
    admission.check(1, 60, 40)
    with pytest.raises(QueueFull) as tokens:
        admission.check(1, 60, 41)
    with pytest.raises(QueueFull) as requests:
        admission.check(2, 2, 1)
    assert (tokens.value.fields["bound"], tokens.value.fields["limit"]) == (
        "queue_prompt_tokens",
        100,
    )
    assert requests.value.fields["bound"] == "queue_requests"


def test_a_prompt_over_the_bound_is_let_in_when_nothing_waits() -> None:
    Admission(LIMITS).check(0, 0, 1000)


def test_the_guess_follows_the_measured_pace_within_its_bounds() -> None:
    slow, fast = Admission(LIMITS), Admission(LIMITS)
    for index in range(200):
        slow.started(index * 20_000.0, others_wait=True)
        fast.started(index * 1.0, others_wait=True)
    assert fast.retry_after_s(8) == RETRY_AFTER_S_MIN
    assert 19.0 < slow.retry_after_s(4) < 21.0
    assert slow.retry_after_s(200) == RETRY_AFTER_S_MAX


def test_what_would_start_past_its_deadline_is_refused_at_once_with_a_time_to_retry() -> None:
    admission = Admission(Limits(queue_requests=50))
    for index in range(9):  # eight waited, a second each
        admission.check(20, 20, 1, ahead=20, left_ms=1.0)  # nothing is known of the pace yet
        admission.started(index * 1000.0, others_wait=True)
    admission.check(20, 20, 1, ahead=5, left_ms=6000.0)
    admission.check(20, 20, 1, ahead=20, left_ms=None)
    with pytest.raises(DeadlineExceeded) as refused:
        admission.check(20, 20, 1, ahead=20, left_ms=6000.0)
    assert refused.value.phase == "queue"
    assert refused.value.fields["retry_after_s"] == pytest.approx(14.0)
