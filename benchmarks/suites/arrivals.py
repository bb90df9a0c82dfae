"""Measure what prompts that arrive do to others and get themselves.

What this room does: the suites `first-token` (8 prompts at once), `gap` (a long prompt beside a
running stream) and `shared-prefix` (8 requests that begin alike).
What it knows: when a gap counts: between the arrival of the newcomer and its first token.
What it never does: share a prefix that its suite does not share.
"""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Session
from benchmarks.samples import OURS_REST
from benchmarks.suites.throughput import check_whole
from benchmarks.traffic import Part, Report


def first_token(session: Session) -> None:
    """Send 8 prompts together: when does each get its first token?"""
    part = Part(streams=8, prompt_tokens=128, output_tokens=16)
    settings = session.settings(session.model(), part.streams, 144)
    sides = session.sides(settings, grpc=False)
    session.warm(sides, part)
    for number, side in session.turns(sides, 5, within_s=130):
        sent = session.send(side, part, seed=1 + number)
        check_whole(sent[0], part, side)
        session.keep_load("first-token", "8 prompts at once", side, number, sent)


def gap(session: Session) -> None:
    """Send a long prompt while a stream runs: how long does that stream stand still?"""
    quick = session.options.quick
    long_tokens, before = (400, 4) if quick else (2000, 16)
    running = Part(
        name="running",
        prompt_tokens=128,
        output_tokens=400 if quick else 1200,
        until="newcomer",
    )
    newcomer = Part(name="newcomer", prompt_tokens=long_tokens, output_tokens=8)
    beside = Part(
        name="newcomer",
        prompt_tokens=long_tokens,
        output_tokens=8,
        after="running",
        after_tokens=before,
    )
    settings = session.settings(session.model(), 2, long_tokens + 400)
    sides = session.sides(settings, grpc=False)
    session.warm(sides, running)
    for number, side in session.turns(sides, 3, within_s=220):
        if side.name == OURS_REST:
            report, _ = session.send(side, newcomer, seed=1000 + number)
            alone_ms = report.of("newcomer")[0].arrivals_s[0] * 1000
            session.keep("gap", "idle", side.name, number, newcomer_first_token_ms=alone_ms)
        report, _ = session.send(side, running, beside, seed=1 + number)
        session.keep("gap", "a long prompt arrives", side.name, number, **gap_metrics(report))


def gap_metrics(report: Report) -> dict[str, float]:
    """Find the longest silence of the running stream between the newcomer's arrival and token."""
    running, newcomer = report.of("running")[0], report.of("newcomer")[0]
    arrived = newcomer.sent_s
    first = arrived + newcomer.arrivals_s[0]
    times = np.array(running.arrivals_s) + running.sent_s
    edges = np.concatenate([times[times < arrived][-1:], times[times >= arrived]])
    # Silences that begin before the newcomer has its first token; the last may end after that.
    silences = np.diff(edges)[edges[:-1] < first]
    before = np.diff(times[times < arrived])
    return {
        "gap_ms_worst": float(silences.max()) * 1000 if len(silences) else (first - arrived) * 1000,
        "gap_ms_before": float(np.median(before)) * 1000 if len(before) else 0.0,
        "tokens_meanwhile": float(np.sum((times >= arrived) & (times < first))),
        "newcomer_first_token_ms": newcomer.arrivals_s[0] * 1000,
    }


def shared_prefix(session: Session) -> None:
    """Send 8 requests together whose prompts begin with the same 1,000 tokens."""
    shared = 300 if session.options.quick else 1000
    part = Part(streams=8, prompt_tokens=shared + 16, shared_tokens=shared, output_tokens=48)
    settings = session.settings(session.model(), part.streams, part.prompt_tokens + 48)
    sides = session.sides(settings, grpc=False)
    session.warm(sides, Part(prompt_tokens=128, output_tokens=48))
    for number, side in session.turns(sides, 3, within_s=350):
        sent = session.send(side, part, seed=1 + number)
        check_whole(sent[0], part, side)
        session.keep_load("shared-prefix", "8 requests at once", side, number, sent)
