"""Measure which share of a step constraints take: `python -m tools.mask_share MODEL.gguf`.

What this room does: runs eight streams of a real model, free and constrained, greedy and at
temperature 1, and prints the thread's CPU time of a step and what of it masks took.
What it knows: the engine as a worker has it, with one thread; CPU time, since others use the box.
What it never does: measure throughput (the benchmarks do).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from appliance.clock import monotonic_ms
from appliance.domain import Constraint, ConstraintKind, SamplingOptions, StopOptions
from appliance.runtime import wire
from appliance.runtime.constrain import Matcher
from appliance.runtime.engine import Engine
from appliance.runtime.loading import load

STREAMS = 8
_MS = 1000.0
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 200},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "bb", "ccc"]}, "maxItems": 3},
        "text": {"type": "string", "maxLength": 400},
    },
    "required": ["name", "age", "tags", "text"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "none": None,
    "schema": Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(_SCHEMA)),
    "regex": Constraint(kind=ConstraintKind.REGEX, text="[a-z ]{200,400}"),
}


@contextmanager
def timed(spent_ms: list[float]) -> Iterator[None]:
    """Add up the CPU time of every mask, question and step of a matcher."""
    kept = {name: getattr(Matcher, name) for name in ("allowed", "allows", "accept")}

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:  # noqa: ANN401 - of any method
            began = time.thread_time()
            try:
                return call(*arguments)
            finally:
                spent_ms[0] += (time.thread_time() - began) * _MS

        return run

    for name, call in kept.items():
        setattr(Matcher, name, wrapped(call))
    try:
        yield
    finally:
        for name, call in kept.items():
            setattr(Matcher, name, call)


def measure(
    engine: Engine, constraint: Constraint | None, temperature: float, steps: int, first: int
) -> tuple[float, float]:
    """Run eight streams for so many steps; returns (step, masks) in ms of CPU time a step."""
    for stream in range(STREAMS):
        submit = wire.Submit(
            ticket=first + stream,
            prompt_ids=tuple(range(10 + stream, 26 + stream)),
            n=1,
            seed=first + stream,
            sampling=SamplingOptions(temperature=temperature),
            stop=StopOptions(max_tokens=steps + 8),
            constraint=constraint,
        )
        engine.submit(submit)
    engine.step()
    spent_ms = [0.0]
    ran = 0
    began = time.thread_time()
    with timed(spent_ms):
        while engine.has_work and ran < steps:
            engine.step()
            ran += 1
    total_ms = (time.thread_time() - began) * _MS
    for stream in range(STREAMS):
        engine.cancel(first + stream)
    engine.step()
    return total_ms / ran, spent_ms[0] / ran


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--steps", default=32, show_default=True, help="Steps of each case.")
def main(model: Path, steps: int) -> None:
    """Print one line for each temperature and constraint."""
    options = wire.EngineOptions(
        path=str(model.resolve()),
        context_tokens=1024,
        cells_total=1024 * STREAMS,
        sequences_max=STREAMS,
        batch_tokens=512,
        threads_decode=1,
        threads_prefill=1,
        gpu_layers=0,
        step_ms_while_streaming=300.0,
        step_ms_max=1000.0,
        queue_requests_max=2 * STREAMS,
        output_reserve_tokens=16,
        ack_window_steps=16,
        cache_layout="unified",
    )
    engine = load(options, monotonic_ms, lambda _ratio: None).engine
    first = 1
    for temperature in (0.0, 1.0):
        for name, constraint in CONSTRAINTS.items():
            step_ms, masks_ms = measure(engine, constraint, temperature, steps, first)
            first += STREAMS
            click.echo(
                f"temperature {temperature:g}  {name:6}  step {step_ms:8.2f} ms  "
                f"masks {masks_ms:6.3f} ms  {masks_ms / step_ms:6.2%}"
            )


if __name__ == "__main__":
    main()
