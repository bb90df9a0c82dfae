"""Guesses go into a step only where they pay, and within every bound."""

from __future__ import annotations

import pytest

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.draft import DraftLimits
from appliance.runtime.jobs import Choice, Job
from appliance.runtime.speculation import Speculation

PHRASE = list(range(12))
CHEAP, DEAR = (10.0, 0.3), (0.2, 3.0)


def cost_of(base_ms: float, row_ms: float) -> CostModel:
    cost = CostModel()
    for rows in (1, 8, 16, 64) * 8:
        for decode in (0, rows):
            shape = StepShape(decode=decode, prefill=rows - decode, kv_span=rows)
            cost.observe(shape, base_ms + rows * row_ms)
    for rows in (16, 64):  # attention costs next to nothing here
        shape = StepShape(decode=0, prefill=rows, kv_span=rows)
        cost.observe_depth(shape, 1.0, 1.0, 1_000_000)
    cost.settle()
    return cost


def limits(**changes: float) -> DraftLimits:
    given = {
        "tokens_max": 8, "streams_max": 8, "lookback_tokens": 512, "ngram_min": 2,
        "ngram_max": 8, "stretch_max": 1.25,
    }  # fmt: skip
    return DraftLimits(**{**given, **changes})  # type: ignore[arg-type]


def saying(prompt: list[int]) -> Choice:
    return Job(ticket=1, prompt=prompt, max_tokens=None).add_choice()


def repeating(speculation: Speculation, times: int = 6) -> Choice:
    """Make a choice that has repeated a phrase so often, followed all the way."""
    choice = saying(PHRASE)
    for token_id in PHRASE * times:
        drafts(speculation, [choice], rooms=[0])
        choice.outputs.append(token_id)
    return choice


def fresh() -> Choice:
    return saying(list(range(1000, 1030)))


def speculating(cost: tuple[float, float], **changes: float) -> Speculation:
    """Speculate on a machine whose steps without guesses have been measured."""
    speculation = Speculation(limits(**changes), cost_of(*cost))
    for streams in range(1, 9):
        shape = StepShape(decode=streams, prefill=0, kv_span=100)
        step_ms = cost[0] + cost[1] * streams
        speculation.observe(shape, drafted=0, accepted=0, step_ms=step_ms)
    return speculation


def drafts(
    speculation: Speculation,
    choices: list[Choice],
    rooms: list[int] | None = None,
    rows_max: int = 64,
    step_ms_max: float = 1000.0,
) -> list[tuple[int, ...]]:
    shape = StepShape(decode=len(choices), prefill=0, kv_span=100)

    def room(choice: Choice) -> int:
        return 100 if rooms is None else rooms[choices.index(choice)]

    given: list[tuple[int, ...]] = []
    for _ in range(8):  # where nothing paid lately, it is not looked for in each step
        given = speculation.draft(choices, room, shape, rows_max=rows_max, step_ms_max=step_ms_max)
        if any(given):
            break
    return given


def observe(
    speculation: Speculation, drafted: int, accepted: int, step_ms: float | None = None
) -> None:
    """Say that a step of one stream was evaluated."""
    shape = StepShape(decode=1 + drafted, prefill=0, kv_span=100)
    if step_ms is None:
        step_ms = CHEAP[0] + CHEAP[1] * shape.decode
    speculation.observe(shape, drafted=drafted, accepted=accepted, step_ms=step_ms)


def paying(speculation: Speculation, choice: Choice) -> tuple[int, ...]:
    """Let a few steps pay, and draft again."""
    for _ in range(4):
        drafted = len(drafts(speculation, [choice])[0])
        observe(speculation, drafted=drafted, accepted=drafted)
    return drafts(speculation, [choice])[0]


def test_a_repeating_text_is_guessed_where_rows_are_cheap() -> None:
    speculation = speculating(CHEAP)
    choice = repeating(speculation)
    assert drafts(speculation, [choice]) == [tuple(PHRASE[:4])]
    assert paying(speculation, choice) == tuple(PHRASE[:8])


def test_a_step_without_guesses_is_measured_before_the_first_and_again_from_time_to_time() -> None:
    speculation = Speculation(limits(), cost_of(*CHEAP))
    choice = repeating(speculation)
    counts = []
    for _ in range(200):
        counts.append(len(drafts(speculation, [choice])[0]))
        observe(speculation, drafted=counts[-1], accepted=counts[-1])
    plain = [step for step, count in enumerate(counts) if not count]
    assert plain[:3] == [0, 65, 130]


def test_nothing_is_guessed_where_a_row_costs_what_a_step_costs() -> None:
    speculation = speculating(DEAR)
    assert drafts(speculation, [repeating(speculation)]) == [()]


def test_nothing_is_guessed_for_a_text_that_does_not_repeat() -> None:
    speculation = speculating(CHEAP)
    assert drafts(speculation, [fresh()]) == [()]


def test_no_guess_is_longer_than_its_room_and_all_together_than_the_rows() -> None:
    speculation = speculating(CHEAP, stretch_max=9.0)
    choices = [repeating(speculation) for _ in range(3)]
    paying(speculation, choices[0])
    assert [len(draft) for draft in drafts(speculation, choices, [0, 2, 5])] == [0, 2, 5]
    assert sum(len(draft) for draft in drafts(speculation, choices, rows_max=7)) == 7
    assert drafts(speculation, choices, rows_max=0) == [(), (), ()]
    assert drafts(speculation, choices, rows_max=-1) == [(), (), ()]


def test_guesses_make_no_step_longer_than_a_step_may_be() -> None:
    speculation = speculating(CHEAP)
    choice = repeating(speculation)
    assert len(paying(speculation, choice)) == 8
    (guessed,) = drafts(speculation, [choice], step_ms_max=11.5)
    assert 2 <= len(guessed) <= 4
    assert drafts(speculation, [choice], step_ms_max=1.0) == [()]


def test_a_full_step_makes_guesses_too_dear() -> None:
    speculation = speculating((0.2, 1.0))
    choices = [repeating(speculation) for _ in range(8)]
    assert any(drafts(speculation, choices[:1]))
    assert not any(drafts(speculation, choices))


def test_with_more_streams_than_allowed_nobody_looks_and_nothing_is_held() -> None:
    speculation = speculating(CHEAP, streams_max=2)
    choices = [repeating(speculation) for _ in range(3)]
    assert any(drafts(speculation, choices[:2]))
    assert drafts(speculation, choices) == [(), (), ()]
    assert [choice.track for choice in choices] == [None, None, None]


@pytest.mark.parametrize("stretch_max", [1.0, 1.1, 1.15, 1.2])
def test_a_stream_without_guesses_is_held_up_by_a_bounded_part(stretch_max: float) -> None:
    speculation = speculating(CHEAP, stretch_max=stretch_max)
    choice = repeating(speculation)
    paying(speculation, choice)
    guessed, none = drafts(speculation, [choice, fresh()])
    assert none == ()
    base_ms, row_ms = CHEAP[0] + 2 * CHEAP[1], CHEAP[1]
    assert len(guessed) == pytest.approx(base_ms * (stretch_max - 1) / row_ms, abs=1.5)


def test_promises_that_are_not_kept_turn_guesses_off_and_time_tries_them_again() -> None:
    speculation = speculating(CHEAP)
    choice = repeating(speculation)
    lost = 0
    while drafted := len(drafts(speculation, [choice])[0]):
        observe(speculation, drafted=drafted, accepted=drafted, step_ms=200.0)
        lost += 1
        assert lost < 40
    assert speculation.gain < 1.0
    off = 0
    while not any(drafts(speculation, [choice])):
        observe(speculation, drafted=0, accepted=0)
        off += 1
        assert off < 10_000
    assert off > lost


def test_what_was_guessed_and_what_was_right_is_counted() -> None:
    speculation = speculating(CHEAP)
    drafts(speculation, [repeating(speculation)])
    for _ in range(60):
        observe(speculation, drafted=8, accepted=4, step_ms=13.0)
    assert (speculation.drafted_total, speculation.accepted_total) == (480, 240)
    assert 3.5 < speculation.gain < 4.0
