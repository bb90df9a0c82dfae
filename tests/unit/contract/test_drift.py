"""How far a model lies from its original, counted over what both wrote alike."""

from __future__ import annotations

import math

import msgspec
import pytest

from appliance.contract.drift import NOTHING, distances, drift
from appliance.contract.release import (
    LIKELY_MAX,
    LIKELY_TOKENS_MAX,
    Expectation,
    HealthPack,
    Likely,
)
from appliance.errors import DocumentRefused

FIRST = Likely(ids=(7, 8), logprobs=(-0.1, -2.5))
SECOND = Likely(ids=(9,), logprobs=(-0.5,))


def test_the_distance_is_that_of_the_log_probabilities_of_what_was_likely() -> None:
    answered = [(7, {7: -0.2, 8: -2.0}), (9, {9: -0.5, 1: -3.0})]
    assert distances((FIRST, SECOND), answered) == pytest.approx([0.1, 0.5, 0.0])


def test_after_the_first_token_that_differs_nothing_is_compared() -> None:
    assert distances((FIRST, SECOND), [(8, {8: -0.1, 7: -2.6}), (9, {9: -9.0})]) == pytest.approx(
        [2.5, 2.4]
    )


def test_what_is_not_named_counts_as_the_least_that_is() -> None:
    assert distances((FIRST,), [(7, {7: -0.1, 3: -4.5})]) == pytest.approx([0.0, 2.0])
    # The original thought it even less likely than that: nothing is known of the distance.
    assert distances((FIRST,), [(7, {7: -0.1, 3: -1.5})]) == pytest.approx([0.0, 0.0])


def test_the_drift_is_the_mean_over_all_and_infinite_where_an_answer_is_missing() -> None:
    assert drift([[0.1, 0.3], [0.2]]) == pytest.approx(0.2)
    assert drift([[0.1], []]) == NOTHING
    assert drift([]) == NOTHING
    assert drift([distances((SECOND,), [(9, {})])]) == math.inf


@pytest.mark.parametrize(
    ("ids", "logprobs"),
    [
        ((), ()),
        ((1, 2), (-0.1,)),
        ((1, 1), (-0.1, -0.2)),
        ((1,), (0.5,)),
        ((1,), (math.nan,)),
        (tuple(range(LIKELY_MAX + 1)), (-1.0,) * (LIKELY_MAX + 1)),
    ],
)
def test_what_is_no_list_of_likely_tokens_is_refused(
    ids: tuple[int, ...], logprobs: tuple[float, ...]
) -> None:
    with pytest.raises(DocumentRefused) as refused:
        Likely(ids=ids, logprobs=logprobs)
    assert refused.value.field == "health.prompts.likely"


def test_a_pack_can_ask_for_a_drift_only_if_it_says_what_was_likely() -> None:
    prompt = Expectation(prompt="2 + 2?", likely=(FIRST,))
    pack = HealthPack(prompts=(prompt,), drift_max=0.2)
    assert msgspec.json.decode(msgspec.json.encode(pack), type=HealthPack) == pack
    with pytest.raises(DocumentRefused) as refused:
        HealthPack(prompts=(Expectation(prompt="2 + 2?", contains="4"),), drift_max=0.2)
    assert refused.value.field == "health.drift_max"
    with pytest.raises(DocumentRefused):
        Expectation(prompt="2 + 2?", likely=(FIRST,) * (LIKELY_TOKENS_MAX + 1))
