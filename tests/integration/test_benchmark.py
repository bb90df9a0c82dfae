"""The measuring harness end to end, on our own daemon; a second one stands in for the peer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import pytest

from benchmarks.bars import BARS
from benchmarks.engine import run
from benchmarks.harness import Options
from benchmarks.report import Results, page
from benchmarks.samples import OURS_GRPC, OURS_REST, PEER, Sample
from benchmarks.stepping import FRAMES, PARTS, REST
from benchmarks.suites import SUITES


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Run every suite once, as small as it gets."""
    options = Options(cache=tmp_path_factory.mktemp("cache"), quick=True, twin=True)
    return run(options, tuple(SUITES))


def of(results: Results, suite: str) -> dict[tuple[str, str], Sample]:
    """Find the samples of a suite by case and side."""
    return {(one.case, one.side): one for one in results.samples if one.suite == suite}


def test_every_suite_comes_to_its_end_and_every_suite_has_bars(results: Results) -> None:
    assert results.lost == {}
    assert set(results.seconds) == set(SUITES)
    assert {bar.suite for bar in BARS} == set(SUITES) - {"profile"}
    assert set(SUITES) <= {one.suite for one in results.samples}


def test_command_lines_are_kept_without_the_places_of_this_machine(results: Results) -> None:
    kept = [line for lines in results.commands.values() for line in lines]
    assert any("-m appliance serve --config SCRATCH/" in line for line in kept)
    assert not any(str(Path.home()) in line or tempfile.gettempdir() in line for line in kept)


def test_both_faces_give_the_same_texts_and_every_process_has_its_cpu_time(
    results: Results,
) -> None:
    found = of(results, "throughput")
    sides = [found["4 streams", side] for side in (OURS_GRPC, OURS_REST, PEER)]
    assert len({one.texts_digest for one in sides}) == 1
    for one in sides:
        assert {"cpu_ms.daemon", "cpu_ms.worker", "cpu_ms.text"} <= set(one.metrics)
        assert one.metrics["tokens_per_s"] > 0


def test_the_parts_of_a_step_add_up_and_most_kinds_of_them_are_seen(results: Results) -> None:
    step = of(results, "profile")["15M, 4 streams", "a decode step"].metrics
    parts = {name: step[f"{name}_ms"] for name in (*(part for part, _, _ in PARTS), FRAMES, REST)}
    assert sum(parts.values()) == pytest.approx(step["step_ms"])
    assert all(parts[name] > 0 for name in ("llama_decode", "plan", "draw", FRAMES, REST))
    assert step["rows"] == 4.0


def test_every_bar_of_a_small_run_is_measured_or_says_why_not(results: Results) -> None:
    by_title = {one.bar.title: one for one in results.verdicts}
    assert len(by_title) == len(BARS)
    measured = {one.bar.suite for one in results.verdicts if one.measured}
    assert measured == set(SUITES) - {"profile"}
    assert all(one.measured or one.why for one in results.verdicts)
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results
    assert all(f"## {suite}" in page(results) for suite in SUITES)
