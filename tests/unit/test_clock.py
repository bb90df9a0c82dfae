"""The two clocks."""

from __future__ import annotations

import time

from appliance import clock


def test_the_monotonic_clock_is_the_one_of_the_boot_in_milliseconds() -> None:
    before = time.clock_gettime(time.CLOCK_MONOTONIC) * 1000
    now = clock.monotonic_ms()
    after = time.clock_gettime(time.CLOCK_MONOTONIC) * 1000
    assert before <= now <= after


def test_the_wall_clock_is_utc_in_whole_milliseconds() -> None:
    before = int(time.time() * 1000)
    now = clock.utc_ms()
    assert before <= now <= int(time.time() * 1000) + 1
