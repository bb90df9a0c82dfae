"""How near to serving a standby is kept, for the memory there is."""

from __future__ import annotations

import random

import msgspec
import pytest

from appliance.domain import StandbyLevel
from appliance.runtime.placement import Bounds, Need, Placement, Room

MIB = 1024 * 1024
DISK, CACHED, LOCKED, LOADED, PROVEN = StandbyLevel
BOUNDS = Bounds(level_max=LOADED, free_bytes=500 * MIB, pressure_percent=10.0, rise_ms=1000.0)
NEED = Need(weights_bytes=1000 * MIB, own_bytes=300 * MIB)
MUCH = Room(available_bytes=4000 * MIB, lockable_bytes=2000 * MIB, pressure_percent=0.0)


def room(available_mib: int, **changes: float) -> Room:
    return msgspec.structs.replace(MUCH, available_bytes=available_mib * MIB, **changes)


@pytest.mark.parametrize(
    ("available_mib", "lockable_mib", "level"),
    [
        (1800, 2000, LOADED),
        (1799, 2000, LOCKED),
        (1799, 999, CACHED),
        (1500, 2000, LOCKED),
        (1499, 2000, DISK),
    ],
)
def test_the_highest_level_that_fits_is_held_at_first_sight(
    available_mib: int, lockable_mib: int, level: StandbyLevel
) -> None:
    seen = room(available_mib, lockable_bytes=lockable_mib * MIB)
    assert Placement(BOUNDS).decide(0.0, DISK, NEED, seen).level is level


def test_no_level_is_above_what_the_operator_allows() -> None:
    for most in (DISK, CACHED, LOCKED, LOADED):
        bounds = msgspec.structs.replace(BOUNDS, level_max=most)
        decision = Placement(bounds).decide(0.0, DISK, NEED, MUCH)
        assert decision.level is most
        assert (decision.reason == "") is (most is LOADED)
        assert Placement(bounds).decide(0.0, LOADED, NEED, MUCH).level is most


@pytest.mark.parametrize("short", [room(499), room(4000, pressure_percent=10.1)])
def test_levels_are_given_up_one_by_one_when_memory_is_short(short: Room) -> None:
    placement, level, held = Placement(BOUNDS), PROVEN, []
    for now_ms in range(5):
        decision = placement.decide(float(now_ms), level, NEED, short)
        level = decision.level
        assert decision.reason
        held.append(level)
    assert held == [LOCKED, CACHED, DISK, DISK, DISK]


def test_what_may_not_be_locked_falls_to_the_page_cache() -> None:
    short = room(499, lockable_bytes=0)
    assert Placement(BOUNDS).decide(0.0, LOADED, NEED, short).level is CACHED


def test_a_level_rises_only_when_memory_has_sufficed_for_a_while() -> None:
    placement = Placement(BOUNDS)
    assert placement.decide(0.0, LOADED, NEED, room(499)).level is LOCKED
    assert placement.decide(900.0, LOCKED, NEED, MUCH).level is LOCKED
    assert placement.decide(950.0, LOCKED, NEED, room(499)).level is CACHED
    assert placement.decide(1900.0, CACHED, NEED, MUCH).level is CACHED
    assert placement.decide(1950.0, CACHED, NEED, MUCH).level is LOADED


@pytest.mark.parametrize("seed", range(100))
def test_levels_fall_one_at_a_time_and_never_rise_into_too_little_memory(seed: int) -> None:
    draw = random.Random(seed)
    placement, level, now_ms = Placement(BOUNDS), DISK, 0.0
    for _ in range(200):
        now_ms += draw.uniform(0, 600)
        seen = room(draw.randrange(4000), pressure_percent=draw.choice((0.0, 0.0, 20.0)))
        after = placement.decide(now_ms, level, NEED, seen).level
        assert after.rank >= level.rank - 1
        if after.rank > level.rank:
            assert seen.available_bytes >= BOUNDS.free_bytes
            assert seen.pressure_percent <= BOUNDS.pressure_percent
        level = after
