"""The figures of versions: each suite comes to its end on small files, and gives its figures."""

from __future__ import annotations

import pytest

from benchmarks.report import page
from benchmarks.versions.__main__ import BARS, run
from benchmarks.versions.changed import SUITE as CHANGED
from benchmarks.versions.download import SUITE as DOWNLOAD
from benchmarks.versions.gate import SUITE as GATE
from benchmarks.versions.whole import CAUGHT, SWITCH


@pytest.mark.parametrize("suite", [DOWNLOAD, CHANGED, GATE, CAUGHT, SWITCH])
def test_a_suite_comes_to_its_end_and_gives_its_figures(suite: str) -> None:
    results = run((suite,), short=True)
    assert results.lost == {}
    bars = [bar for bar in BARS if bar.suite == suite]
    assert [one.bar for one in results.verdicts] == bars
    assert all(one.measured for one in results.verdicts)
    text = page(results)
    assert all(bar.title in text for bar in bars)
