"""A deployment that is killed anywhere: a part of the figures, which take every point."""

from __future__ import annotations

from benchmarks.versions.__main__ import run
from benchmarks.versions.survival import KILLS


def test_killed_anywhere_it_serves_the_old_or_the_new_version_and_leaves_nothing() -> None:
    results = run((KILLS,), short=True)
    assert results.lost == {}
    assert results.notes == []
    assert all(verdict.holds for verdict in results.verdicts)
