"""Tell the time: monotonic for durations and deadlines, UTC for records.

What this room does: the two clocks everything else is handed.
What it knows: CLOCK_MONOTONIC is one clock for all processes of a boot, so a deadline in
monotonic milliseconds may cross to a worker.
What it never does: sleep, or keep state.
"""

from __future__ import annotations

import time

BUILT_UTC_MS = 1_735_689_600_000  # the beginning of 2025: no clock that is right says less


def monotonic_ms() -> float:
    """Read the clock for durations and deadlines, in milliseconds since boot."""
    return time.monotonic_ns() / 1e6


def cpu_ms() -> float:
    """Read how long this process has used the processor, in milliseconds: a price, not a time."""
    return time.process_time_ns() / 1e6


def utc_ms() -> int:
    """Read the wall clock as UTC milliseconds since 1970."""
    return time.time_ns() // 1_000_000
