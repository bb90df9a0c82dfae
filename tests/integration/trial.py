"""Two versions of the demo model in one appliance, asked through the use case of both faces."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from appliance.access.audit import Audit
from appliance.access.keys import Keyring
from appliance.api.generate import Service
from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Access, Engine, Hosting, Limits, Model
from appliance.config import Store as StoreSettings
from appliance.domain import (
    Accepted,
    Client,
    ClientKind,
    Delta,
    Digest,
    Final,
    GenerateRequest,
    ModelVersion,
    RequestId,
    SamplingOptions,
    StopOptions,
)
from appliance.errors import ApplianceError
from appliance.observe.metrics import Metrics
from appliance.runtime.router import Router
from appliance.store import Store
from tests.integration.bench import DEMO_MODEL, ENGINE, WAIT_S, chat, demo_version

_HOSTING = Hosting(spare_worker=False)
CLIENT = Client(id="application", kind=ClientKind.API_KEY)


def edition(number: int) -> ModelVersion:
    """Name the demo model's file as one of several versions of it."""
    digest = Digest(f"sha256:{number:064x}")
    return msgspec.structs.replace(demo_version(digest=digest), version=str(number))


OLD, NEW = edition(1), edition(2)


class Asked:
    """One request being answered, and what came of it."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.accepted_ms: list[float] = []
        self.text = ""
        self.token_ids: list[int] = []
        self.final: Final | None = None
        self.error: ApplianceError | None = None
        self._moved = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.final is not None or self.error is not None

    async def read(self, service: Service, client: Client, request: GenerateRequest) -> None:
        try:
            async with contextlib.aclosing(service.generate(client, request)) as events:
                async for event in events:
                    assert not self.ended
                    if isinstance(event, Accepted):
                        assert not self.token_ids, "another version took over an answer"
                        self.versions.append(event.version)
                        self.accepted_ms.append(monotonic_ms())
                    elif isinstance(event, Delta):
                        self.text += event.text
                        self.token_ids += event.token_ids
                    elif isinstance(event, Final):
                        self.final = event
                    self._moved.set()
        except ApplianceError as error:
            self.error = error
        self._moved.set()

    async def has(self, *, versions: int = 0, tokens: int = 0) -> None:
        """Wait until it was accepted so often and has so many tokens, or has ended."""
        async with asyncio.timeout(WAIT_S):
            while not self.ended and (
                len(self.versions) < versions or len(self.token_ids) < tokens
            ):
                self._moved.clear()
                await self._moved.wait()

    async def done(self) -> None:
        await self.has(tokens=1_000_000)


@dataclasses.dataclass
class Trial:
    """A router with both versions loaded, OLD active, and the use case in front of it."""

    router: Router
    service: Service
    metrics: Metrics
    group: asyncio.TaskGroup
    numbers: itertools.count[int] = dataclasses.field(default_factory=itertools.count)

    def ask(
        self,
        text: str = "hello",
        *,
        model: str = "demo",
        tokens: int = 64,
        client: Client = CLIENT,
        adapter: str = "",
    ) -> Asked:
        """Ask for exactly so many tokens, in a task of its own."""
        asked = Asked()
        request = GenerateRequest(
            request_id=RequestId(f"trial-{next(self.numbers)}"),
            model=model,
            prompt=chat(text),
            sampling=SamplingOptions(temperature=0.0),
            stop=StopOptions(max_tokens=tokens, ignore_eos=True),
            adapter=adapter,
        )
        self.group.create_task(asked.read(self.service, client, request))
        return asked

    def pid(self, version: ModelVersion) -> int:
        return next(
            s.worker_pid for s in self.router.models() if s.version.digest == version.digest
        )


@contextlib.asynccontextmanager
async def on_trial(
    place: Path,
    *,
    engine: Engine | None = None,
    limits: Limits | None = None,
    hosting: Hosting = _HOSTING,
) -> AsyncIterator[Trial]:
    """Load both versions until the block is left."""
    engine, limits = engine or ENGINE, limits or Limits()
    metrics = Metrics(version="test", series_max=256)
    router = Router(engine, limits, metrics, hosting=hosting)
    store = Store(place / "events.db", (), StoreSettings())
    keyring = Keyring(Access(), ())
    audit = Audit(store, StoreSettings(), utc_ms)
    service = Service(router, audit, metrics, limits, keyring=keyring, clock=monotonic_ms)
    settings = Model(path=str(DEMO_MODEL))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(router.run())
            try:
                await router.serve(OLD, DEMO_MODEL, settings)
                await router.serve(NEW, DEMO_MODEL, settings, active=False)
                yield Trial(router, service, metrics, group)
            finally:
                await router.close()
    finally:
        await asyncio.to_thread(store.close, WAIT_S)
