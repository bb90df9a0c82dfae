"""Measure tokens per second: so many streams, each with prompts of its own.

What this room does: the suites `throughput` (1, 4, 8 and 16 streams) and `tiny` (steps so short
that everything around them shows).
What it knows: that at a fixed number of rounds a longer load says more, so a single stream sends
several requests.
What it never does: repeat a prompt.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.harness import Session, Side
from benchmarks.samples import EXAMPLE_SERVER, case_of
from benchmarks.traffic import Part, Report


class _Streams(NamedTuple):
    """One load of a suite, and how long its rounds may take in all."""

    streams: int
    requests: int  # of each stream
    rounds: int
    within_s: float


_LOADS = (
    _Streams(1, 2, 5, 130),
    _Streams(4, 1, 4, 180),
    _Streams(8, 1, 3, 240),
    _Streams(16, 1, 3, 440),
)
_LOADS_QUICK = (_Streams(4, 1, 1, 60),)
_LOADS_TINY = (_Streams(8, 4, 5, 50), _Streams(32, 2, 5, 80))
_LOADS_TINY_QUICK = (_Streams(8, 1, 1, 60),)
_PROMPT_TINY, _OUTPUT_TINY = 128, 48
_EXAMPLE_ROUNDS = 2  # it has no bar


def throughput(session: Session) -> None:
    """Measure ours over gRPC and REST, llama-server, examples/server and llama-batched-bench."""
    options = session.options
    for load in _LOADS_QUICK if options.quick else _LOADS:
        part = Part(
            streams=load.streams,
            requests=load.requests,
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
        )
        _measure(session, "throughput", options.shape, part, load, peers=True)


def tiny(session: Session) -> None:
    """Measure a model whose step takes some milliseconds."""
    for load in _LOADS_TINY_QUICK if session.options.quick else _LOADS_TINY:
        part = Part(
            streams=load.streams,
            requests=load.requests,
            prompt_tokens=_PROMPT_TINY,
            output_tokens=_OUTPUT_TINY,
        )
        _measure(session, "tiny", "15M", part, load)


def _measure(
    session: Session, suite: str, shape: str, part: Part, load: _Streams, *, peers: bool = False
) -> None:
    """Run one load on every side in turns; with `peers` on those too that only have a row."""
    case = case_of(part.streams)
    tokens = part.prompt_tokens + part.output_tokens
    settings = session.settings(session.model(shape), part.streams, tokens)
    sides = session.sides(settings)
    example = session.example_server(settings) if peers else None
    if example is not None:
        sides.append(Side(name=EXAMPLE_SERVER, server=example, way="rest"))
    session.warm(sides, part)
    measured = -1
    for number, side in session.turns(sides, load.rounds, load.within_s):
        if peers and number > measured:
            session.ceiling(suite, case, number, settings, part.prompt_tokens, part.output_tokens)
            measured = number
        if side.name == EXAMPLE_SERVER and number >= _EXAMPLE_ROUNDS:
            continue
        sent = session.send(side, part, seed=1 + number)
        check_whole(sent[0], part, side)
        session.keep_load(suite, case, side, number, sent)


def check_whole(report: Report, part: Part, side: Side) -> None:
    """Refuse a report in which tokens are missing: its speed would mean nothing."""
    found = sum(one.output_tokens for one in report.requests)
    wanted = part.streams * part.requests * part.output_tokens
    if found != wanted:
        raise RuntimeError(f"{side.name} gave {found} tokens, not {wanted}")
