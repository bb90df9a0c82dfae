"""Run two versions of one file side by side, and ask them as an application would.

What this room does: router, standbys, host and use case in this process, workers in theirs; asks
for a known number of tokens, and keeps the times and the end of each request.
What it knows: both versions are the same file, so that only the switch differs.
What it never does: judge, or send anything over a socket of a face: what is measured is the switch.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

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
    Origin,
    RequestId,
    StopOptions,
    TextPrompt,
)
from appliance.errors import ApplianceError
from appliance.observe.metrics import Metrics
from appliance.runtime.host import Host
from appliance.runtime.router import Router
from appliance.runtime.standby import Standbys
from appliance.store import Store

MODEL = "bench"
PROMPT = "Tell me about the harbour of a small town in the north, its boats and its people."
STOP_S = 10.0
_CLIENT = Client(id="bench", kind=ClientKind.API_KEY)


@dataclass(slots=True)
class Answered:
    """One request: on which version it was accepted, when, and how it ended."""

    asked_tokens: int
    versions: list[str] = field(default_factory=list)
    accepted_ms: float = 0.0
    first_token_ms: float = 0.0
    tokens: int = 0
    failed: bool = False
    done: bool = False
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_cut(self) -> bool:
        """Tell whether it ended well, and short."""
        return self.done and not self.failed and self.tokens != self.asked_tokens


@dataclass(slots=True, kw_only=True)
class TwoVersions:
    """The appliance, `old` active and loaded, and a task group for requests."""

    router: Router
    host: Host
    standbys: Standbys
    service: Service
    old: ModelVersion
    new: ModelVersion
    path: Path
    settings: Model
    group: asyncio.TaskGroup
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def ask(self, tokens: int) -> tuple[Answered, asyncio.Task[None]]:
        """Ask for exactly so many tokens, in a task of its own."""
        answered = Answered(tokens)
        return answered, self.group.create_task(self._read(answered))

    async def _read(self, answered: Answered) -> None:
        number = next(self.numbers)
        request = GenerateRequest(
            request_id=RequestId(f"bench-{number}"),
            model=MODEL,
            prompt=TextPrompt(text=f"{number}. {PROMPT}"),
            stop=StopOptions(max_tokens=answered.asked_tokens, ignore_eos=True),
        )
        try:
            async with contextlib.aclosing(self.service.generate(_CLIENT, request)) as events:
                async for event in events:
                    if isinstance(event, Accepted):
                        answered.versions.append(event.version)
                        answered.accepted_ms = monotonic_ms()
                        answered.accepted.set()
                    elif isinstance(event, Delta) and event.token_ids:
                        answered.first_token_ms = answered.first_token_ms or monotonic_ms()
                        answered.tokens += len(event.token_ids)
                        answered.began.set()
                    answered.done = isinstance(event, Final)
        except ApplianceError:
            answered.failed = True
        answered.accepted.set()
        answered.began.set()


@contextlib.asynccontextmanager
async def two_versions(
    scratch: Path, path: Path, engine: Engine, hosting: Hosting
) -> AsyncIterator[TwoVersions]:
    """Serve the old version, and be ready to load the new one, until the block is left."""
    limits, settings = Limits(), Model(path=str(path))
    metrics = Metrics(version="bench", series_max=256)
    router = Router(engine, limits, metrics, hosting=hosting)
    standbys = Standbys(router, hosting, metrics)
    host = Host(router, standbys, (), hosting, limits=limits, memory_reserve_bytes=0)
    store = Store(scratch / "events.db", (), StoreSettings())
    service = Service(
        router,
        Audit(store, StoreSettings(), utc_ms),
        metrics,
        limits,
        keyring=Keyring(Access(), ()),
        clock=monotonic_ms,
    )
    old, new = (_edition(path, number) for number in (1, 2))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(router.run())
            try:
                await router.serve(old, path, settings)
                yield TwoVersions(
                    router=router,
                    host=host,
                    standbys=standbys,
                    service=service,
                    old=old,
                    new=new,
                    path=path,
                    settings=settings,
                    group=group,
                )
            finally:
                await router.close()
    finally:
        await asyncio.to_thread(store.close, STOP_S)


def _edition(path: Path, number: int) -> ModelVersion:
    return ModelVersion(
        model=MODEL,
        version=str(number),
        digest=Digest(f"sha256:{number:064x}"),
        blob_bytes=path.stat().st_size,
        origin=Origin.LOCAL,
        key_id="bench",
        signature="",
    )
