"""Measure tokens per second: so many streams, each with prompts of its own.

What this room does: the suites `throughput` (1, 4, 8 and 16 streams) and `tiny` (steps so short
that everything around them shows).
What it knows: that at a fixed number of rounds a longer load says more, so a single stream sends
several requests.
What it never does: repeat a prompt.
"""

from __future__ import annotations

from benchmarks.harness import Session, Side, turns
from benchmarks.samples import EXAMPLE_SERVER, case_of
from benchmarks.traffic import Part, Report

# streams → (requests of each stream, rounds)
_LOADS = {1: (2, 5), 4: (1, 4), 8: (1, 3), 16: (1, 3)}
_LOADS_QUICK = {4: (1, 1)}
_LOADS_TINY = {8: (4, 5), 32: (2, 5)}
_LOADS_TINY_QUICK = {8: (1, 1)}
_PROMPT_TINY, _OUTPUT_TINY = 128, 48


def throughput(session: Session) -> None:
    """Measure ours over gRPC and REST, llama-server, examples/server and llama-batched-bench."""
    options = session.options
    for streams, (requests, rounds) in (_LOADS_QUICK if options.quick else _LOADS).items():
        part = Part(
            streams=streams,
            requests=requests,
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
        )
        measure(session, "throughput", options.shape, part, session.rounds(rounds), peers=True)


def tiny(session: Session) -> None:
    """Measure a model whose step takes some milliseconds."""
    for streams, (requests, rounds) in (
        _LOADS_TINY_QUICK if session.options.quick else _LOADS_TINY
    ).items():
        part = Part(
            streams=streams,
            requests=requests,
            prompt_tokens=_PROMPT_TINY,
            output_tokens=_OUTPUT_TINY,
        )
        measure(session, "tiny", "15M", part, session.rounds(rounds))


def measure(
    session: Session,
    suite: str,
    shape: str,
    part: Part,
    rounds: int,
    *,
    peers: bool = False,
    grpc: bool = True,
) -> None:
    """Run one load on every side in turns; with `peers` on those that have no bar but the name."""
    case = case_of(part.streams)
    tokens = part.prompt_tokens + part.output_tokens
    settings = session.settings(session.model(shape), part.streams, tokens)
    sides = session.sides(settings, grpc=grpc)
    example = session.example_server(settings) if peers else None
    if example is not None:
        sides.append(Side(name=EXAMPLE_SERVER, server=example, way="rest"))
    session.warm(sides, part)
    for number, side in turns(sides, rounds):
        if side is sides[0] and peers:
            session.ceiling(suite, case, number, settings, part.prompt_tokens, part.output_tokens)
        sent = session.send(side, part, seed=1 + number)
        check_whole(sent[0], part, side)
        session.keep_load(suite, case, side, number, sent)


def check_whole(report: Report, part: Part, side: Side) -> None:
    """Refuse a report in which tokens are missing: its speed would mean nothing."""
    found = sum(one.output_tokens for one in report.requests)
    wanted = part.streams * part.requests * part.output_tokens
    if found != wanted:
        raise RuntimeError(f"{side.name} gave {found} tokens, not {wanted}")
