"""Measure what many long chats that arrive do to streams that run.

What this room does: the suite `chats`: 20 chats of some 2,000 tokens arrive each second, whether
or not the former ones were answered, beside four running streams.
What it knows: that this is more than any engine of this size can evaluate: each chat is of class
batch, wants one token, and is given up by its client after a second. Measured is what rendering,
tokenising, admitting and dropping them costs those who run.
What it never does: count tokens that came before the first chat or after the last.
"""

from __future__ import annotations

import random

import numpy as np

from benchmarks.harness import Session, Side
from benchmarks.samples import OURS_REST
from benchmarks.traffic import Part, Report

ALONE_CASE, BESIDE_CASE = "4 streams alone", "beside 20 long chats a second"
_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
_WORDS = (
    "supply",
    "in",
    "the",
    "north",
    "was",
    "late",
    "prices",
    "rose",
    "while",
    "demand",
    "fell",
)
_CHAT_WORDS = 1600
_PER_S, _FOR_S = 20, 10


def chats(session: Session) -> None:
    """Let long chats arrive beside running streams; compare the time between their tokens."""
    quick = session.options.quick
    rng = random.Random(session.options.seed)
    count = _PER_S if quick else _PER_S * _FOR_S
    words = 60 if quick else _CHAT_WORDS
    texts = tuple(" ".join(rng.choices(_WORDS, k=words)) for _ in range(count))
    running = Part(name="running", streams=4, prompt_tokens=64, output_tokens=100 if quick else 300)
    beside = Part(
        name="running",
        streams=4,
        prompt_tokens=64,
        output_tokens=600 if quick else 1500,
        until="chats",
    )
    arriving = Part(
        name="chats",
        streams=count,
        every_s=1.0 / _PER_S,
        within_s=1.0,
        output_tokens=1,
        chats=texts,
        after="running",
        after_tokens=8,
        body={"priority": "batch", "user": "chats"},
    )
    model = session.model("160M", template=_TEMPLATE)
    settings = session.settings(model, 5, 2500)
    side = Side(name=OURS_REST, server=session.ours(settings), way="rest")
    session.warm([side], running)
    for number in session.rounds(3, within_s=70):
        report, _ = session.send(side, running, seed=1000 + number)
        session.keep("chats", ALONE_CASE, side.name, number, **during(report))
        report, _ = session.send(side, beside, arriving, seed=1 + number, may_fail=True)
        session.keep("chats", BESIDE_CASE, side.name, number, **during(report))


def during(report: Report) -> dict[str, float]:
    """Find the time between tokens of the running streams while chats arrive, if any do."""
    arriving = report.of("chats")
    begins = min((one.sent_s for one in arriving), default=0.0)
    ends = max((one.sent_s for one in arriving), default=report.wall_s)
    gaps = []
    for one in report.of("running"):
        if one.error:
            raise RuntimeError(f"a running stream failed: {one.error}")
        times = np.array(one.arrivals_s) + one.sent_s
        gaps.append(np.diff(times[(times >= begins) & (times <= ends)]) * 1000)
    inside = np.concatenate(gaps)
    if not len(inside):
        raise RuntimeError("no token came while chats arrived")
    found = {"gap_ms": float(np.median(inside)), "gap_ms_p95": float(np.percentile(inside, 95))}
    if arriving:
        found |= {
            "chats_sent": float(len(arriving)),
            "chats_answered": float(sum(one.is_whole for one in arriving)),
            "chats_refused": float(sum(bool(one.error) for one in arriving)),
        }
    return found
