"""Run a real router with real processes on the demo model, and read its streams."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from appliance.config import Engine, Limits, Model
from appliance.domain import (
    ChatPrompt,
    Delta,
    Digest,
    Final,
    Message,
    ModelVersion,
    Origin,
    RequestId,
    SamplingOptions,
    StopOptions,
)
from appliance.errors import ApplianceError
from appliance.runtime import wire
from appliance.runtime.router import Job, Router, Ticket

DEMO_MODEL = Path(__file__).parents[2] / "appliance/models/demo/demo-2.q8_0.gguf"
WAIT_S = 120.0  # a bound, not a pace: machines are slow and shared
# One thread: on a shared machine two threads wait for each other more than they compute.
ENGINE = Engine(context_tokens=512, threads=1)
GREEDY = SamplingOptions(temperature=0.0)
DIGEST = Digest("sha256:" + "0" * 64)


def chat(text: str) -> ChatPrompt:
    """Say one thing as the user."""
    return ChatPrompt(messages=(Message(role="user", content=text),))


def demo_version(*, digest: Digest = DIGEST) -> ModelVersion:
    """Name the demo model; the router doesn't look at signatures."""
    return ModelVersion(
        model="demo",
        version="2",
        digest=digest,
        blob_bytes=DEMO_MODEL.stat().st_size,
        origin=Origin.LOCAL,
        key_id="test",
        signature="test",
    )


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()
        self.gauges: wire.EngineGauges | None = None
        self.losses: list[tuple[str, str]] = []
        self.events: list[tuple[str, dict[str, str | float | bool | None]]] = []

    def step(self, model: str, gauges: wire.EngineGauges) -> None:
        assert model
        self.gauges = gauges
        self.moved.set()

    def worker_lost(self, model: str, cause: str) -> None:
        self.losses.append((model, cause))
        self.moved.set()

    def event(self, name: str, **fields: str | float | bool | None) -> None:
        self.events.append((name, fields))
        self.moved.set()


class Stream:
    """One ticket being read, and what came of it."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.text = ""
        self.token_ids: list[int] = []
        self.final: Final | None = None
        self.error: ApplianceError | None = None
        self._moved = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.final is not None or self.error is not None

    async def read(self) -> None:
        try:
            async with contextlib.aclosing(self.ticket.events()) as events:
                async for event in events:
                    assert not self.ended
                    if isinstance(event, Delta):
                        self.text += event.text
                        self.token_ids += event.token_ids
                    elif isinstance(event, Final):
                        self.final = event
                    self._moved.set()
        except ApplianceError as error:
            self.error = error
        self._moved.set()

    async def has_tokens(self, count: int) -> None:
        """Wait until so many tokens have come, or the end."""
        async with asyncio.timeout(WAIT_S):
            while len(self.token_ids) < count and not self.ended:
                self._moved.clear()
                await self._moved.wait()


@dataclasses.dataclass
class Bench:
    """A running router that serves the demo model."""

    router: Router
    version: ModelVersion
    recorder: Recorder
    group: asyncio.TaskGroup

    @property
    def worker_pid(self) -> int:
        return self.router.models()[0].worker_pid

    async def job(
        self,
        text: str,
        *,
        max_tokens: int = 64,
        ignore_eos: bool = False,
        deadline_ms: float | None = None,
        sampling: SamplingOptions = GREEDY,
    ) -> Job:
        """Prepare one user message."""
        prepared = await self.router.prepare(self.version, chat(text))
        return Job(
            request_id=RequestId("test"),
            prompt_ids=prepared.token_ids,
            seed=7,
            sampling=sampling,
            stop=StopOptions(max_tokens=max_tokens, ignore_eos=ignore_eos),
            deadline_ms=deadline_ms,
        )

    def stream(self, job: Job) -> Stream:
        """Admit a job and read it in a task of its own."""
        stream = Stream(self.router.admit(self.version, job))
        self.group.create_task(stream.read())
        return stream

    async def ended(self, *streams: Stream) -> None:
        for stream in streams:
            await stream.has_tokens(1_000_000)

    async def lost(self, count: int) -> None:
        """Wait until so many processes were lost."""
        await self.until(lambda: len(self.recorder.losses) >= count)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the observer's news make true; bounded."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.recorder.moved.clear()
                await self.recorder.moved.wait()


@contextlib.asynccontextmanager
async def running(
    *,
    engine: Engine | None = None,
    limits: Limits | None = None,
    path: Path = DEMO_MODEL,
    pinned_systems: tuple[str, ...] = (),
) -> AsyncIterator[Bench]:
    """Serve a model until the block is left."""
    recorder = Recorder()
    router = Router(engine or ENGINE, limits or Limits(), recorder)
    version = demo_version()
    async with asyncio.TaskGroup() as group:
        group.create_task(router.run())
        try:
            settings = Model(path=str(path), pinned_systems=pinned_systems)
            await router.serve(version, path, settings)
            yield Bench(router, version, recorder, group)
        finally:
            await router.close()
