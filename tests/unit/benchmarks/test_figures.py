"""The rules of the figures: ratios within a round, medians over rounds, nothing measured here."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.figures import Figures, cpu_table, figures_of, ratios, select, table
from benchmarks.load import Report

REPORT = Report(
    wall_s=2.0,
    client_cpu_s=0.01,
    output_tokens=100,
    first_token_ms=[10.0, 30.0, 20.0],
    gap_ms=[*([2.0] * 95), *([40.0] * 5)],
    request_ms=[900.0, 1100.0],
    texts_digest="ab",
)


def measured(number: int, server: str, tokens_per_s: float, way: str = "rest") -> Figures:
    report = msgspec.structs.replace(REPORT, wall_s=REPORT.output_tokens / tokens_per_s)
    return figures_of(
        report,
        {"worker": 0.2, "daemon": 0.05},
        shape="15M",
        streams=8,
        number=number,
        server=server,
        way=way,
    )


def test_a_load_becomes_medians_and_cpu_per_token() -> None:
    one = measured(0, "ours", 50.0)
    assert one.tokens_per_s == pytest.approx(50.0)
    assert (one.first_token_ms, one.gap_ms, one.request_ms) == (20.0, 2.0, 1000.0)
    assert one.gap_ms_p95 == pytest.approx(3.9, abs=0.1)
    assert one.client_cpu_ms == pytest.approx(0.1)
    assert one.server_cpu_ms == pytest.approx(2.5)
    assert one.cpu_ms_by_kind == pytest.approx({"worker": 2.0, "daemon": 0.5})


def test_a_ratio_is_taken_within_a_round() -> None:
    ours = [measured(0, "ours", 50.0), measured(1, "ours", 10.0)]
    theirs = [measured(0, "llama-server", 100.0), measured(1, "llama-server", 20.0)]
    assert ratios(ours, theirs, "tokens_per_s") == pytest.approx([0.5, 0.5])
    with pytest.raises(AssertionError):
        ratios(ours, list(reversed(theirs)), "tokens_per_s")


def test_the_table_shows_medians_and_the_spread_of_the_ratios_of_each_way() -> None:
    rounds = [
        one
        for number, speed in enumerate((50.0, 100.0, 150.0))
        for one in (
            measured(number, "ours", speed),
            measured(number, "ours", 2 * speed, "grpc"),
            measured(number, "llama-server", 100.0),
        )
    ]
    lines = table(rounds).splitlines()
    assert lines[2].startswith("| 15M | 8 | llama-server, REST | 100 | 20 |")
    assert lines[3].startswith("| 15M | 8 | ours, REST | 100 |")
    assert lines[4].startswith("| | | **ratio** | **1.00** (0.50-1.50) |")
    assert lines[6].startswith("| | | **ratio** | **2.00** (1.00-3.00) |")
    assert len(select(rounds, "15M", 8, "ours", "grpc")) == 3
    assert "| 15M | 8 | ours, grpc | worker 2.000, daemon 0.500, client 0.100 |" in cpu_table(
        rounds
    )
