"""Guesses go into a step only where they pay, and within every bound."""

from __future__ import annotations

import pytest

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.draft import DraftLimits, Track
from appliance.runtime.speculation import Speculation

PHRASE = list(range(12))
CHEAP, DEAR = (10.0, 0.3), (0.2, 3.0)


def cost_of(base_ms: float, row_ms: float) -> CostModel:
    cost = CostModel()
    for rows in (1, 8, 16, 64) * 8:
        for decode in (0, rows):
            shape = StepShape(decode=decode, prefill=rows - decode, kv_span=rows)
            cost.observe(shape, base_ms + rows * row_ms)
    cost.settle()
    return cost


def limits(**changes: float) -> DraftLimits:
    given = {
        "tokens_max": 8, "streams_max": 8, "lookback_tokens": 512, "ngram_min": 2,
        "ngram_max": 8, "stretch_max": 1.25,
    }  # fmt: skip
    return DraftLimits(**{**given, **changes})  # type: ignore[arg-type]


def repeating(speculation: Speculation, times: int = 6) -> Track:
    track = speculation.open(PHRASE)
    for token_id in PHRASE * times:
        track.index(1000)
        track.follow([token_id])
    return track


def fresh(speculation: Speculation) -> Track:
    return speculation.open(list(range(1000, 1030)))


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
    tracks: list[Track],
    rooms: list[int] | None = None,
    rows_max: int = 64,
    prefill: int = 0,
) -> list[tuple[int, ...]]:
    shape = StepShape(decode=len(tracks), prefill=prefill, kv_span=100)
    return speculation.draft(tracks, rooms or [100] * len(tracks), shape, rows_max)


def observe(
    speculation: Speculation, drafted: int, accepted: int, step_ms: float | None = None
) -> None:
    """Say that a step of one stream was evaluated."""
    shape = StepShape(decode=1 + drafted, prefill=0, kv_span=100)
    if step_ms is None:
        step_ms = CHEAP[0] + CHEAP[1] * shape.decode
    speculation.observe(shape, drafted=drafted, accepted=accepted, step_ms=step_ms)


def paying(speculation: Speculation, track: Track) -> tuple[int, ...]:
    """Let a few steps pay, and draft again."""
    for _ in range(4):
        drafted = len(drafts(speculation, [track])[0])
        observe(speculation, drafted=drafted, accepted=drafted)
    return drafts(speculation, [track])[0]


def test_a_repeating_text_is_guessed_where_rows_are_cheap() -> None:
    speculation = speculating(CHEAP)
    track = repeating(speculation)
    assert drafts(speculation, [track]) == [tuple(PHRASE[:4])]
    assert paying(speculation, track) == tuple(PHRASE[:8])


def test_a_step_without_guesses_is_measured_before_the_first_and_again_from_time_to_time() -> None:
    speculation = Speculation(limits(), cost_of(*CHEAP))
    track = repeating(speculation)
    counts = []
    for _ in range(200):
        counts.append(len(drafts(speculation, [track])[0]))
        observe(speculation, drafted=counts[-1], accepted=counts[-1])
    plain = [step for step, count in enumerate(counts) if not count]
    assert plain[:3] == [0, 65, 130]


def test_nothing_is_guessed_where_a_row_costs_what_a_step_costs() -> None:
    speculation = speculating(DEAR)
    assert drafts(speculation, [repeating(speculation)]) == [()]


def test_nothing_is_guessed_for_a_text_that_does_not_repeat() -> None:
    speculation = speculating(CHEAP)
    assert drafts(speculation, [fresh(speculation)]) == [()]


def test_no_guess_is_longer_than_its_room_and_all_together_than_the_rows() -> None:
    speculation = speculating(CHEAP, stretch_max=9.0)
    tracks = [repeating(speculation) for _ in range(3)]
    paying(speculation, tracks[0])
    assert [len(draft) for draft in drafts(speculation, tracks, [0, 2, 5])] == [0, 2, 5]
    assert sum(len(draft) for draft in drafts(speculation, tracks, rows_max=7)) == 7
    assert drafts(speculation, tracks, rows_max=0) == [(), (), ()]
    assert drafts(speculation, tracks, rows_max=-1) == [(), (), ()]


def test_a_full_step_makes_guesses_too_dear() -> None:
    speculation = speculating((10.0, 1.0))
    track = repeating(speculation)
    track.follow([*PHRASE[:3], 77, 78])  # a match that is not certain
    track.follow(PHRASE)
    assert any(drafts(speculation, [track]))
    assert not any(drafts(speculation, [track], prefill=400))


@pytest.mark.parametrize("stretch_max", [1.0, 1.1, 1.15, 1.2])
def test_a_stream_without_guesses_is_held_up_by_a_bounded_part(stretch_max: float) -> None:
    speculation = speculating(CHEAP, stretch_max=stretch_max)
    track = repeating(speculation)
    paying(speculation, track)
    guessed, none = drafts(speculation, [track, fresh(speculation)])
    assert none == ()
    base_ms, row_ms = CHEAP[0] + 2 * CHEAP[1], CHEAP[1]
    assert len(guessed) == pytest.approx(base_ms * (stretch_max - 1) / row_ms, abs=1.5)


def test_promises_that_are_not_kept_turn_guesses_off_and_time_tries_them_again() -> None:
    speculation = speculating(CHEAP)
    track = repeating(speculation)
    lost = 0
    while drafted := len(drafts(speculation, [track])[0]):
        observe(speculation, drafted=drafted, accepted=drafted, step_ms=200.0)
        lost += 1
        assert lost < 40
    assert speculation.gain < 1.0
    off = 0
    while not any(drafts(speculation, [track])):
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
