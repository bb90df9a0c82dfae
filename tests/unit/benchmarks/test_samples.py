"""The rules of the samples: ratios within a round, medians over rounds, nothing measured here."""

from __future__ import annotations

import pytest

from benchmarks.samples import (
    OURS_GRPC,
    OURS_REST,
    PEER,
    Sample,
    cpu_table,
    digest,
    metrics_of,
    ratios,
    select,
    table,
)
from benchmarks.traffic import Report, Timed


def timed(first_s: float, gap_s: float, tokens: int, error: str = "") -> Timed:
    arrivals = [] if error else [first_s + gap_s * number for number in range(tokens)]
    return Timed(
        part="all",
        sent_s=0.0,
        arrivals_s=arrivals,
        total_s=first_s + gap_s * tokens,
        output_tokens=0 if error else tokens,
        text="" if error else "x" * tokens,
        finish="" if error else "length",
        error=error,
    )


def report(*requests: Timed, wall_s: float = 2.0) -> Report:
    return Report(wall_s=wall_s, client_cpu_s=0.01, requests=list(requests))


def sample(number: int, side: str, tokens_per_s: float, case: str = "8 streams") -> Sample:
    metrics = {"tokens_per_s": tokens_per_s, "cpu_ms.worker": 2.0, "client_cpu_ms": 0.1}
    return Sample(suite="s", case=case, side=side, round=number, metrics=metrics)


def test_a_load_becomes_medians_and_cpu_per_token() -> None:
    found = metrics_of(
        report(timed(0.01, 0.002, 50), timed(0.03, 0.002, 50)), {"worker": 0.2, "daemon": 0.05}
    )
    assert found["tokens_per_s"] == pytest.approx(50.0)
    assert found["first_token_ms"] == pytest.approx(20.0)
    assert found["first_token_ms_last"] == pytest.approx(30.0)
    assert found["gap_ms"] == pytest.approx(2.0)
    assert found["deltas_per_token"] == 1.0
    assert found["client_cpu_ms"] == pytest.approx(0.1)
    assert found["server_cpu_ms"] == pytest.approx(2.5)
    assert found["cpu_ms.worker"] == pytest.approx(2.0)
    assert found["failed"] == 0.0


def test_what_failed_is_counted_and_adds_no_tokens() -> None:
    found = metrics_of(report(timed(0.01, 0.002, 50), timed(0.01, 0.002, 50, error="no room")))
    assert (found["failed"], found["tokens_per_s"]) == (1.0, 25.0)
    assert metrics_of(report(timed(0.0, 0.0, 1, error="no"))) == {"failed": 1.0}


def test_texts_are_told_apart_whatever_their_order() -> None:
    one, other = timed(0.1, 0.1, 3), timed(0.1, 0.1, 4)
    assert digest(report(one, other)) == digest(report(other, one))
    assert digest(report(one)) != digest(report(other))


def test_a_ratio_is_taken_within_a_round() -> None:
    ours = select(
        [sample(1, OURS_REST, 10.0), sample(0, OURS_REST, 50.0)], "s", "8 streams", OURS_REST
    )
    theirs = {0: sample(0, PEER, 100.0), 1: sample(1, PEER, 40.0), 2: sample(2, PEER, 1.0)}
    assert ratios(ours, theirs, "tokens_per_s") == pytest.approx([0.5, 0.25])
    assert ratios(ours, theirs, "gap_ms") == []


def test_the_table_shows_medians_and_the_spread_of_the_ratios_of_each_side() -> None:
    rounds = [
        one
        for number, speed in enumerate((50.0, 100.0, 150.0))
        for one in (
            sample(number, OURS_GRPC, 2 * speed),
            sample(number, OURS_REST, speed),
            sample(number, PEER, 100.0),
        )
    ]
    lines = table(rounds).splitlines()
    assert lines[0] == "| load | side | tokens/s | client CPU per token, ms |"
    assert lines[2] == "| 8 streams | ours, gRPC | 200 | 0.1 |"
    assert lines[3].startswith("| | **over llama-server** | **2.00** (1.00-3.00) |")
    assert lines[5].startswith("| | **over llama-server** | **1.00** (0.50-1.50) |")
    assert lines[6].startswith("| 8 streams | llama-server | 100 |")
    assert "| 8 streams | ours, REST | worker 2.000, client 0.100 |" in cpu_table(rounds)
