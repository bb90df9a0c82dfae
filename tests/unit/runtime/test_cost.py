"""The price of a step is learnt, forgotten and bounded."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from appliance.runtime.cost import ATTENTION_TILE, CostModel, StepShape

Truth = Callable[[StepShape], float]


def truth(a: float, b: float, c: float, d: float) -> Truth:
    def step_ms(shape: StepShape) -> float:
        rows = shape.decode + shape.prefill
        tiled = -(-rows // ATTENTION_TILE) * ATTENTION_TILE / 3
        attended = rows if rows < ATTENTION_TILE else tiled
        return a + b * shape.decode + c * shape.prefill + d * attended * shape.kv_span

    return step_ms


def random_shape(rng: random.Random) -> StepShape:
    return StepShape(
        decode=rng.randrange(0, 33),
        prefill=rng.choice([0, 0, 16, 64, 200]),
        kv_span=rng.randrange(100, 8000),
    )


def teach(model: CostModel, true_ms: Truth, steps: int, rng: random.Random) -> None:
    for _ in range(steps):
        shape = random_shape(rng)
        model.observe(shape, true_ms(shape) * rng.uniform(0.9, 1.1))


def warm(model: CostModel, true_ms: Truth) -> None:
    for rows in (1, 8, 16, 64, 256):
        for shape in (
            StepShape(decode=0, prefill=rows, kv_span=rows),
            StepShape(decode=min(rows, 16), prefill=0, kv_span=rows),
        ):
            model.observe(shape, true_ms(shape))
    for rows in (16, 64):
        shape = StepShape(decode=0, prefill=rows, kv_span=rows)
        deep = StepShape(decode=0, prefill=rows, kv_span=rows + 1000)
        model.observe_depth(shape, true_ms(shape), true_ms(deep), 1000)
    model.settle()


@pytest.mark.parametrize(
    "coefficients", [(0.3, 0.1, 0.05, 1e-5), (5.0, 30.0, 5.0, 2e-4), (20.0, 300.0, 45.0, 1e-3)]
)
def test_predictions_come_within_a_fifth_of_a_noisy_engine(
    coefficients: tuple[float, float, float, float],
) -> None:
    true_ms, model, rng = truth(*coefficients), CostModel(), random.Random(5)
    warm(model, true_ms)
    teach(model, true_ms, 300, rng)
    for _ in range(100):
        shape = random_shape(rng)
        if shape.decode + shape.prefill:
            assert model.predict_ms(shape) == pytest.approx(true_ms(shape), rel=0.2)


def test_a_chunk_of_the_room_it_names_stays_within_the_budget() -> None:
    true_ms, model, rng = truth(5.0, 30.0, 5.0, 2e-4), CostModel(), random.Random(6)
    warm(model, true_ms)
    teach(model, true_ms, 300, rng)
    for decode in (0, 1, 4):
        for kv_span in (100, 2000):
            room = model.prefill_room(decode, kv_span, 300.0)
            assert room > 0
            shape = StepShape(decode=decode, prefill=room, kv_span=kv_span)
            assert true_ms(shape) <= 300.0


def test_no_room_is_left_when_decoding_alone_fills_the_budget() -> None:
    model = CostModel()
    warm(model, truth(5.0, 30.0, 5.0, 2e-4))
    assert model.prefill_room(16, 100, 300.0) == 0


def test_a_machine_that_slows_down_is_noticed_within_two_hundred_steps() -> None:
    model, rng = CostModel(), random.Random(7)
    warm(model, truth(1.0, 1.0, 0.5, 1e-5))
    teach(model, truth(1.0, 1.0, 0.5, 1e-5), 300, rng)
    slow = truth(3.0, 3.0, 1.5, 3e-5)
    teach(model, slow, 300, rng)
    shape = StepShape(decode=8, prefill=64, kv_span=4000)
    assert model.predict_ms(shape) == pytest.approx(slow(shape), rel=0.25)


def test_decoding_alone_for_ever_does_not_spoil_the_price_of_a_prompt() -> None:
    true_ms, model, rng = truth(5.0, 30.0, 5.0, 2e-4), CostModel(), random.Random(8)
    warm(model, true_ms)
    for _ in range(20_000):
        shape = StepShape(decode=rng.randrange(1, 9), prefill=0, kv_span=rng.randrange(500, 3000))
        model.observe(shape, true_ms(shape) * rng.uniform(0.8, 1.2))
    shape = StepShape(decode=0, prefill=128, kv_span=500)
    assert model.predict_ms(shape) == pytest.approx(true_ms(shape), rel=0.5)


def test_one_step_that_was_held_up_hardly_moves_a_prediction() -> None:
    true_ms, model, rng = truth(1.0, 1.0, 0.5, 1e-5), CostModel(), random.Random(9)
    warm(model, true_ms)
    teach(model, true_ms, 300, rng)
    shape = StepShape(decode=8, prefill=0, kv_span=1000)
    before_ms = model.predict_ms(shape)
    model.observe(shape, 5000.0)
    assert model.predict_ms(shape) == pytest.approx(before_ms, rel=0.2)


def test_a_chunk_is_never_more_than_four_times_the_largest_one_measured() -> None:
    model = CostModel()
    assert model.prefill_room(0, 0, 1e9) == 0
    model.observe(StepShape(decode=0, prefill=10, kv_span=10), 0.1)
    assert model.prefill_room(0, 0, 1e9) == 32  # 40, in whole tiles


def test_no_coefficient_is_ever_negative() -> None:
    model, rng = CostModel(), random.Random(10)
    for _ in range(2000):
        model.observe(random_shape(rng), rng.choice([0.0, 0.01, 1.0, 900.0]))
        assert min(model.coefficients) >= 0.0
        assert model.predict_ms(random_shape(rng)) >= 0.0


def test_each_number_of_threads_has_its_own_prices() -> None:
    shape = StepShape(decode=4, prefill=0, kv_span=100)
    model = CostModel()
    for threads, factor in ((2, 1.0), (1, 1.4)):
        model.measure(threads)
        true_ms = truth(5.0 * factor, 30.0 * factor, 5.0 * factor, 2e-4)
        warm(model, true_ms)
        teach(model, true_ms, 100, random.Random(11))
    two_ms, one_ms = model.predict_ms(shape, 2), model.predict_ms(shape, 1)
    assert one_ms == pytest.approx(1.4 * two_ms, rel=0.1)
    model.use(decode_threads=2, prefill_threads=1)
    assert model.threads(shape) == 2
    assert model.predict_ms(shape) == two_ms
    assert model.predict_ms(StepShape(decode=4, prefill=64, kv_span=100)) > two_ms


def test_a_number_of_threads_not_seen_yet_is_priced_by_the_nearest_and_soon_by_itself() -> None:
    true_ms, shape = truth(5.0, 30.0, 5.0, 2e-4), StepShape(decode=4, prefill=0, kv_span=100)
    model = CostModel()
    model.measure(4)
    warm(model, true_ms)
    assert model.predict_ms(shape, 3) == pytest.approx(true_ms(shape) * 4 / 3, rel=0.2)
    model.use(decode_threads=3, prefill_threads=3)
    assert model.prefill_room(4, 100, 1000.0) > 0
    for _ in range(5):
        model.observe(shape, 0.9 * true_ms(shape))
    assert model.predict_ms(shape) == pytest.approx(0.9 * true_ms(shape), rel=0.1)


def tiling() -> tuple[CostModel, Truth]:
    """Price the 1B shape on two cores: 4 ms a row, 0.0045 ms a cell, a third of it in tiles."""
    true_ms, model = truth(12.0, 4.3, 4.0, 4.5e-3), CostModel()
    warm(model, true_ms)
    return model, true_ms


def test_deep_in_a_prompt_a_whole_tile_may_take_longer_than_the_budget() -> None:
    model, true_ms = tiling()
    assert model.prefill_room(1, 100, 300.0, 600.0) <= 63
    assert model.prefill_room(1, 2000, 300.0, 600.0) == 63
    assert true_ms(StepShape(decode=1, prefill=63, kv_span=2063)) <= 600.0


@pytest.mark.parametrize("limit_ms", [0.0, 300.0, 400.0])
def test_a_tile_that_takes_longer_than_its_limit_is_not_evaluated(limit_ms: float) -> None:
    model, true_ms = tiling()
    room = model.prefill_room(1, 2000, 300.0, limit_ms)
    assert 0 < room < 63
    assert true_ms(StepShape(decode=1, prefill=room, kv_span=2000 + room)) <= 300.0


def test_alone_a_long_prompt_goes_on_by_whole_tiles() -> None:
    model, _ = tiling()
    assert model.prefill_room(0, 2000, 1000.0, 1000.0) % ATTENTION_TILE == 0


def test_what_is_left_of_a_prompt_is_evaluated_whole_where_it_fits() -> None:
    model, _ = tiling()
    assert model.prefill_room(0, 100, 1000.0, 1000.0, wanted=21) == 21
    assert model.prefill_room(0, 100, 1000.0, 1000.0, wanted=70) == 70


def test_steps_of_other_thread_counts_price_attention_by_the_one_that_was_measured() -> None:
    true_ms, model = truth(12.0, 4.3, 4.0, 4.5e-3), CostModel()
    model.measure(2)
    for rows in (1, 16, 64):
        model.observe(StepShape(decode=0, prefill=rows, kv_span=rows), 12.0 + 4.0 * rows)
    for rows in (16, 64):
        shape = StepShape(decode=0, prefill=rows, kv_span=rows)
        deep = StepShape(decode=0, prefill=rows, kv_span=rows + 1000)
        model.observe_depth(shape, true_ms(shape), true_ms(deep), 1000)
    model.measure(1)
    for rows in (1, 16, 64):
        model.observe(StepShape(decode=0, prefill=rows, kv_span=rows), 2.0 * (12.0 + 4.0 * rows))
    model.settle()
    deep = StepShape(decode=0, prefill=16, kv_span=2000)
    assert model.predict_ms(deep, 1) == pytest.approx(2.0 * true_ms(deep), rel=0.1)
