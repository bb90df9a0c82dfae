"""The figures of versions: a download comes to its end on small files, and gives its figures."""

from __future__ import annotations

from benchmarks.report import page
from benchmarks.versions.__main__ import run
from benchmarks.versions.download import BARS, SUITE


def test_a_download_comes_to_its_end_and_gives_its_figures() -> None:
    results = run((SUITE,), short=True)
    assert results.lost == {}
    assert [one.bar for one in results.verdicts] == list(BARS)
    assert all(one.measured for one in results.verdicts)
    text = page(results)
    assert all(bar.title in text for bar in BARS)
