"""What is measured of a version, and what an endless loop is."""

from __future__ import annotations

import pytest

from appliance.domain import Sample, Window
from appliance.runtime.measure import LOOP_TOKENS_MIN, Measure, agreed_tokens, is_looping


def test_a_window_holds_the_last_samples_and_counts_what_went() -> None:
    measure = Measure(3, utc_ms=5)
    for n in range(5):
        measure.take(Sample(prompt_tokens=n))
    measure.lose_worker()
    measure.drop_shadow()
    window = measure.window()
    assert [sample.prompt_tokens for sample in window.samples] == [2, 3, 4]
    assert (window.dropped_count, window.worker_losses, window.shadows_dropped) == (2, 1, 1)
    measure.restart(9)
    assert measure.window() == Window(since_utc_ms=9)


def test_answers_are_alike_up_to_their_first_difference() -> None:
    measure = Measure(3, utc_ms=0)
    measure.compare((1, 2, 3, 4), (1, 2, 9, 4))
    measure.compare((1, 2), (1, 2))
    measure.compare((), ())
    window = measure.window()
    assert (window.compared_count, window.identical_count) == (3, 2)
    assert window.agreed_ratio == pytest.approx((0.5 + 1 + 1) / 3)
    assert agreed_tokens((1, 2), (1, 2, 3)) == 2


@pytest.mark.parametrize("period", [1, 2, 7, 16])
def test_the_same_few_tokens_over_and_over_are_a_loop(period: int) -> None:
    turn = list(range(period))
    assert is_looping([99, 98, *turn * 100])
    assert not is_looping((turn * 100)[: LOOP_TOKENS_MIN - 1])


def test_an_answer_that_goes_on_after_a_repetition_is_none() -> None:
    assert not is_looping([1] * 100 + list(range(60)))
    assert not is_looping(list(range(200)))
    assert not is_looping(())
