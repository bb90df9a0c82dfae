"""A draft model is asked where it pays, for whom it can guess, and reads only what pays back."""

from __future__ import annotations

import pytest

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.draft_cache import DraftCache
from appliance.runtime.foresight import Acceptance, Beside, Foreseen, Foresight
from appliance.runtime.jobs import Choice, Job

STEP_MS = 10.0


def cost_of(base_ms: float, row_ms: float) -> CostModel:
    cost = CostModel()
    for rows in (1, 8, 16, 64) * 8:
        for decode in (0, rows):
            shape = StepShape(decode=decode, prefill=rows - decode, kv_span=rows)
            cost.observe(shape, base_ms + rows * row_ms)
    cost.settle()
    return cost


def foresight(draft_ms: float = 0.5, row_ms: float = 0.1, **bounds: int) -> Foresight:
    """Foresee for a model whose step takes 10 ms, and draft_ms the draft model's."""
    limits = {"sequences_max": 4, "cells_total": 1000, "context_tokens": 500} | bounds
    cache = DraftCache(cost_of(draft_ms, 0.01), **limits)
    return Foresight(cost_of(STEP_MS, row_ms), cache, tokens_max=8)


def saying(size: int = 20, drawn: int = 200, adapter: str = "") -> Choice:
    job = Job(ticket=size, prompt=list(range(size)), max_tokens=None, adapter=adapter)
    return job.add_choice(list(range(drawn)))


def read(seen: Foresight, *choices: Choice) -> None:
    """Have the draft model read all but the last token of these choices."""
    seen.cache.begin()
    for choice in choices:
        assert seen.cache.read(choice, seen.cache.lag(choice) - 1)


def choose(
    seen: Foresight,
    *choices: Choice,
    rooms: list[int] | None = None,
    lookups: list[list[float]] | None = None,
    rows_max: int = 64,
    step_ms_max: float = 1000.0,
) -> Foreseen:
    count = len(choices)
    offers = lookups or [[] for _ in choices]
    beside = Beside(
        shape=StepShape(decode=count, prefill=0, kv_span=100),
        base_ms=STEP_MS,
        tokens=[sum(one) for one in offers],
        rows=[len(one) for one in offers],
        rooms=rooms or [8] * count,
        gain=1.0,
        rows_max=rows_max,
        step_ms_max=step_ms_max,
        stretched_ms=min(step_ms_max, 1.25 * STEP_MS),
    )
    return seen.choose(choices, beside, step=1)


def test_a_choice_that_was_read_is_guessed_for() -> None:
    seen, choice = foresight(), saying()
    read(seen, choice)
    assert choose(seen, choice) == Foreseen(depths=[4])  # what paid before, doubled, or four


def test_all_choices_are_guessed_for_together() -> None:
    seen, choices = foresight(), [saying(), saying(30), saying(40)]
    read(seen, *choices)
    depths = choose(seen, *choices).depths
    assert len(set(depths)) == 1
    assert depths[0] > 0


def test_a_draft_model_that_is_hardly_quicker_is_not_asked() -> None:
    seen, choice = foresight(draft_ms=8.0), saying()
    read(seen, choice)
    assert choose(seen, choice) == Foreseen(depths=[0])


def test_no_guess_is_made_where_a_row_has_its_full_price() -> None:
    seen, choice = foresight(row_ms=9.0), saying()
    read(seen, choice)
    assert choose(seen, choice) == Foreseen(depths=[0])


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_more_is_guessed_than_there_is_room_for(room: int) -> None:
    seen, choice = foresight(), saying()
    read(seen, choice)
    assert choose(seen, choice, rooms=[room]).depths == [room]
    assert max(choose(seen, choice, rows_max=room).depths) <= room


def test_a_step_with_guesses_takes_no_longer_than_a_step_may() -> None:
    seen, choice = foresight(), saying()
    read(seen, choice)
    assert choose(seen, choice, step_ms_max=11.0).depths == [1]
    assert choose(seen, choice).depths == [4]


def test_nobody_guesses_for_an_answer_with_an_adapter() -> None:
    seen, choice = foresight(), saying(adapter="x")
    assert choose(seen, choice) == Foreseen(depths=[0])


def test_nobody_guesses_beyond_the_context_of_the_draft_model() -> None:
    seen, choice = foresight(context_tokens=225), saying()
    read(seen, choice)
    assert choose(seen, choice).depths == [0]
    assert choose(seen, choice, rooms=[5]).depths[0] > 0


def test_a_lookup_that_is_likelier_is_kept() -> None:
    seen, choice = foresight(), saying()
    read(seen, choice)
    assert choose(seen, choice, lookups=[[0.95, 0.9]]).depths == [0]
    assert choose(seen, choice, lookups=[[0.3]]).depths[0] > 0


def test_a_prompt_is_read_when_what_was_drawn_would_have_paid_for_it() -> None:
    assert choose(foresight(), saying(200, drawn=1)).readings == ()
    choice = saying(100, drawn=100)
    assert choose(foresight(), choice).readings == ((choice, choice.length - 1),)


def test_what_is_read_pays_sooner_once_the_draft_model_was_right() -> None:
    choice = saying(200, drawn=2)
    assert choose(foresight(), choice).readings == ()
    seen, known = foresight(), saying()
    for _ in range(20):
        seen.note(known, kept=8, guessed=8, step=1)
    assert choose(seen, choice).readings == ((choice, choice.length - 1),)


def test_a_hundredth_of_the_time_is_ventured_on_what_may_be_in_vain() -> None:
    seen, known, choice = foresight(), saying(), saying(200, drawn=2)
    read(seen, known)
    steps = 1
    while not choose(seen, known, choice).readings:
        steps += 1
    assert 10 < steps < 40  # some 2.5 ms, of steps that take 10


def test_a_rate_is_that_of_the_choice_and_leans_on_that_of_all() -> None:
    everyone = Acceptance()
    first, second = Acceptance(everyone), Acceptance(everyone)
    for _ in range(30):
        first.note(0, 4, step=1)
    assert first.rate(1) < 0.1
    assert first.rate(1) < second.rate(1) < 0.3


def test_what_was_seen_fades_and_the_draft_model_is_tried_again() -> None:
    rate = Acceptance()
    start = rate.rate(0)
    for _ in range(50):
        rate.note(0, 4, step=1)
    assert rate.rate(1) < 0.15
    assert rate.rate(2000) > 0.5
    assert rate.rate(10_000) == pytest.approx(start, abs=0.01)
    assert rate.weight(10_000) < 0.01 < rate.weight(1)
