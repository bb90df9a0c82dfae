"""Turn timed loads into samples, and samples of several rounds into ratios and tables.

What this room does: medians, percentiles, tokens per second, CPU per token of one load; one side
over another in each round; a table in Markdown.
What it knows: that a ratio is taken within one round, where both sides met the same machine.
What it never does: measure. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec
import numpy as np

from benchmarks.traffic import Report, Timed

OURS_GRPC, OURS_REST, PEER = "ours, gRPC", "ours, REST", "llama-server"
EXAMPLE_SERVER, CEILING = "examples/server", "llama-batched-bench"
CPU = "cpu_ms."  # of one kind of process; the kind follows

# How a table heads a metric; what is not here is headed by its name.
HEADINGS = {
    "tokens_per_s": "tokens/s",
    "first_token_ms": "first token, ms",
    "first_token_ms_last": "last first token, ms",
    "gap_ms": "between tokens, ms",
    "gap_ms_p95": "between tokens p95, ms",
    "gap_ms_worst": "worst gap, ms",
    "request_ms": "request, ms",
    "server_cpu_ms": "server CPU per token, ms",
    "client_cpu_ms": "client CPU per token, ms",
    "deltas_per_token": "deltas per token",
    "failed": "failed requests",
    "newcomer_first_token_ms": "newcomer's first token, ms",
    "gap_ms_before": "gap before, ms",
    "gap_ms_during": "gap during, ms",
    "tokens_meanwhile": "tokens meanwhile",
    "polite_request_ms": "polite request, ms",
    "cached_tokens": "cached tokens",
}


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one load on one side measured. CPU is in milliseconds for each token that came out."""

    suite: str
    case: str
    side: str
    round: int
    metrics: dict[str, float]
    texts_digest: str = ""


def case_of(streams: int) -> str:
    """Name a load by its streams."""
    return f"{streams} stream" if streams == 1 else f"{streams} streams"


def metrics_of(report: Report, cpu_s: dict[str, float] | None = None) -> dict[str, float]:
    """Reduce one load; `cpu_s` is what each kind of server process used during it."""
    whole = [one for one in report.requests if one.is_whole]
    tokens = sum(one.output_tokens for one in whole)
    deltas = sum(len(one.arrivals_s) for one in whole)
    found = {"failed": float(len(report.requests) - len(whole))}
    if not tokens:
        return found
    each = 1000.0 / tokens
    gaps_ms = between(whole)
    firsts_ms = [one.arrivals_s[0] * 1000 for one in whole if one.arrivals_s]
    found |= {
        "tokens_per_s": tokens / report.wall_s,
        "first_token_ms": median(firsts_ms),
        "first_token_ms_last": max(firsts_ms),
        "gap_ms": float(np.median(gaps_ms)) if len(gaps_ms) else 0.0,
        "gap_ms_p95": float(np.percentile(gaps_ms, 95)) if len(gaps_ms) else 0.0,
        "request_ms": median(one.total_s * 1000 for one in whole),
        "deltas_per_token": deltas / tokens,
        "client_cpu_ms": report.client_cpu_s * each,
    }
    if cpu_s:
        found["server_cpu_ms"] = sum(cpu_s.values()) * each
        found |= {f"{CPU}{kind}": seconds * each for kind, seconds in cpu_s.items()}
    return found


def between(requests: Iterable[Timed]) -> np.ndarray:
    """List the milliseconds between two deltas of one stream, over all streams."""
    gaps = [np.diff(one.arrivals_s) * 1000 for one in requests]
    return np.concatenate(gaps) if gaps else np.array([])


def digest(report: Report) -> str:
    """Tell texts apart: equal digests mean that the servers gave the same texts."""
    texts = sorted(one.text for one in report.requests)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def select(samples: Iterable[Sample], suite: str, case: str, side: str) -> dict[int, Sample]:
    """Return the rounds of one case on one side."""
    return {
        one.round: one for one in samples if (one.suite, one.case, one.side) == (suite, case, side)
    }


def ratios(ours: dict[int, Sample], theirs: dict[int, Sample], metric: str) -> list[float]:
    """Divide ours by theirs within each round that both measured."""
    return [
        ours[number].metrics[metric] / theirs[number].metrics[metric]
        for number in sorted(ours.keys() & theirs.keys())
        if metric in ours[number].metrics and theirs[number].metrics.get(metric)
    ]


def table(samples: Sequence[Sample]) -> str:
    """Write the cases of one suite: medians over rounds, and ours / llama-server (least-most)."""
    shown = dict.fromkeys(
        name for one in samples for name in one.metrics if not name.startswith(CPU)
    )
    if not any(one.metrics.get("failed") for one in samples):
        shown.pop("failed", None)
    lines = [
        "| load | side | " + " | ".join(HEADINGS.get(name, name) for name in shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for suite, case in dict.fromkeys((one.suite, one.case) for one in samples):
        sides = dict.fromkeys(one.side for one in samples if (one.suite, one.case) == (suite, case))
        peer = select(samples, suite, case, PEER)
        for side in sides:
            rounds = select(samples, suite, case, side)
            cells = [_median_cell(rounds, name) for name in shown]
            lines.append(f"| {case} | {side} | {' | '.join(cells)} |")
            if peer and side not in (PEER, CEILING):
                cells = [spread(ratios(rounds, peer, name)) for name in shown]
                lines.append(f"| | **over {PEER}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def cpu_table(samples: Sequence[Sample]) -> str:
    """Write the CPU time of each kind of process for each token; empty if none was measured."""
    lines = ["| load | side | CPU ms per token |", "|---|---|---|"]
    for key in dict.fromkeys((one.suite, one.case, one.side) for one in samples):
        rounds = list(select(samples, *key).values())
        names = [name for name in rounds[0].metrics if name.startswith(CPU)]
        kinds = [
            f"{name.removeprefix(CPU)} {median(one.metrics.get(name, 0.0) for one in rounds):.3f}"
            for name in names
        ]
        if kinds:
            client = median(one.metrics.get("client_cpu_ms", 0.0) for one in rounds)
            lines.append(f"| {key[1]} | {key[2]} | {', '.join(kinds)}, client {client:.3f} |")
    return "\n".join(lines) if len(lines) > 2 else ""  # noqa: PLR2004 - the heading


def _median_cell(rounds: dict[int, Sample], name: str) -> str:
    values = [one.metrics[name] for one in rounds.values() if name in one.metrics]
    return number(median(values)) if values else ""


def number(value: float) -> str:
    """Write three digits, or all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


def spread(values: Sequence[float]) -> str:
    """Write a median with the least and the most."""
    if not values:
        return ""
    return f"**{median(values):.2f}** ({min(values):.2f}-{max(values):.2f})"
