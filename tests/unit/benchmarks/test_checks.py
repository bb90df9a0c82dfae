"""The rules of a soak's checks: growth after the warm-up, files idle with idle, nothing held."""

from __future__ import annotations

import pytest

from benchmarks.checks import Reading, files, memory, nothing_left

MIB = 1024 * 1024


def readings(*mib: float) -> list[Reading]:
    return [
        Reading(at_s=float(at), rss_bytes={"daemon": int(one * MIB)}, files={"daemon": 10})
        for at, one in enumerate(mib)
    ]


def test_growth_while_warming_up_is_not_counted() -> None:
    (found,) = memory(readings(10, 60, 90, 100, 100, 100, 100, 100, 100, 100))
    assert found.measured == pytest.approx(0.0)
    assert found.holds


def test_growth_after_that_is_counted_over_what_is_left() -> None:
    (found,) = memory(readings(*range(0, 60, 5)))
    assert found.measured == pytest.approx(35.0)
    assert not found.holds
    assert found.line.startswith("memory, growth of daemon: 35 MiB  bar <= 16  falls short")


def test_one_peak_is_no_growth() -> None:
    (found,) = memory(readings(100, 100, 100, 100, 100, 900, 100, 100, 100))
    assert found.holds


def test_files_are_compared_by_kind_of_process() -> None:
    before = Reading(at_s=0.0, rss_bytes={}, files={"daemon": 10, "worker": 7})
    after = Reading(at_s=9.0, rss_bytes={}, files={"daemon": 12, "worker": 7})
    assert [(one.measured, one.holds) for one in files(before, after)] == [
        (2.0, False),
        (0.0, True),
    ]


def test_whatever_is_held_at_the_end_falls_short() -> None:
    found = nothing_left({"KV cells held": 1.0, "requests running": 0.0})
    assert [one.holds for one in found] == [False, True]
