"""The price of a step is learnt, forgotten and bounded."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from appliance.runtime.cost import CostModel, StepShape

Truth = Callable[[StepShape], float]


def truth(a: float, b: float, c: float, d: float) -> Truth:
    def step_ms(shape: StepShape) -> float:
        rows = shape.decode + shape.prefill
        return a + b * shape.decode + c * shape.prefill + d * rows * shape.kv_span

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
