"""Prompt lookup finds the longest repeat, forgets what is old, and scores its guesses."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from appliance.runtime.draft import DraftLimits, Score, Track

LIMITS = DraftLimits(
    tokens_max=8, streams_max=4, lookback_tokens=64, ngram_min=2, ngram_max=8, stretch_max=1.25
)


def track_of(tokens: Sequence[int], limits: DraftLimits = LIMITS) -> Track:
    track = Track(tokens, limits, Score())
    track.index(len(tokens))
    return track


def guess_of(tokens: Sequence[int], count: int = 3) -> list[int]:
    return track_of(tokens).guess(count)


def test_what_followed_the_same_tokens_is_guessed() -> None:
    assert guess_of([1, 2, 3, 4, 5, 9, 2, 3]) == [4, 5, 9]


def test_nothing_is_guessed_without_a_repeat() -> None:
    assert guess_of([1, 2, 3, 4, 5, 6]) == []
    assert guess_of([]) == []
    assert guess_of([7]) == []


def test_one_token_in_common_is_less_than_an_ngram() -> None:
    assert guess_of([1, 2, 3, 9, 2]) == []


def test_the_longest_match_wins_over_a_later_one() -> None:
    assert guess_of([5, 1, 2, 70, 6, 1, 2, 80, 5, 1, 2], 1) == [70]


def test_the_latest_wins_among_equals() -> None:
    assert guess_of([5, 1, 2, 70, 6, 1, 2, 80, 9, 1, 2], 1) == [80]


def test_matches_are_compared_up_to_the_longest_ngram() -> None:
    limits = DraftLimits(
        tokens_max=8, streams_max=4, lookback_tokens=64, ngram_min=2, ngram_max=2, stretch_max=1.25
    )
    tokens = [5, 1, 2, 70, 6, 1, 2, 80, 5, 1, 2]
    assert track_of(tokens, limits).guess(1) == [80]


def test_a_period_goes_on_past_the_present() -> None:
    assert guess_of([1, 2, 1, 2, 1], 5) == [2, 1, 2, 1, 2]
    assert guess_of([4, 4, 4], 4) == [4, 4, 4, 4]


def test_the_pointer_runs_on_while_the_text_agrees_and_is_dropped_where_it_does_not() -> None:
    track = track_of([1, 2, 3, 4, 5, 9, 1, 2])
    track.follow([3, 4])
    assert track.guess(2) == [5, 9]
    track.follow([8])
    assert track.guess(2) == []


def test_indexing_goes_on_by_and_by_and_looks_up_only_when_it_has_caught_up() -> None:
    track = Track([1, 2, 3, 1, 2], LIMITS, Score())
    assert (track.index(3), track.guess(1)) == (3, [])
    assert (track.index(3), track.guess(1)) == (2, [3])
    assert track.index(3) == 0


def test_what_lies_further_back_than_the_lookback_is_forgotten() -> None:
    track = track_of([1, 2, 3])
    track.follow(list(range(100, 170)))
    track.index(1000)
    track.follow([1, 2])
    track.index(1000)
    assert track.guess(1) == []


def test_a_pointer_survives_that_its_track_is_cut() -> None:
    period = list(range(20))
    track = track_of(period)
    for at in range(400):
        track.follow([period[at % 20]])
        track.index(1000)
        if at > 25:
            assert track.guess(3) == [period[(at + ahead) % 20] for ahead in (1, 2, 3)]


@pytest.mark.parametrize("seed", range(200))
def test_a_guess_is_what_the_slow_search_finds(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(4) for _ in range(rng.randrange(2, 31))]
    assert guess_of(tokens, 1) == slow_guess(tokens)


def slow_guess(tokens: list[int]) -> list[int]:
    """Compare with the eight latest places, as the docstring of `draft` has it."""
    size = len(tokens)
    places = [at for at in range(1, size - 1) if tokens[at - 1 : at + 1] == tokens[-2:]][-8:]
    best, found = 0, []
    for at in reversed(places):
        match = 0
        while match < 8 and match <= at and tokens[at - match] == tokens[-1 - match]:
            match += 1
        if match > best:
            best, found = match, [tokens[at + 1]]
    return found


def test_guesses_become_likelier_with_hits_and_with_longer_matches() -> None:
    score = Score(Score())
    assert score.chance(2) < score.chance(8) < score.chance(33) < 1.0
    before = score.chance(4)
    for _ in range(30):
        score.note(4, hit=True)
    assert score.chance(4) > 0.9 > before
    for _ in range(30):
        score.note(4, hit=False)
    assert score.chance(4) < 0.2


def test_a_new_choice_begins_with_the_score_of_all() -> None:
    of_all = Score()
    first = Score(of_all)
    for _ in range(100):
        first.note(2, hit=True)
    assert Score(of_all).chance(2) > 0.8
    assert Score(Score()).chance(2) < 0.2


def test_chances_fall_along_a_guess_and_end_at_the_least_one_asked_for() -> None:
    track = track_of(list(range(20)))
    for token_id in list(range(20)) * 2:
        track.follow([token_id])
        track.index(100)
    chances = track.chances(8, 0.0)
    assert len(set(chances)) == 8
    assert chances == sorted(chances, reverse=True)
    assert track.chances(8, chances[2]) == chances[:3]
    assert track_of([1, 2, 3]).chances(8, 0.0) == []
