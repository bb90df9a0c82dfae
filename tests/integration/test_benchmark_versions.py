"""The figures of versions: each suite comes to its end on small files, and gives its figures."""

from __future__ import annotations

from benchmarks.report import page
from benchmarks.versions.__main__ import BARS, SUITES, run


def test_every_suite_comes_to_its_end_and_gives_its_figures() -> None:
    results = run(tuple(SUITES), short=True)
    assert results.lost == {}
    assert [one.bar for one in results.verdicts] == list(BARS)
    assert all(one.measured for one in results.verdicts)
    text = page(results)
    assert all(bar.title in text for bar in BARS)
