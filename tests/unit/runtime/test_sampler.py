"""A draw follows the options, and depends on seed, choice and position only."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from appliance.domain import SamplingOptions
from appliance.errors import DecodeFailed
from appliance.runtime.llama import SamplerChain
from appliance.runtime.sampler import (
    Sampler,
    checked_argmax,
    log_softmax_top,
    needs_chain,
    uniform,
)

SIZE = 500
PIECES = [str(token_id).encode() for token_id in range(SIZE)]


def row(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, SIZE).astype(np.float32)


def sampler(seed: int = 1, choice: int = 0, **options: object) -> Sampler:
    values = SamplingOptions(**options)  # type: ignore[arg-type]
    chain = None
    if needs_chain(values):
        chain = SamplerChain(
            size=SIZE,
            top_k=values.top_k,
            typical_p=values.typical_p,
            top_p=values.top_p,
            min_p=values.min_p,
        )
    return Sampler(values, seed=seed, choice=choice, suppressed=(), chain=chain)


def draws(drawer: Sampler, logits: np.ndarray, count: int = 300) -> list[int]:
    return [drawer.draw(logits, None, position) for position in range(count)]


def test_temperature_0_takes_the_largest_logit() -> None:
    logits = row()
    assert set(draws(sampler(temperature=0.0), logits, 5)) == {int(logits.argmax())}


def test_a_draw_depends_on_seed_choice_and_position_only() -> None:
    logits = row()
    first = draws(sampler(seed=0), logits)
    assert draws(sampler(seed=0), logits) == first
    assert draws(sampler(seed=1), logits) != first
    assert draws(sampler(seed=0, choice=1), logits) != first
    assert sampler(seed=0).draw(logits, None, 77) == first[77]


def test_uniform_numbers_are_the_same_on_every_machine_and_even() -> None:
    assert uniform(0, 0, 0) == 0.7945189032113016
    numbers = [uniform(5, 0, position) for position in range(4000)]
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert counts.min() > 300


def test_draws_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    options = SamplingOptions()
    drawer = Sampler(options, seed=3, choice=0, suppressed=(), chain=None)
    counts = np.bincount(draws(drawer, logits, 4000), minlength=4) / 4000
    assert counts == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_top_k_cuts_to_the_k_best() -> None:
    logits = row()
    best = set(np.argsort(logits)[-5:].tolist())
    assert set(draws(sampler(top_k=5, temperature=3.0), logits)) <= best


@pytest.mark.parametrize("option", [{"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}])
def test_the_narrowest_cut_leaves_the_best_token(option: dict[str, object]) -> None:
    logits = row()
    drawer = sampler(**option)  # type: ignore[arg-type]
    assert set(draws(drawer, logits, 20)) == {int(logits.argmax())}


def test_bias_moves_and_a_mask_forbids() -> None:
    logits = row()
    assert sampler(temperature=0.0, logit_bias={7: 100.0}).draw(logits, None, 0) == 7
    mask = np.zeros(SIZE, dtype=bool)
    mask[[3, 4]] = True
    assert sampler(temperature=0.0).draw(logits, mask, 0) in (3, 4)
    assert set(draws(sampler(), logits, 20)) - {3, 4}
    with pytest.raises(DecodeFailed):
        sampler().draw(logits, np.zeros(SIZE, dtype=bool), 0)


def test_the_row_that_choices_share_is_not_changed() -> None:
    logits = row()
    before = logits.copy()
    drawer = sampler(logit_bias={1: 5.0}, repeat_penalty=2.0, frequency_penalty=1.0, top_k=9)
    drawer.accept(1)
    drawer.draw(logits, np.ones(SIZE, dtype=bool), 0)
    assert (logits == before).all()


@pytest.mark.parametrize("last_n", [3, 64])
def test_penalties_are_those_of_llama_cpp(last_n: int) -> None:
    logits, tokens = row(), [4, 9, 4, 400, 9, 9, 31]
    penalty = lib.llama_sampler_init_penalties(SIZE, last_n, 1.3, 0.7, 0.4)
    data = (lib.llama_token_data * SIZE)(
        *(lib.llama_token_data(token_id, float(logits[token_id]), 0) for token_id in range(SIZE))
    )
    array = lib.llama_token_data_array(data=data, size=SIZE, selected=-1, sorted=False)
    drawer = sampler(
        temperature=0.0,
        repeat_penalty=1.3,
        frequency_penalty=0.7,
        presence_penalty=0.4,
        penalty_last_n=last_n,
    )
    for token_id in tokens:
        lib.llama_sampler_accept(penalty, token_id)
        drawer.accept(token_id)
    lib.llama_sampler_apply(penalty, ctypes.byref(array))
    expected = np.array([data[token_id].logit for token_id in range(SIZE)])
    lib.llama_sampler_free(penalty)
    assert drawer.shape(logits) == pytest.approx(expected, abs=1e-5)


def test_the_repeat_penalty_sees_the_prompt_and_the_others_do_not() -> None:
    logits = np.full(SIZE, 1.0, dtype=np.float32)
    repeat = sampler(temperature=0.0, repeat_penalty=2.0)
    repeat.prime([5])
    assert repeat.shape(logits)[5] == pytest.approx(0.5)
    presence = sampler(temperature=0.0, presence_penalty=1.0)
    presence.prime([5])
    assert presence.shape(logits)[5] == pytest.approx(1.0)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    logits = row()
    logits[3] = np.nan
    for drawer in (sampler(temperature=0.0), sampler()):
        with pytest.raises(DecodeFailed):
            drawer.draw(logits, None, 0)
    with pytest.raises(DecodeFailed):
        checked_argmax(np.full(4, -np.inf, dtype=np.float32))


def test_log_probabilities_sum_to_one_and_come_best_first() -> None:
    logits = row()
    entry = log_softmax_top(logits, 42, SIZE, PIECES)
    values = [logprob for _, _, logprob in entry.top]
    assert sum(np.exp(values)) == pytest.approx(1.0)
    assert values == sorted(values, reverse=True)
    assert entry.top[0][0] == int(logits.argmax())
    assert entry.logprob == pytest.approx({i: p for i, _, p in entry.top}[42])
    assert entry.text_bytes == b"42"
    assert log_softmax_top(logits, 42, 0, PIECES).top == ()


@pytest.mark.parametrize("temperature", [1e-300, 1e-39, 1e-6])
def test_the_coldest_draw_takes_the_largest_logit(temperature: float) -> None:
    logits = row()
    assert set(draws(sampler(temperature=temperature), logits, 20)) == {int(logits.argmax())}
