"""Threads are given up at once, come back slowly, and are never more than allowed."""

from __future__ import annotations

import pytest

from appliance.runtime.threads import (
    GIVE_UP_MS,
    HOLD_MS,
    HOLD_MS_MAX,
    PROBE_HOLDS,
    TRIAL_MS,
    Counts,
    Reading,
    Reason,
    ThreadCount,
    candidates,
    choose_calm,
)


def reading(*, others: float, denied: float = 0.0, cores: float = 2.0) -> Reading:
    return Reading(window_ms=100.0, cores=cores, others=others, denied=denied)


def counts(calm: int = 2) -> ThreadCount:
    return ThreadCount(calm)


def lose(held: ThreadCount, now_ms: float, *, others: float = 0.8) -> None:
    held.observe(GIVE_UP_MS + 101.0, 100.0)
    assert held.read(now_ms, reading(others=others, denied=0.8))


def calm_until(held: ThreadCount, now_ms: float, others: float = 0.0) -> float:
    """Read a calm machine ten times a second until the counts change; returns when."""
    for _ in range(10_000):
        now_ms += 100.0
        if held.read(now_ms, reading(others=others)):
            return now_ms
    raise AssertionError("the counts never changed")


def test_a_lost_core_is_given_up_with_the_first_reading_that_shows_the_loss() -> None:
    held = counts()
    lose(held, 100.0)
    assert held.now == 1
    assert held.reason is Reason.CORE_LOST


def test_slow_steps_on_a_calm_machine_give_nothing_up() -> None:
    held = counts()
    for index in range(50):
        held.observe(1000.0, 100.0)
        assert not held.read(100.0 * index, reading(others=0.0, denied=0.05))
    assert held.now == 2


def test_a_busy_core_that_costs_less_than_a_thread_brings_is_kept() -> None:
    held = counts()
    for index in range(50):
        held.observe(90.0, 100.0)  # with one thread fewer it would take longer
        assert not held.read(100.0 * index, reading(others=0.5, denied=0.3))
    assert held.now == 2


def test_small_losses_add_up() -> None:
    held = counts()
    changed = []
    for index in range(8):
        held.observe(110.0, 100.0)
        changed.append(held.read(100.0 * index, reading(others=0.5, denied=0.4)))
    assert changed == [*[False] * 5, True, False, False]


def test_a_thread_comes_back_after_a_hold_of_calm() -> None:
    held = counts()
    lose(held, 0.0)
    assert calm_until(held, 0.0) == HOLD_MS
    assert held.now == 2
    assert held.reason is Reason.CORE_FREE


def test_a_disturbance_starts_the_hold_again() -> None:
    held = counts()
    lose(held, 0.0)
    assert not held.read(100.0, reading(others=0.0))
    assert not held.read(400.0, reading(others=0.9))
    assert calm_until(held, 400.0) == 400.0 + 100.0 + HOLD_MS  # one reading to be sure


def test_readings_that_are_coarse_for_lack_of_time_do_not_keep_a_thread_away() -> None:
    held = counts()
    lose(held, 0.0)
    for index in range(1, 100):
        others = 0.4 if index % 3 == 0 else 0.0
        coarse = Reading(window_ms=50.0, cores=2.0, others=others, denied=0.0)
        if held.read(50.0 * index, coarse):
            break
    assert held.reason is Reason.CORE_FREE
    assert 50.0 * index <= 2 * HOLD_MS


def test_threads_come_back_when_fewer_are_no_faster() -> None:
    held = counts()
    lose(held, 0.0)
    assert held.on_trial
    for _ in range(4):
        held.judge(3.0 * TRIAL_MS, TRIAL_MS)  # before: 1.5 times as long as priced
    assert held.read(50.0, reading(others=0.9))
    assert held.reason is Reason.NO_GAIN
    assert held.now == 2
    held.observe(GIVE_UP_MS + 101.0, 100.0)  # a loss as small as the one before is believed no more
    assert not held.read(100.0, reading(others=0.9, denied=0.8))


def test_fewer_threads_that_are_faster_are_kept() -> None:
    held = counts()
    lose(held, 0.0)
    for _ in range(4):
        held.judge(TRIAL_MS, TRIAL_MS)
    assert not held.read(50.0, reading(others=0.9))
    assert not held.on_trial
    assert held.now == 1


def test_a_long_idle_window_that_was_calm_is_enough() -> None:
    held = counts()
    lose(held, 0.0)
    quiet = Reading(window_ms=60_000.0, cores=2.0, others=0.01, denied=0.0)
    assert held.read(60_000.0, quiet)


def test_a_thread_given_up_soon_after_it_came_back_doubles_the_hold() -> None:
    held = counts()
    now_ms, holds = 0.0, []
    for _ in range(8):
        lose(held, now_ms)
        holds.append(held.hold_ms)
        now_ms = calm_until(held, now_ms)
    assert holds[:4] == [HOLD_MS, 2 * HOLD_MS, 4 * HOLD_MS, 8 * HOLD_MS]
    assert holds[-1] == HOLD_MS_MAX
    lose(held, now_ms + 5 * HOLD_MS_MAX)  # it stayed
    assert held.hold_ms == HOLD_MS


def test_half_a_core_is_worth_a_probe_now_and_then() -> None:
    held = counts()
    lose(held, 0.0)
    assert calm_until(held, 0.0, others=0.5) == PROBE_HOLDS * HOLD_MS
    assert held.reason is Reason.PROBE


def test_no_thread_comes_back_while_the_others_keep_their_core() -> None:
    held = counts()
    lose(held, 0.0)
    for index in range(1000):
        assert not held.read(100.0 * index, reading(others=0.95))


def test_as_many_threads_go_as_cores_are_gone_but_at_most_half() -> None:
    held = counts(16)
    held.observe(200.0, 100.0)
    held.read(0.0, reading(others=3.6, denied=3.2, cores=16.0))
    assert held.now == 12
    held.observe(200.0, 100.0)
    held.read(100.0, reading(others=14.0, denied=3.2, cores=16.0))
    assert held.now == 6


def test_all_threads_come_back_at_once() -> None:
    held = counts(16)
    held.observe(200.0, 100.0)
    held.read(0.0, reading(others=8.0, denied=8.0, cores=16.0))
    assert held.now == 8
    now_ms = 0.0
    while held.now == 8:
        now_ms += 100.0
        held.read(now_ms, reading(others=0.1, cores=16.0))
    assert now_ms == HOLD_MS
    assert held.now == 16


@pytest.mark.parametrize(
    ("allowed", "physical", "tried"),
    [(1, 1, (1,)), (2, 2, (2, 1)), (16, 8, (16, 8, 4)), (4, 8, (4, 2)), (6, 6, (6, 3))],
)
def test_what_is_worth_measuring(allowed: int, physical: int, tried: tuple[int, ...]) -> None:
    assert candidates(allowed, physical) == tried


def test_the_fewest_threads_that_are_as_fast_are_chosen_for_each_phase() -> None:
    decode_ms, prefill_ms = {16: 10.1, 8: 10.0, 4: 10.2}, {16: 50.0, 8: 55.0, 4: 100.0}
    assert choose_calm(16, 8, decode_ms, prefill_ms, 0.0) == Counts(decode=4, prefill=16)


def test_a_disturbed_measurement_is_not_believed() -> None:
    disturbed_ms = {2: 30.0, 1: 10.0}
    assert choose_calm(2, 2, disturbed_ms, disturbed_ms, 0.9) == Counts(decode=2, prefill=2)
    assert choose_calm(16, 8, {}, {}, 0.0) == Counts(decode=8, prefill=8)
