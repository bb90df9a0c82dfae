"""The books of a draft model's cache agree with what a cache would hold, whatever is drawn."""

from __future__ import annotations

import random

import pytest

from appliance.runtime.cost import CostModel
from appliance.runtime.draft_cache import DraftCache, Reading
from appliance.runtime.jobs import Choice, Job


def cache_of(sequences: int = 2, cells: int = 100) -> DraftCache:
    return DraftCache(CostModel(), sequences_max=sequences, cells_total=cells, context_tokens=1000)


def saying(ticket: int, size: int) -> Choice:
    return Job(ticket=ticket, prompt=list(range(size)), max_tokens=None).add_choice()


def read(cache: DraftCache, choice: Choice, guesses: int = 0) -> Reading:
    reading = cache.read(choice, cache.lag(choice), guesses)
    assert reading is not None
    return reading


def test_guesses_that_came_true_stay_and_the_others_are_cut() -> None:
    cache, choice = cache_of(), saying(1, 10)
    cache.begin()
    assert list(read(cache, choice, 3).token_ids) == list(range(10))
    for at, guess in enumerate((50, 51, 52)):
        assert cache.guessed(choice, guess) == (0, 10 + at)
    choice.outputs += [50, 51, 99]  # the third was wrong
    cache.begin()
    assert cache.lag(choice) == 1
    reading = read(cache, choice)
    assert (reading.start, list(reading.token_ids), reading.is_cut) == (12, [99], True)
    assert cache.cells_used == 13


def test_a_choice_of_which_all_is_known_has_its_last_token_evaluated_again() -> None:
    cache, choice = cache_of(), saying(1, 10)
    cache.begin()
    read(cache, choice)
    cache.begin()
    reading = read(cache, choice)
    assert (reading.start, list(reading.token_ids), reading.is_cut) == (9, [9], True)


def test_who_was_read_longest_ago_makes_way_but_nobody_of_this_step() -> None:
    cache = cache_of(sequences=2)
    first, second, third = (saying(ticket, 10) for ticket in range(3))
    for choice in (first, second):
        cache.begin()
        read(cache, choice)
    cache.begin()
    gone = cache.held()
    assert read(cache, third).seq_id == 0
    assert cache.take_emptied() == [0]
    assert cache.lag(first) == 10
    assert cache.lag(second) == 1
    assert read(cache, second)
    assert cache.read(first, 10) is None
    assert set(cache.held()) == set(gone)


def test_cells_are_never_given_twice_and_a_choice_too_large_for_all_has_none() -> None:
    cache = cache_of(sequences=3, cells=30)
    small, other, large = saying(1, 10), saying(2, 10), saying(3, 31)
    cache.begin()
    read(cache, small, guesses=8)
    assert cache.read(other, 10, guesses=3) is None  # 18 of 30 are taken or spoken for
    assert cache.read(other, 10, guesses=2) is not None
    cache.begin()
    assert cache.read(large, 31) is None
    assert cache.cells_used == 20


def test_a_job_that_ends_gives_back_what_its_choices_held() -> None:
    cache = cache_of()
    first, second = saying(1, 10), saying(2, 10)
    cache.begin()
    read(cache, first)
    read(cache, second)
    cache.forget(1)
    second.is_ended = True
    cache.begin()
    assert (len(cache), cache.cells_used) == (0, 0)
    assert sorted(cache.take_emptied()) == [0, 1]


@pytest.mark.parametrize("seed", range(40))
def test_random_lives_keep_the_books(seed: int) -> None:
    rng = random.Random(seed)
    cells = rng.choice([40, 200])
    cache = cache_of(sequences=rng.choice([1, 3]), cells=cells)
    choices = [saying(ticket, rng.randint(1, 30)) for ticket in range(5)]
    held: dict[int, list[int]] = {}
    for _ in range(200):
        cache.begin()
        for choice in rng.sample(choices, rng.randint(0, 3)):
            depth = rng.randint(0, 4)
            count = rng.randint(1, cache.lag(choice))
            reading = cache.read(choice, count, depth)
            for seq_id in cache.take_emptied():
                held.pop(seq_id, None)
            if reading is None:
                continue
            tokens = held.setdefault(reading.seq_id, [])
            assert reading.is_cut == (reading.start < len(tokens))
            del tokens[reading.start :]
            tokens += reading.token_ids
            assert tokens == list(choice.tokens(0, len(tokens)))
            for _ in range(depth if len(tokens) == choice.length else 0):
                guess = rng.randrange(2)
                seq_id, position = cache.guessed(choice, guess)
                assert (seq_id, position) == (reading.seq_id, len(tokens))
                tokens.append(guess)
            choice.outputs += [rng.randrange(2) for _ in range(rng.randint(0, 3))]
        at = rng.randrange(len(choices))
        if rng.random() < 0.1:
            cache.forget(choices[at].job.ticket)
            choices[at] = saying(choices[at].job.ticket, rng.randint(1, 30))
        for seq_id in cache.take_emptied():
            held.pop(seq_id, None)
        assert cache.held() == {seq_id: len(tokens) for seq_id, tokens in held.items()}
        assert cache.cells_used == sum(map(len, held.values())) <= cells
    cache.clear()
    assert cache.cells_used == len(cache) == 0
