"""Turn timed loads into figures, and figures of several rounds into ratios.

What this room does: medians, percentiles, tokens per second, CPU per token; ours over theirs in
each round; tables in Markdown.
What it knows: that a ratio is taken within one round, where both sides met the same machine.
What it never does: measure. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec
import numpy as np

from benchmarks.load import Report


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server. CPU is in milliseconds for each token that came out."""

    shape: str
    streams: int
    round: int
    server: str  # "ours" or "llama-server"
    way: str  # "rest" or "grpc"
    tokens_per_s: float
    first_token_ms: float  # median over the requests
    gap_ms: float  # median between two tokens of a stream
    gap_ms_p95: float
    request_ms: float  # median
    output_tokens: int
    client_cpu_ms: float
    server_cpu_ms: float  # all its processes
    cpu_ms_by_kind: dict[str, float]
    texts_digest: str


# What a table shows: the field and its heading. Only of the first is more better.
SHOWN = (
    ("tokens_per_s", "tokens/s"),
    ("first_token_ms", "first token, ms"),
    ("gap_ms", "between tokens, ms"),
    ("gap_ms_p95", "between tokens p95, ms"),
    ("request_ms", "request, ms"),
    ("server_cpu_ms", "server CPU per token, ms"),
    ("client_cpu_ms", "client CPU per token, ms"),
)


def figures_of(
    report: Report,
    cpu_s: dict[str, float],
    *,
    shape: str,
    streams: int,
    number: int,
    server: str,
    way: str,
) -> Figures:
    """Reduce one load; `cpu_s` is what each kind of server process used during it."""
    each = 1000.0 / report.output_tokens
    return Figures(
        shape=shape,
        streams=streams,
        round=number,
        server=server,
        way=way,
        tokens_per_s=report.output_tokens / report.wall_s,
        first_token_ms=median(report.first_token_ms),
        gap_ms=median(report.gap_ms),
        gap_ms_p95=float(np.percentile(report.gap_ms, 95)),
        request_ms=median(report.request_ms),
        output_tokens=report.output_tokens,
        client_cpu_ms=report.client_cpu_s * each,
        server_cpu_ms=sum(cpu_s.values()) * each,
        cpu_ms_by_kind={kind: seconds * each for kind, seconds in cpu_s.items()},
        texts_digest=report.texts_digest,
    )


def ratios(ours: Sequence[Figures], theirs: Sequence[Figures], field: str) -> list[float]:
    """Divide ours by theirs round by round; both hold the same rounds in the same order."""
    assert [one.round for one in ours] == [one.round for one in theirs]
    return [
        getattr(mine, field) / getattr(other, field)
        for mine, other in zip(ours, theirs, strict=True)
    ]


def select(
    measured: Iterable[Figures], shape: str, streams: int, server: str, way: str
) -> list[Figures]:
    """Return the rounds of one load, in order."""
    return [
        one
        for one in measured
        if (one.shape, one.streams, one.server, one.way) == (shape, streams, server, way)
    ]


def table(measured: Sequence[Figures]) -> str:
    """Write all loads as a Markdown table: medians, and the ratio ours / llama-server (min-max)."""
    lines = [
        "| shape | streams | over | " + " | ".join(heading for _, heading in SHOWN) + " |",
        "|---|---|---|" + "---|" * len(SHOWN),
    ]
    loads = dict.fromkeys((one.shape, one.streams) for one in measured)
    for shape, streams in loads:
        theirs = select(measured, shape, streams, "llama-server", "rest")
        lines.append(_row(shape, streams, "llama-server, REST", theirs))
        for way, said in (("rest", "ours, REST"), ("grpc", "ours, gRPC")):
            ours = select(measured, shape, streams, "ours", way)
            if ours:
                lines.append(_row(shape, streams, said, ours))
                cells = [_spread(ratios(ours, theirs, field)) for field, _ in SHOWN]
                lines.append(f"| | | **ratio** | {' | '.join(cells)} |")
    return "\n".join(lines)


def cpu_table(measured: Sequence[Figures]) -> str:
    """Write the CPU time of each kind of process for each token, as medians over the rounds."""
    lines = ["| shape | streams | over | CPU ms per token |", "|---|---|---|---|"]
    for key in dict.fromkeys((one.shape, one.streams, one.server, one.way) for one in measured):
        rounds = select(measured, *key)
        kinds = [
            f"{kind} {median(one.cpu_ms_by_kind.get(kind, 0.0) for one in rounds):.3f}"
            for kind in rounds[0].cpu_ms_by_kind
        ]
        kinds.append(f"client {median(one.client_cpu_ms for one in rounds):.3f}")
        lines.append(f"| {key[0]} | {key[1]} | {key[2]}, {key[3]} | {', '.join(kinds)} |")
    return "\n".join(lines)


def _row(shape: str, streams: int, said: str, rounds: Sequence[Figures]) -> str:
    cells = [_number(median(getattr(one, field) for one in rounds)) for field, _ in SHOWN]
    return f"| {shape} | {streams} | {said} | {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Write three digits, or all of those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


def _spread(values: Sequence[float]) -> str:
    return f"**{median(values):.2f}** ({min(values):.2f}-{max(values):.2f})"
