"""Go back to a version that is not loaded, whose file is in the page cache: how long does it take?

What this room does: the suite `rollback-cached`, with and without a spare worker.
What it knows: a rollback ends when a new request is accepted by the old version; loading from the
page cache is measured alone, in a worker with its imports done.
What it never does: measure the way through a face: what is measured is the load.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from appliance.clock import monotonic_ms
from appliance.config import Engine, Hosting, Limits, Model, Scheduling
from appliance.domain import ModelVersion
from appliance.runtime import wire
from appliance.runtime.devices import cores_available
from appliance.runtime.loadable import read_options
from appliance.runtime.process import Child
from benchmarks.bars import Bar
from benchmarks.versions.bench import Bench
from benchmarks.versions.two_versions import Answered, TwoVersions, two_versions
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

SUITE = "rollback-cached"
OURS, SPARE, NO_SPARE = "ours", "with a spare", "without a spare"
DEMO = Path(__file__).resolve().parents[2] / "appliance" / "models" / "demo" / "demo-2.q8_0.gguf"
NEW_TOKENS = 4
_ROUNDS = 5
_SPARE_S = 30.0
_WAIT_S = 120.0
_LOADS = 3
_TICK_S = 0.05
_IMPORTS_S = 3.0  # a new worker has done its imports by then
_CASES = ("demo model", "1B shape")

BARS: tuple[Bar, ...] = tuple(
    Bar(suite=SUITE, case=case, metric="beyond_load_ms", side=side, at_most=at_most)
    for case in _CASES
    for side, at_most in ((SPARE, 200.0), (NO_SPARE, 800.0))
)


def measure(bench: Bench) -> None:
    """Switch back to a version that is not loaded, whose file is in the page cache."""
    for case in _CASES[:1] if bench.short else _CASES:
        path = DEMO if case == _CASES[0] else _written(bench, "1B")
        for number in bench.rounds(_ROUNDS):
            for side in (SPARE, NO_SPARE)[:: -1 if number % 2 else 1]:
                asyncio.run(_cached(bench, case, path, side, number))


async def _cached(bench: Bench, case: str, path: Path, side: str, number: int) -> None:
    """Load the new version instead of the old one, then go back."""
    has_spare = side == SPARE
    hosting = Hosting(spare_worker=has_spare, standby_level="h1")
    async with two_versions(bench.scratch, path, _engine(), hosting) as t:
        await t.router.serve(t.new, t.path, t.settings, active=False)
        await t.host.switch(t.old.model, t.new.digest, t.old.digest)
        await t.standbys.look()
        (status,) = t.standbys.statuses()
        if t.router.served(t.old.digest) is not None or status.resident_ratio < 1.0:
            raise RuntimeError("the old version is not in the page cache alone")
        await _settled(t, has_spare=has_spare)
        took_ms, _, one = await _switched(t, t.old)
        if one.failed:
            raise RuntimeError("a request failed")
    load_ms = float(np.median([await _load_alone(path) for _ in range(_LOADS)]))
    bench.keep(
        SUITE,
        case,
        side,
        number,
        took_ms=took_ms,
        load_ms=load_ms,
        beyond_load_ms=took_ms - load_ms,
    )


async def _switched(t: TwoVersions, to: ModelVersion) -> tuple[float, float, Answered]:
    """Switch, and ask: the times are from the command."""
    began_ms = monotonic_ms()
    await t.host.switch(to.model, to.digest, t.old.digest if to == t.new else t.new.digest)
    return await _one(t, to, began_ms)


async def _one(
    t: TwoVersions, version: ModelVersion, began_ms: float
) -> tuple[float, float, Answered]:
    """Ask for a few tokens of the version that answers now; times from began_ms, in ms."""
    async with asyncio.timeout(_WAIT_S):
        answered, task = t.ask(NEW_TOKENS)
        await task
    if not answered.failed and answered.versions[:1] != [version.label]:
        raise RuntimeError(f"accepted by {answered.versions}, not by {version.label}")
    return answered.accepted_ms - began_ms, answered.first_token_ms - began_ms, answered


async def _settled(t: TwoVersions, *, has_spare: bool) -> None:
    """Wait until the spare worker sleeps, and the machine with it."""
    async with asyncio.timeout(_SPARE_S):
        while has_spare and not t.router.spare_pid:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(_TICK_S)
    await asyncio.sleep(_IMPORTS_S)


async def _load_alone(path: Path) -> float:
    """Measure how long a worker with its imports done takes to load the file, in ms."""
    child: Child[wire.FromWorker] = await Child.start("worker", wire.FromWorker, stop_wait_s=2.0)
    try:
        await asyncio.sleep(_IMPORTS_S)
        options = read_options(
            path,
            Model(path=str(path)),
            _engine(),
            Limits(),
            Scheduling(),
            threads=cores_available(),
        )
        began_ms = monotonic_ms()
        child.send(wire.Start(protocol_version=wire.PROTOCOL_VERSION, engine=options))
        async with asyncio.timeout(_WAIT_S):
            while (frames := await child.receive()) is not None:
                if any(isinstance(frame, wire.Ready) for frame in frames):
                    return monotonic_ms() - began_ms
        raise RuntimeError("the worker ended while loading")
    finally:
        await child.end()


def _engine() -> Engine:
    return Engine(context_tokens=1024, sequences_max=16)


def _written(bench: Bench, shape: str) -> Path:
    path = bench.scratch / f"{shape}.gguf"
    if not path.exists():
        write_llama(path, SHAPES[shape], byte_vocabulary(), Quantisation.Q4_K_M)
    return path
