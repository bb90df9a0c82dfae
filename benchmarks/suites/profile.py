"""Find out where the time of a step goes.

What this room does: the suite `profile`, which has no bar: the parts of a step in the engine alone
(C, planning, drawing, frames), and beside it what daemon and client spend on each token when the
same load comes over gRPC and over REST.
What it knows: that C is `llama_decode`; all other parts are Python's share of a step.
What it never does: judge.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec

from benchmarks.harness import Session
from benchmarks.load import LOAD_S
from benchmarks.samples import case_of
from benchmarks.stepping import Order, Steps
from benchmarks.suites.throughput import check_whole
from benchmarks.traffic import Part

# shape and streams
_LOADS = (("15M", 1), ("15M", 8), ("15M", 32), ("160M", 8), ("1B", 8))
_LOADS_QUICK = (("15M", 4),)
_PROMPT, _OUTPUT = 128, 48
_SIDES = {"decode": "a decode step", "prompt": "a step with prompts"}


def profile(session: Session) -> None:
    """Time the parts of steps, and count the CPU time around them."""
    for shape, streams in _LOADS_QUICK if session.options.quick else _LOADS:
        case = f"{shape}, {case_of(streams)}"
        settings = session.settings(session.model(shape), streams, _PROMPT + _OUTPUT)
        order = Order(
            model=str(settings.model),
            cells=settings.cells,
            threads=settings.threads,
            streams=streams,
            prompt_tokens=_PROMPT,
            output_tokens=_OUTPUT,
            first_token_id=session.token_ids[0],
            last_token_id=session.token_ids[1],
            seed=session.options.seed,
        )
        for kind, steps in step_times(order).items():
            python_ms = steps.step_ms - steps.parts_ms["llama_decode"]
            session.keep(
                "profile",
                case,
                _SIDES[kind],
                0,
                steps=float(steps.count),
                rows=steps.rows,
                step_ms=steps.step_ms,
                **{f"{part}_ms": spent for part, spent in steps.parts_ms.items()},
                python_percent=100.0 * python_ms / steps.step_ms,
            )
    _around(session)


def _around(session: Session) -> None:
    """Send 8 streams to a model of short steps over both faces: what do the processes spend?"""
    part = Part(streams=8, requests=1, prompt_tokens=_PROMPT, output_tokens=_OUTPUT)
    settings = session.settings(session.model("15M"), part.streams, _PROMPT + _OUTPUT)
    sides = session.sides(settings)
    session.warm(sides, part)
    for number, side in session.turns(sides, 3, within_s=30):
        sent = session.send(side, part, seed=1 + number)
        check_whole(sent[0], part, side)
        session.keep_load("profile of the processes", "15M, 8 streams", side, number, sent)


def step_times(order: Order) -> dict[str, Steps]:
    """Run the engine in a process of its own; raises RuntimeError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stepping"],
        input=msgspec.json.encode(order),
        capture_output=True,
        check=False,
        timeout=LOAD_S,
    )
    if done.returncode:
        raise RuntimeError(f"stepping: {done.stderr.decode(errors='replace')[-1000:]}")
    return msgspec.json.decode(done.stdout, type=dict[str, Steps])
