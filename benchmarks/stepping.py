"""Run the engine in this process and time the parts of its steps.

What this room does: loads a model as a worker does, with the defaults of the configuration, gives
it so many requests, and runs steps until they end; how long each part of a step took comes as JSON
on stdout. What to run comes as JSON on stdin.
What it knows: which methods make up which part. They are replaced by timed ones; what a part calls
of another part counts there only, so the parts add up to the step.
What it never does: leave the daemon, sockets or threads in: only the engine is here, so a step is a
little shorter than in a worker, where a second thread moves frames.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from appliance.clock import monotonic_ms
from appliance.config import Engine as EngineConfig
from appliance.config import Limits
from appliance.domain import SamplingOptions, StopOptions
from appliance.runtime import wire
from appliance.runtime.cost import CostModel
from appliance.runtime.engine import Engine
from appliance.runtime.generation import Generation
from appliance.runtime.llama import Context
from appliance.runtime.loading import load
from appliance.runtime.scheduler import Scheduler

# part → whose methods. What is left of a step is its own part, "rest".
PARTS: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    ("llama_decode", Context, ("decode",)),
    ("logits", Context, ("logits",)),
    ("batch", Context, ("put", "put_singles", "want_row")),
    ("sequences", Context, ("copy", "remove")),
    ("plan", Scheduler, ("plan",)),
    ("fold_in", Scheduler, ("advance", "accept", "finish")),
    ("cost", CostModel, ("observe",)),
    ("draw", Generation, ("draw",)),
)
FRAMES, REST = "frames", "rest"
_STEPS_MAX = 100_000


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    model: str
    cells: int
    threads: int
    streams: int
    prompt_tokens: int
    output_tokens: int
    first_token_id: int
    last_token_id: int
    seed: int


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the steps of one kind: with prompt tokens in them, or with decode rows only."""

    count: int
    rows: float
    step_ms: float
    parts_ms: dict[str, float]


class Timers:
    """The time of the parts of one step; what is nested counts to the innermost part."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def wrap(self, owner: type, name: str, part: str) -> None:
        """Replace a method by one that is timed."""
        setattr(owner, name, self.timed(part, getattr(owner, name)))

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function, timed as `part`."""

        @functools.wraps(call)
        def run(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
            self._turn()
            self._open.append(part)
            try:
                return call(*arguments, **named)
            finally:
                self._turn()
                self._open.pop()

        return run

    def take(self) -> dict[str, float]:
        """Return the times since the last call, and begin anew."""
        found, self.spent_s = self.spent_s, {}
        return found

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            part = self._open[-1]
            self.spent_s[part] = self.spent_s.get(part, 0.0) + now - self._since
        self._since = now


def run(order: Order) -> dict[str, Steps]:
    """Load, warm up with one request, and step until all are done; blocks."""
    engine = _engine(order)
    _submit(engine, order, first_ticket=0, count=1, output_tokens=4)
    for _ in _while_working(engine):
        engine.step()
    timers = Timers()
    for part, owner, names in PARTS:
        found = [name for name in names if hasattr(owner, name)]
        assert found, f"{owner.__name__} has none of {names}: this table is out of date"
        for name in found:
            timers.wrap(owner, name, part)
    step = timers.timed(REST, engine.step)
    encode = timers.timed(FRAMES, wire.encode)
    _submit(engine, order, first_ticket=1, count=order.streams, output_tokens=order.output_tokens)
    kinds: dict[str, list[tuple[int, dict[str, float]]]] = {"prompt": [], "decode": []}
    for _ in _while_working(engine):
        frames = step()
        for frame in frames:
            encode(frame)
        gauges = frames[-1].gauges
        rows = gauges.prefill_tokens + gauges.decode_tokens
        spent = timers.take()
        if rows:  # the last step only tells how requests ended
            kinds["prompt" if gauges.prefill_tokens else "decode"].append((rows, spent))
    return {kind: _means(steps) for kind, steps in kinds.items() if steps}


def _while_working(engine: Engine) -> Iterator[int]:
    """Count steps as long as there is something to do; bounded."""
    for number in range(_STEPS_MAX):
        if not engine.has_work:
            return
        yield number


def _means(steps: list[tuple[int, dict[str, float]]]) -> Steps:
    parts = [*(part for part, _, _ in PARTS), FRAMES, REST]
    parts_ms = {
        part: sum(spent.get(part, 0.0) for _, spent in steps) * 1000 / len(steps) for part in parts
    }
    return Steps(
        count=len(steps),
        rows=sum(rows for rows, _ in steps) / len(steps),
        step_ms=sum(parts_ms.values()),
        parts_ms=parts_ms,
    )


def _engine(order: Order) -> Engine:
    """Build it with the configuration's defaults, as the router does."""
    defaults = EngineConfig()
    given = {
        name: getattr(defaults, name)
        for name in wire.EngineOptions.__struct_fields__
        if name in EngineConfig.__struct_fields__
    }
    given |= {
        "path": order.model,
        "context_tokens": order.cells,
        "cells_total": order.cells,
        "threads_decode": order.threads,
        "threads_prefill": order.threads,
        "gpu_layers": 0,
        "queue_requests_max": Limits().queue_requests,
    }
    return load(wire.EngineOptions(**given), monotonic_ms, lambda _: None).engine


def _submit(
    engine: Engine, order: Order, *, first_ticket: int, count: int, output_tokens: int
) -> None:
    rng = np.random.default_rng(order.seed + first_ticket)
    shape = (count, order.prompt_tokens)
    drawn = rng.integers(order.first_token_id, order.last_token_id, shape, endpoint=True)
    for number, prompt in enumerate(drawn.tolist()):
        engine.submit(
            wire.Submit(
                ticket=first_ticket + number,
                prompt_ids=tuple(prompt),
                n=1,
                seed=0,
                sampling=SamplingOptions(temperature=0.0),
                stop=StopOptions(max_tokens=output_tokens, ignore_eos=True),
            )
        )


def main() -> None:
    """Run what stdin orders."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    sys.stdout.buffer.write(msgspec.json.encode(run(order)))


if __name__ == "__main__":
    main()
