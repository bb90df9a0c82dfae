"""Measure what happens when there is not enough: of the processor, of KV cells, of turns.

What this room does: the suites `busy` (another process computes), `cells` (KV cells for half of
the load) and `fairness` (a greedy client beside a polite one).
What it knows: that the other process must end whatever happens, and that llama-server serves who
came first, so that one answer of it takes a minute here.
What it never does: leave a process behind.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as replace_fields
from statistics import median

from msgspec.structs import replace

from benchmarks.harness import Session, Side
from benchmarks.samples import OURS_REST, PEER
from benchmarks.suites.throughput import check_whole
from benchmarks.traffic import Part, Report

_BUSY_S = 900
_BUSY = f"""
import time
end = time.monotonic() + {_BUSY_S}
while time.monotonic() < end:
    pass
"""
CELLS_CASE, CELLS_FIT_CASE = "8 streams, cells for 4", "4 streams, cells for 4"
ALONE_CASE, GREEDY_CASE = "polite alone", "beside a greedy client"
BATCH_CASE = "beside a greedy client of class batch"


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy until the end of the block, and for a quarter of an hour at most."""
    with subprocess.Popen([sys.executable, "-c", _BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


def busy(session: Session) -> None:
    """Send 4 streams while one other process computes without a pause."""
    part = Part(streams=4, prompt_tokens=128, output_tokens=48)
    settings = session.settings(session.model(), part.streams, 176)
    sides = session.sides(settings, grpc=False)
    with busy_process():
        session.warm(sides, part)
        for number, side in session.turns(sides, 3, within_s=140):
            sent = session.send(side, part, seed=1 + number)
            check_whole(sent[0], part, side)
            session.keep_load("busy", "4 streams", side, number, sent)


def cells(session: Session) -> None:
    """Send 8 streams to a KV cache for 4: who fails, and what does it cost?

    llama-server's streams share the cells here: with a part each, none of them would fit.
    """
    prompt, output = 128, 48
    part = Part(streams=8, prompt_tokens=prompt, output_tokens=output)
    fitting = Part(streams=4, requests=2, prompt_tokens=prompt, output_tokens=output)
    settings = session.settings(session.model(), part.streams, prompt + output, shared=True)
    if not session.options.quick:  # a small run keeps the servers it has
        settings = replace_fields(settings, cells=4 * (prompt + output))
    sides = session.sides(settings, grpc=False)
    session.warm(sides, Part(prompt_tokens=prompt, output_tokens=output))
    for number, side in session.turns(sides, 3, within_s=150):
        sent = session.send(side, part, seed=1 + number, may_fail=True)
        session.keep_load("cells", CELLS_CASE, side, number, sent)
        if side.name == OURS_REST:
            sent = session.send(side, fitting, seed=1000 + number)
            session.keep_load("cells", CELLS_FIT_CASE, side, number, sent)


def fairness(session: Session) -> None:
    """Send 64 requests of one client at once; how long does another one wait for each of its own?

    Clients are told apart by the field `user`. llama-server's polite client has one request in
    each of two rounds, ours three in each of three.
    """
    streams, prompt, output = (12, 32, 8) if session.options.quick else (64, 64, 32)
    greedy = Part(
        name="greedy",
        streams=streams,
        prompt_tokens=prompt,
        output_tokens=output,
        until="polite",
        body={"user": "greedy"},
    )
    polite = Part(
        name="polite",
        requests=3,
        prompt_tokens=prompt,
        output_tokens=output,
        body={"user": "polite"},
    )
    settings = session.settings(session.model(), 8, 4 * (prompt + output))
    sides = session.sides(settings, grpc=False)
    session.warm(sides, Part(prompt_tokens=prompt, output_tokens=output))
    for number, side in session.turns(sides, 3, within_s=240):
        if side.name == PEER:
            if number < 2:  # noqa: PLR2004 - of its rounds
                _beside(session, side, number, GREEDY_CASE, greedy, replace(polite, requests=1))
            continue
        report, _ = session.send(side, polite, seed=1000 + number)
        session.keep("fairness", ALONE_CASE, side.name, number, **_polite(report))
        _beside(session, side, number, GREEDY_CASE, greedy, polite)
        batch = replace(greedy, body={"user": "greedy", "priority": "batch"})
        _beside(session, side, number, BATCH_CASE, batch, polite)


def _beside(
    session: Session, side: Side, number: int, case: str, greedy: Part, polite: Part
) -> None:
    after = replace(polite, after="greedy")
    report, _ = session.send(side, greedy, after, seed=1 + number, may_fail=True)
    left = sum(not one.is_whole and not one.error for one in report.of("greedy"))
    refused = sum(bool(one.error) for one in report.of("greedy"))
    session.keep(
        "fairness",
        case,
        side.name,
        number,
        **_polite(report),
        greedy_unfinished=float(left),
        greedy_refused=float(refused),
    )


def _polite(report: Report) -> dict[str, float]:
    requests = report.of("polite")
    lost = [one.error or "broken off" for one in requests if not one.is_whole]
    if lost:
        raise RuntimeError(f"a polite request did not end well: {lost[0]}")
    return {"polite_request_ms": median(one.total_s * 1000 for one in requests)}
