"""Measure how soon a cancelled request has given back its KV cells.

What this room does: the suite `cancel`: while another stream keeps the steps coming, a request is
dropped by its client (REST) or cancelled (gRPC), and the gauges are read until its cells are free.
What it knows: the step that is under way when a client goes can't be stopped; the cells are free
before the next one, and its report is the first to say so. `steps` counts the reports after the
one of the step under way, so 1 is the least there can be.
What it never does: trust one cancel: each figure is the median of several.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from statistics import median

import aiohttp
from msgspec.structs import replace

from benchmarks.gauges import KV_USED, STEPS, Gauges, read
from benchmarks.harness import Session, Side
from benchmarks.samples import OURS_GRPC, OURS_REST
from benchmarks.senders import Send, sender
from benchmarks.traffic import Asked, Load, Part, asked

CASE = "a running request"
_PROMPT, _OUTPUT = 128, 800
_DELTAS = 3  # of the victim, before it is cancelled
_WAIT_S, _POLL_S = 30.0, 0.01


def cancel(session: Session) -> None:
    """Cancel requests while they run; count steps until their cells are free."""
    quick = session.options.quick
    count = 2 if quick else 7
    model = session.model()
    settings = session.settings(model, 2, _PROMPT + _OUTPUT)
    server = session.ours(settings)
    for number in session.rounds(1, within_s=60):
        for name, way in ((OURS_GRPC, "grpc"), (OURS_REST, "rest")):
            side = Side(name=name, server=server, way=way)
            load = session.order(side, *_parts(count), seed=1 + number)
            found = asyncio.run(_cancels(load, server.url))
            steps, waits_ms = [one[0] for one in found], [one[1] for one in found]
            session.keep(
                *("cancel", CASE, name, number),
                steps=median(steps),
                steps_most=max(steps),
                free_after_ms=median(waits_ms),
            )


def _parts(count: int) -> tuple[Part, ...]:
    running = Part(name="running", prompt_tokens=_PROMPT, output_tokens=_OUTPUT)
    return running, replace(running, name="cancelled", requests=count)


async def _cancels(load: Load, url: str) -> list[tuple[float, float]]:
    """Cancel one request after another beside a running one; (steps, milliseconds) of each."""
    drawn = asked(load)
    begun = asyncio.Event()
    async with sender(load) as send, aiohttp.ClientSession(url) as http:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_drain(send, drawn["running"][0][0], begun))
            await begun.wait()
            found = [await _cancel(send, one, http) for one in drawn["cancelled"][0]]
            running.cancel()
        await _until_idle(http)
    return found


async def _cancel(send: Send, one: Asked, http: aiohttp.ClientSession) -> tuple[float, float]:
    events, seen = send(one), 0
    async for event in events:
        seen += bool(event.text)
        if seen >= _DELTAS:
            break
    before = await read(http)
    await events.aclose()  # REST: the connection closes; gRPC: the call is cancelled
    began = time.perf_counter()
    while time.perf_counter() - began < _WAIT_S:
        now = await read(http)
        steps = now[STEPS] - before[STEPS]
        given_back = before[KV_USED] - now[KV_USED] + steps  # the other stream took one a step
        if given_back >= one.part.prompt_tokens:
            return steps - 1.0, (time.perf_counter() - began) * 1000
    raise RuntimeError(f"the cells of a cancelled request are not free after {_WAIT_S:.0f} s")


async def _drain(send: Send, one: Asked, begun: asyncio.Event) -> None:
    async with contextlib.aclosing(send(one)) as events:
        async for event in events:
            if event.text:
                begun.set()  # from here on it takes one cell a step


async def _until_idle(http: aiohttp.ClientSession) -> Gauges:
    async with asyncio.timeout(_WAIT_S):
        while (now := await read(http))[KV_USED]:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(_POLL_S)
    return now
