"""The calendar of a site: windows, weekdays, summer time, and clocks that jump."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from appliance.config import Deployments
from appliance.errors import ConfigError
from appliance.sync.schedule import JUMP_MS, Calendar, Schedule


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def calendar(*windows: str, zone: str = "Europe/Berlin") -> Calendar:
    return Calendar(Deployments(windows=windows, time_zone=zone))


def test_without_windows_it_is_always_open() -> None:
    assert calendar().closed(0) == ""


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-28T00:59:59+01:00", False),  # a Saturday
        ("2026-11-28T01:00:00+01:00", True),
        ("2026-11-28T04:59:59+01:00", True),
        ("2026-11-28T05:00:00+01:00", False),
        ("2026-11-29T01:00:00+01:00", True),
        ("2026-11-30T01:00:00+01:00", False),
    ],
)
def test_a_window_opens_on_its_days_in_the_time_of_the_site(moment: str, *, is_open: bool) -> None:
    closed = calendar("0 1 * * sat,sun 4h").closed(at(moment))
    assert (closed == "") == is_open


def test_a_closed_window_says_when_the_next_one_opens() -> None:
    closed = calendar("0 1 * * sat 4h", "30 3 * * wed 90m").closed(at("2026-11-24T12:00:00+01:00"))
    assert closed == "the next window opens at 2026-11-25T03:30+01:00"


def test_a_window_lasts_as_long_over_the_change_to_summer_time() -> None:
    window = calendar("0 1 * * sun 2h")  # at 2:00 the clocks say 3:00
    opens = at("2026-03-29T01:00:00+01:00")
    hour_ms = 3_600_000
    assert [window.closed(opens + hours * hour_ms) == "" for hours in (-1, 0, 1, 2)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (Deployments(time_zone="Mars/Olympus"), "deployments.time_zone"),
        (Deployments(time_zone="../etc/passwd"), "deployments.time_zone"),
        (Deployments(windows=("0 1 * * sat",)), "deployments.windows"),
        (Deployments(windows=("0 1 * * sat 0h",)), "deployments.windows"),
        (Deployments(windows=("0 1 * * sat 200h",)), "deployments.windows"),
        (Deployments(windows=("0 1 * * 6 4h",)), "deployments.windows"),
        (Deployments(windows=("0 25 * * sat 4h",)), "deployments.windows"),
        (Deployments(windows=("4h",)), "deployments.windows"),
    ],
)
def test_a_calendar_that_is_none_is_refused_by_its_key(settings: Deployments, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        Calendar(settings)
    assert error.value.fields["key"] == key


def test_moments_to_look_are_read_likewise() -> None:
    settings = Deployments(refresh_at=("often",))
    with pytest.raises(ConfigError) as error:
        Schedule(settings, Calendar(settings).zone, look)
    assert error.value.fields["key"] == "deployments.refresh_at"


async def look() -> None:
    """Look for nothing."""


def test_a_jump_of_the_wall_clock_makes_all_jobs_anew() -> None:
    async def test() -> None:
        settings = Deployments(refresh_s=3600.0, refresh_jitter_s=0.0, refresh_at=("0 2 * * *",))
        schedule = Schedule(settings, Calendar(settings).zone, look)
        schedule.start()
        try:
            first = schedule.next_looks()
            assert len(first) == 2
            assert min(first) <= datetime.now(UTC) + timedelta(seconds=3601)
            assert not schedule.tick(0.0, 1_000_000)
            assert not schedule.tick(1000.0, 1_001_000 + int(JUMP_MS) - 1)
            assert schedule.next_looks() == first
            for monotonic_ms, utc_ms in ((2000.0, 90_000_000), (3000.0, 1_003_000)):
                assert schedule.tick(monotonic_ms, utc_ms)
                assert not schedule.tick(monotonic_ms + 1000, utc_ms + 1000)
            again = schedule.next_looks()
            assert len(again) == 2
            assert max(again) >= max(first)
        finally:
            schedule.stop()
        schedule.stop()

    asyncio.run(test())
