"""The figures of versions: each suite comes to its end on small files, and gives its figures."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.bars import Bar, judge
from benchmarks.report import Results, keep, page
from benchmarks.samples import Sample
from benchmarks.versions.__main__ import BARS, NAME, beside, run
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


def test_a_part_of_the_suites_leaves_the_others_that_were_kept(tmp_path: Path) -> None:
    def measured(suite: str, value: float) -> Results:
        sample = Sample(suite=suite, case="case", side="ours", round=0, metrics={"n": value})
        bar = Bar(suite=suite, case="case", metric="n", side="ours", at_most=1.0)
        facts = {"cpu": "any", "cores": "2"}
        return Results(
            command=suite,
            machine=facts,
            peers="",
            seconds={suite: 1.0},
            commands={},
            notes=[],
            verdicts=judge([sample], [suite], {}, [bar]),
            samples=[sample],
        )

    path = tmp_path / f"{NAME}.json"
    for suite, value in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        keep(tmp_path, NAME, beside(path, measured(suite, value), (suite,)))
    kept = msgspec.json.decode(path.read_bytes(), type=Results)
    assert {one.suite: one.metrics["n"] for one in kept.samples} == {"one": 3.0, "two": 2.0}
    assert {one.bar.suite: one.holds for one in kept.verdicts} == {"one": False, "two": False}
