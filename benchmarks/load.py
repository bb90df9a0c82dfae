"""Put load on one server and time every token: the client's process.

What this room does: runs the parts of a load, each when it begins and until it ends; one JSON
object with the times of every request on stdout. The load comes as JSON on stdin.
What it knows: what is under way now, and who waits for whom.
What it never does: speak a protocol (`senders`), start a server, or compare.

It is a process of its own so that its CPU time is the client's and nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec

from benchmarks.senders import Send, sender
from benchmarks.traffic import Asked, Event, Load, Part, RefusedError, Report, Timed, asked

LOAD_S = 600.0  # what the loads of the suites may take
_START_S = 60.0


class _Run:
    """One load under way."""

    def __init__(self, load: Load, send: Send) -> None:
        self._load = load
        self._send = send
        self._began = time.perf_counter()
        self._limits: dict[str, asyncio.Timeout] = {}
        self._begins = {part.name: asyncio.Event() for part in load.parts if part.after}
        self.timed: list[Timed] = []

    async def run(self) -> None:
        """Send everything and wait for the last answer."""
        drawn = asked(self._load)
        self._began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for part in self._load.parts:
                group.create_task(self._part(part, drawn[part.name]))

    async def _part(self, part: Part, streams: list[list[Asked]]) -> None:
        if part.after:
            await self._begins[part.name].wait()
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(None) as self._limits[part.name],
                asyncio.TaskGroup() as all_,
            ):
                for number, requests in enumerate(streams):
                    all_.create_task(self._stream(requests, number * part.every_s))
        del self._limits[part.name]
        for other in self._load.parts:
            if other.until == part.name and other.name in self._limits:
                self._limits[other.name].reschedule(asyncio.get_running_loop().time())
        for name in self._followers(part):
            self._begins[name].set()  # whatever came of it: nobody waits for ever

    def _followers(self, part: Part, tokens: int | None = None) -> Iterator[str]:
        for other in self._load.parts:
            if other.after == part.name and (tokens is None or tokens >= other.after_tokens):
                yield other.name

    async def _stream(self, requests: list[Asked], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        for one in requests:
            await self._request(one)

    async def _request(self, one: Asked) -> None:
        sent = time.perf_counter()
        timed = Timed(
            part=one.part.name, number=one.number, sent_s=sent - self._began, arrivals_s=[]
        )
        self.timed.append(timed)
        try:
            async with asyncio.timeout(one.part.within_s or None):
                async with contextlib.aclosing(self._send(one)) as events:
                    async for event in events:
                        self._arrived(one.part, timed, event, time.perf_counter() - sent)
        except RefusedError as error:
            timed.error = str(error)
            if not self._load.may_fail:
                raise
        except TimeoutError:
            if not one.part.within_s:
                raise
        finally:
            timed.total_s = time.perf_counter() - sent

    def _arrived(self, part: Part, timed: Timed, event: Event, after_s: float) -> None:
        if event.text:
            timed.arrivals_s.append(after_s)
            timed.text += event.text
            for name in self._followers(part, len(timed.arrivals_s)):
                self._begins[name].set()
        timed.finish = event.finish or timed.finish
        timed.output_tokens = event.tokens or timed.output_tokens


async def run(load: Load) -> Report:
    """Send everything and wait for the last answer; raises what `senders` raise."""
    async with sender(load) as send:
        work = _Run(load, send)
        cpu, began = _cpu_s(), time.perf_counter()
        await work.run()
        wall_s, client_cpu_s = time.perf_counter() - began, _cpu_s() - cpu
    return Report(wall_s=wall_s, client_cpu_s=client_cpu_s, requests=work.timed)


def run_load(load: Load) -> Report:
    """Run a load in a process of its own and wait for it.

    Raises RuntimeError with the end of what it said on stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=msgspec.json.encode(load),
        capture_output=True,
        check=False,
        timeout=load.timeout_s + _START_S,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return msgspec.json.decode(done.stdout, type=Report)


def run_here(load: Load) -> Report:
    """Run a load in this process; raises as `run_load`."""
    try:
        return asyncio.run(run(load))
    except ExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise RuntimeError(f"{type(first).__name__}: {first}") from group


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the load that stdin describes."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(load))))


if __name__ == "__main__":
    main()
