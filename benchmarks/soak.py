"""Load the appliance with everything at once for long: `python -m benchmarks.soak` (`make soak`).

What this room does: starts it on the demo model with few KV cells, lets the clients of `mix` at it
for so many minutes, reads its processes every second, and at the end checks that memory was flat
and that no cell, ticket or file is left; exits with 0 only if all checks hold.
What it knows: when the server is idle, and that files are compared idle with idle.
What it never does: run longer than it was asked to, but for the last answers.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import click
import msgspec
import psutil

from benchmarks.checks import Check, Reading, files, memory, nothing_left
from benchmarks.gauges import KV_USED, PREEMPTIONS, RESTARTS, RUNNING, WAITING, Gauges, read
from benchmarks.harness import machine
from benchmarks.mix import Mix
from benchmarks.servers import CORES, Running, Settings, appliance
from benchmarks.suites.schemas import DEMO
from tools.gguf_writer import write_lora

CELLS = 2048  # two requests as long as the context: pressure is the rule here
_READ_S = 1.0
_IDLE_S, _POLL_S = 90.0, 0.1
_ADAPTER = "soak"


class Results(msgspec.Struct, kw_only=True):
    """The file that is kept."""

    command: str
    machine: dict[str, str]
    minutes: float
    outcomes: dict[str, dict[str, int]]  # kind of client → how its requests ended → how many
    unexpected: list[str]  # the first ends that none should have
    preemptions: float
    checks: list[Check]
    readings: list[Reading]


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.05, max=600), default=60, show_default=True)
@click.option("--seed", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=CORES)
@click.option("--out", type=click.Path(path_type=Path), help="Keep soak.json in this folder.")
def main(*, minutes: float, seed: int, threads: int, out: Path | None) -> None:
    """Put mixed load on the appliance for so many minutes and check that it leaves no trace."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stops the server
    results = soak(minutes=minutes, seed=seed, threads=threads)
    for kind, ends in results.outcomes.items():
        click.echo(f"{kind}: {', '.join(f'{count} {end}' for end, count in sorted(ends.items()))}")
    click.echo(f"preemptions: {results.preemptions:.0f}")
    for words in results.unexpected:
        click.echo(f"unexpected: {words}")
    for check in results.checks:
        click.echo(check.line)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        data = msgspec.json.format(msgspec.json.encode(results), indent=1)
        (out / "soak.json").write_bytes(data + b"\n")
    sys.exit(0 if all(check.holds for check in results.checks) else 1)


def soak(*, minutes: float, seed: int, threads: int) -> Results:
    """Run it; blocks for so many minutes and some seconds."""
    facts = machine()
    model = DEMO / "demo-2.q8_0.gguf"
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        scratch = Path(place)
        adapters = ((_ADAPTER, scratch / "soak.gguf"),)
        write_lora(adapters[0][1], model, seed=seed)
        settings = Settings(model=model, threads=threads, streams=0, cells=CELLS, adapters=adapters)
        with appliance(settings, scratch) as server:
            work = _Soak(server, Mix(server, seed, _ADAPTER))
            asyncio.run(work.run(minutes * 60))
    return Results(
        command=" ".join(["python -m benchmarks.soak", *sys.argv[1:]]),
        machine=facts,
        minutes=minutes,
        outcomes=work.mix.outcomes,
        unexpected=work.mix.unexpected,
        preemptions=work.preemptions,
        checks=work.checks,
        readings=work.readings,
    )


class _Soak:
    """One run."""

    def __init__(self, server: Running, mix: Mix) -> None:
        self.mix = mix
        self.readings: list[Reading] = []
        self.checks: list[Check] = []
        self.preemptions = 0.0
        self._server = server
        self._began = time.monotonic()

    async def run(self, seconds: float) -> None:
        """Warm every way up once, load until the time is over, and look what is left."""
        async with aiohttp.ClientSession(self._server.url) as http:
            await self.mix.once()
            before, _ = await self._idle(http)
            reader = asyncio.ensure_future(self._read())
            try:
                await self.mix.run(seconds)
            finally:
                reader.cancel()
            after, gauges = await self._idle(http, before)
        self.preemptions = gauges[PREEMPTIONS]
        unexpected = sum(ends.get("unexpected", 0) for ends in self.mix.outcomes.values())
        held = {
            "requests running": gauges[RUNNING],
            "requests waiting": gauges[WAITING],
            "KV cells held": gauges[KV_USED],
            "workers lost": gauges[RESTARTS],
            "requests that ended as none should": float(unexpected),
        }
        self.checks = [*memory(self.readings), *files(before, after), *nothing_left(held)]

    async def _read(self) -> None:
        while True:
            self.readings.append(self._reading())
            await asyncio.sleep(_READ_S)

    def _reading(self) -> Reading:
        rss: dict[str, int] = {}
        count: dict[str, int] = {}
        for kind, process in self._server.processes():
            try:
                rss[kind], count[kind] = process.memory_info().rss, process.num_fds()
            except psutil.NoSuchProcess:
                continue  # a text process that was replaced this moment
        return Reading(at_s=time.monotonic() - self._began, rss_bytes=rss, files=count)

    async def _idle(
        self, http: aiohttp.ClientSession, before: Reading | None = None
    ) -> tuple[Reading, Gauges]:
        """Wait until nothing runs and the files are those of `before`, or say what there is."""
        began = time.monotonic()
        while True:
            gauges, reading = await read(http), self._reading()
            is_idle = not (gauges[RUNNING] or gauges[WAITING] or gauges[KV_USED])
            is_closed = before is None or all(one.holds for one in files(before, reading))
            if (is_idle and is_closed) or time.monotonic() - began > _IDLE_S:
                return reading, gauges
            await asyncio.sleep(_POLL_S)


if __name__ == "__main__":
    main()
