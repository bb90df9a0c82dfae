"""The rules of the figures: an interval reaches its bar or not; counts are exact."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from benchmarks.bars import BARS, Bar, Verdict, judge
from benchmarks.intervals import Interval, interval, slope
from benchmarks.report import Results, keep
from benchmarks.samples import OURS_REST, PEER, Sample

LEAST = Bar(suite="s", case="c", metric="m", side=OURS_REST, over=PEER, at_least=1.0)
MOST = Bar(suite="s", case="c", metric="m", side=OURS_REST, over=PEER, at_most=0.5)


def verdict(bar: Bar, low: float, median: float, high: float) -> Verdict:
    return Verdict(bar=bar, measured=Interval(low=low, median=median, high=high, rounds=3))


def test_the_interval_of_a_median_covers_it_and_is_the_same_again() -> None:
    values = [0.9, 1.0, 1.1, 0.95, 1.3]
    found = interval(values)
    assert found == interval(values)
    assert found.low <= found.median == 1.0 <= found.high
    assert min(values) <= found.low
    assert found.high <= max(values)
    assert interval([0.7]) == Interval(median=0.7, low=0.7, high=0.7, rounds=1)
    assert interval([1.0, 2.0, 3.0]) == Interval(median=2.0, low=1.0, high=3.0, rounds=3)


def test_many_rounds_make_the_interval_narrow() -> None:
    few = interval([0.9, 1.0, 1.1])
    many = interval([0.9, 1.0, 1.1] * 20)
    assert many.high - many.low < few.high - few.low


def test_a_slope_ignores_outliers() -> None:
    times = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert slope(times, [1.0, 3.0, 500.0, 7.0, 9.0]) == pytest.approx(2.0)
    assert slope([0.0], [1.0]) == 0.0


def test_a_figure_holds_if_its_median_reaches_the_bar() -> None:
    assert verdict(LEAST, 0.8, 1.0, 1.1).holds
    assert not verdict(LEAST, 0.8, 0.99, 1.2).holds
    assert verdict(MOST, 0.4, 0.5, 0.7).holds
    assert not verdict(MOST, 0.4, 0.51, 0.7).holds
    assert not Verdict(bar=LEAST, measured=None, why="lost").holds


def test_a_count_must_reach_its_bar_in_every_round() -> None:
    none = Bar(suite="s", case="c", metric="failed", side=OURS_REST, at_most=0.0, exact=True)
    assert verdict(none, 0.0, 0.0, 0.0).holds
    assert not verdict(none, 0.0, 0.0, 1.0).holds


def test_a_line_names_figure_measurement_bar_and_outcome() -> None:
    assert verdict(LEAST, 0.8, 0.95, 1.0).line == (
        "s, c: m of ours, REST / llama-server: 0.95 [0.8, 1]  bar >= 1  falls short"
    )
    lost = Verdict(bar=MOST, measured=None, why="it broke")
    assert lost.line.endswith("not measured (it broke)  bar <= 0.5  falls short")


def test_every_bar_has_one_limit_and_a_name_of_its_own() -> None:
    assert all((bar.at_least is None) != (bar.at_most is None) for bar in BARS)
    assert len({bar.title for bar in BARS}) == len(BARS)


def test_a_suite_that_was_lost_says_why_and_others_are_not_asked() -> None:
    bar = BARS[0]
    found = judge([], [bar.suite], {bar.suite: "no server"})
    assert {one.why for one in found} == {"no server"}
    assert {one.bar.suite for one in found} == {bar.suite}
    samples = [
        Sample(suite=bar.suite, case=bar.case, side=side, round=0, metrics={bar.metric: value})
        for side, value in ((bar.side, 3.0), (bar.over, 2.0))
    ]
    measured = judge(samples, [bar.suite], {})[0].measured
    assert measured is not None
    assert measured.median == pytest.approx(1.5)


def test_what_is_kept_can_be_read_again_and_the_picture_is_xml(tmp_path: Path) -> None:
    results = Results(
        command="python -m benchmarks.engine",
        machine={"cpu": "a <b>", "cores": "2"},
        peers="Peers.",
        seconds={"s": 1.0},
        commands={},
        notes=["a note"],
        verdicts=[verdict(LEAST, 0.8, 0.95, 1.0), Verdict(bar=MOST, measured=None, why="lost")],
        samples=[Sample(suite="s", case="c", side=PEER, round=0, metrics={"m": 1.0})],
    )
    keep(tmp_path, "engine", results)
    again = msgspec.json.decode((tmp_path / "engine.json").read_bytes(), type=Results)
    assert again == results
    text = (tmp_path / "engine.md").read_text()
    assert "| s, c: m of ours, REST / llama-server | **0.95** | 0.8-1 | ≥ 1 | falls short |" in text
    assert "- a note" in text
    picture = ET.fromstring((tmp_path / "engine.svg").read_text())  # noqa: S314 - our own
    assert picture.tag.endswith("svg")


def test_what_is_kept_names_no_place_of_this_machine(tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    results = Results(
        command="python -m benchmarks.engine",
        machine={"cpu": "a", "cores": "2"},
        peers="Peers.",
        seconds={"s": 1.0},
        commands={"ours": [sys.executable, str(here), f"{tempfile.gettempdir()}/x"]},
        notes=[f"{here}: broke"],
        verdicts=[],
        samples=[Sample(suite="s", case="c", side=PEER, round=0, metrics={"m": 1.0})],
    )
    keep(tmp_path, "engine", results)
    again = msgspec.json.decode((tmp_path / "engine.json").read_bytes(), type=Results)
    there = f"REPOSITORY/tests/unit/benchmarks/{here.name}"
    assert again.commands["ours"] == ["python", there, "SCRATCH/x"]
    assert again.notes == [f"{there}: broke"]
    assert f"- {there}: broke" in (tmp_path / "engine.md").read_text()
