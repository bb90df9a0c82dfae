"""Be many clients at once, each with a habit of its own.

What this room does: plain streams over both faces, chats held to schemas, long prompts, clients
that go in the middle of an answer, bursts beyond the KV cells, requests that must be refused, and
an adapter; each again and again, drawn from the seed.
What it knows: how the requests of each habit may end.
What it never does: wait for ever (every request has a time limit), or stop others when one breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.senders import Send, sender
from benchmarks.servers import Running
from benchmarks.suites.schemas import BOUNDED, questions
from benchmarks.traffic import Asked, Load, Part, RefusedError

REQUEST_S = 300.0
CONTEXT_TOKENS = 1024  # of the demo model
TOKEN_IDS = (300, 2000)
_BURST = 12
_PAUSE_S = 0.1  # a refusal takes a millisecond: without a pause it would be all there is
_UNEXPECTED_MAX = 20  # of which the words are kept
_REFUSALS = ("400:", "INVALID_ARGUMENT:")
_FULL = ("429:", "RESOURCE_EXHAUSTED:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """One kind of client: what it asks, how, and whether it goes before the end."""

    name: str
    way: str
    ask: Callable[[random.Random], Asked]
    clients: int = 1
    at_once: int = 1
    deltas_max: int = 0  # it goes after at most so many; 0: it stays
    refused: bool = False  # it must be


class Mix:
    """The clients of one server."""

    def __init__(self, server: Running, seed: int, adapter: str) -> None:
        """Draw from `seed`; `adapter` names one that is served."""
        self._server = server
        self._rng = random.Random(seed)
        self._habits = habits(adapter)
        self.outcomes: dict[str, dict[str, int]] = {one.name: {} for one in self._habits}
        self.unexpected: list[str] = []

    async def once(self) -> None:
        """Let each habit have one turn, at the same time."""
        await self._all(lambda: False)

    async def run(self, seconds: float) -> None:
        """Let all clients go on until the time is over; waits for their last answers."""
        end = time.monotonic() + seconds
        await self._all(lambda: time.monotonic() < end)

    async def _all(self, go_on: Callable[[], bool]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            sends = {
                way: await stack.enter_async_context(sender(self._load(way)))
                for way in ("rest", "grpc")
            }
            async with asyncio.TaskGroup() as group:
                for habit in self._habits:
                    for _ in range(habit.clients):
                        rng = random.Random(self._rng.random())
                        group.create_task(self._client(habit, sends[habit.way], rng, go_on))

    def _load(self, way: str) -> Load:
        server = self._server
        return Load(
            way=way,
            target=server.url if way == "rest" else server.socket,
            parts=(),
            first_token_id=TOKEN_IDS[0],
            last_token_id=TOKEN_IDS[1],
            seed=0,
            timeout_s=REQUEST_S,
        )

    async def _client(
        self, habit: Habit, send: Send, rng: random.Random, go_on: Callable[[], bool]
    ) -> None:
        while True:
            async with asyncio.TaskGroup() as group:
                for _ in range(habit.at_once):
                    leave_after = rng.randint(1, habit.deltas_max) if habit.deltas_max else 0
                    group.create_task(self._request(habit, send, habit.ask(rng), leave_after))
            if not go_on():
                return
            if habit.refused:
                await asyncio.sleep(_PAUSE_S)

    async def _request(self, habit: Habit, send: Send, asked: Asked, leave_after: int) -> None:
        try:
            end = await _end(send, asked, leave_after)
        except RefusedError as error:
            end = "refused" if str(error).startswith(_REFUSALS) else str(error)
            end = "full" if str(error).startswith(_FULL) else end
        except TimeoutError:
            end = f"no end within {REQUEST_S:.0f} s"
        is_right = (end == "refused") == habit.refused and end in {"ended", "left", "refused"}
        if not (is_right or end == "full"):
            if len(self.unexpected) < _UNEXPECTED_MAX:
                self.unexpected.append(f"{habit.name}: {end[:300]}")
            end = "unexpected"
        ends = self.outcomes[habit.name]
        ends[end] = ends.get(end, 0) + 1


async def _end(send: Send, asked: Asked, leave_after: int) -> str:
    """Send one request and read it, to its end or until the client goes."""
    seen, finish = 0, ""
    async with contextlib.aclosing(send(asked)) as events:
        async for event in events:
            seen += bool(event.text)
            finish = event.finish or finish
            if leave_after and seen >= leave_after:
                return "left"
    return "ended" if finish else "no finish reason"


def habits(adapter: str) -> tuple[Habit, ...]:
    """List the kinds of clients."""
    return (
        Habit(name="plain, REST", way="rest", ask=_tokens(16, 200, 64), clients=2),
        Habit(name="plain, gRPC", way="grpc", ask=_tokens(16, 200, 64), clients=2),
        Habit(name="long prompts", way="grpc", ask=_tokens(500, 900, 32)),
        Habit(name="chats", way="rest", ask=_chat(schema=False)),
        Habit(name="schemas", way="rest", ask=_chat(schema=True), clients=2),
        Habit(name="goes, REST", way="rest", ask=_tokens(64, 300, 128), deltas_max=12),
        Habit(name="goes, gRPC", way="grpc", ask=_tokens(64, 300, 128), deltas_max=12),
        Habit(
            name="bursts of class batch",
            way="rest",
            ask=_tokens(100, 500, 48, priority="batch", user="bursts"),
            at_once=_BURST,
        ),
        Habit(
            name="too long, REST",
            way="rest",
            ask=_tokens(CONTEXT_TOKENS + 1, CONTEXT_TOKENS + 9, 1),
            refused=True,
        ),
        Habit(
            name="too long, gRPC",
            way="grpc",
            ask=_tokens(CONTEXT_TOKENS + 1, CONTEXT_TOKENS + 9, 1),
            refused=True,
        ),
        Habit(name="adapter", way="rest", ask=_tokens(16, 200, 48, adapter=adapter)),
    )


def _tokens(least: int, most: int, output: int, **body: Any) -> Callable[[random.Random], Asked]:  # noqa: ANN401 - fields of a body
    part = Part(output_tokens=output, body=body)

    def ask(rng: random.Random) -> Asked:
        count = rng.randint(least, most)
        return Asked(part=part, number=0, token_ids=rng.choices(range(*TOKEN_IDS), k=count))

    return ask


def _chat(*, schema: bool) -> Callable[[random.Random], Asked]:
    said = questions()
    part = Part(output_tokens=200, ignore_eos=False, body={"temperature": 1.0})

    def ask(rng: random.Random) -> Asked:
        held = rng.choice(BOUNDED) if schema else None
        return Asked(part=part, number=0, token_ids=[], chat=rng.choice(said), schema=held)

    return ask
