"""Run the whole of an appliance's sync stack on one directory, as its daemon wires it.

What this room does: trust, remembered documents, blobs, journal and agent, over a real database, a
real disk and HTTP; only who hosts is `FileHost`. Waits until nothing is under way, then says who
serves.
What it knows: time passes as fast as waiting asks for; whatever happens is seen through `around`,
which is laid about every transaction and every act.
What it never does: change what it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Deployments, Downloads, Refresh
from appliance.config import Store as StoreSettings
from appliance.domain import Digest, HostedVersion
from appliance.errors import DeploymentRefused, SyncError
from appliance.store import Store, sync_directory
from appliance.sync import journal as journal_room
from appliance.sync import remembered as remembered_room
from appliance.sync.acts import Pace, Site
from appliance.sync.agent import Agent, Here
from appliance.sync.beliefs import Beliefs
from appliance.sync.blobs import BlobStore
from appliance.sync.deployment import Bounds
from appliance.sync.download import Fetcher
from appliance.sync.fetcher import HttpMetadata
from appliance.sync.holding import Holding
from appliance.sync.host import Offer
from appliance.sync.hosted import laid_out, let_go
from appliance.sync.http_blobs import HttpBlobs
from appliance.sync.journal import Journal
from appliance.sync.judge import Bars
from appliance.sync.orders import Orders
from appliance.sync.remembered import Remembered
from appliance.sync.states import State
from appliance.sync.throttle import Throttle
from appliance.sync.trust import Trust
from benchmarks.survival.host import FileHost, Mood
from benchmarks.survival.hub import COHORT, MODEL

STATE, ACKNOWLEDGED = "state", "acknowledged"  # the two things in a box's directory
DEADLINE_S = 60.0
_WAIT_S = 20.0
_PASSES = 0.0005  # seconds

Act: TypeAlias = Callable[..., Awaitable[Any]]
Around: TypeAlias = Callable[[str, Act], Act]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one run is asked to do. `goal`: see `_GOALS`. later_ms: how far its clock is ahead.

    passes_s: what a wait of any length takes.
    """

    url: str
    bootstrap: bytes
    mood: Mood = field(default_factory=Mood)
    goal: str = "follow"
    boot_id: str = "boot"
    later_ms: int = 0
    passes_s: float = _PASSES


@dataclass(slots=True, kw_only=True)
class Parts:
    """What the wiring made."""

    agent: Agent
    orders: Orders
    host: FileHost
    fetcher: Fetcher
    store: Store
    beliefs: Beliefs
    remembered: Remembered
    acknowledge: Callable[[dict[str, Any]], None]
    moment: Moment


class Moment:
    """A clock that waiting moves on."""

    def __init__(self, later_ms: int, passes_s: float) -> None:
        self.ahead_ms = float(later_ms)
        self._passes_s = passes_s

    def utc_ms(self) -> int:
        """Tell the time of day."""
        return utc_ms() + round(self.ahead_ms)

    def monotonic_ms(self) -> float:
        """Tell durations."""
        return monotonic_ms() + self.ahead_ms

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.ahead_ms += seconds * 1000
        await asyncio.sleep(self._passes_s)


def untouched(name: str, act: Act) -> Act:
    """Look at nothing."""
    del name
    return act


def wired(directory: Path, plan: Plan, around: Around = untouched) -> Parts:
    """Build an appliance in `directory`."""
    state, moment, host = (
        directory / STATE,
        Moment(plan.later_ms, plan.passes_s),
        FileHost(plan.mood),
    )
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    migrations = (*journal_room.MIGRATIONS, *remembered_room.MIGRATIONS)
    store = Store(state / "state.db", migrations, StoreSettings())
    settings = Deployments(tick_s=0.5, may_stop_active=plan.mood.is_alone)
    downloads = Downloads(free_bytes_min=0, connections=2)
    journal = Journal(store, state, history_max=100, boot_id=plan.boot_id)
    journal._write = around("save", journal._write)  # type: ignore[assignment,method-assign] # noqa: SLF001
    remembered = Remembered(store, store_wait_s=_WAIT_S)
    beliefs = _beliefs(state, plan, remembered, journal, moment)
    blobs = BlobStore(state)
    fetcher = Fetcher(
        blobs, [HttpBlobs("hub", plan.url, downloads)], downloads, Throttle(lambda: None)
    )
    holding = Holding(blobs, fetcher, downloads)
    for owner, names in (
        (host, ("load", "unload", "direct", "switch", "stand_by")),
        (holding, ("fetch", "prune")),
        (beliefs, ("refresh",)),
    ):
        for name in names:
            _wrap(owner, name, around)

    async def hosted(offer: Offer) -> HostedVersion:
        return await asyncio.to_thread(laid_out, state / "versions", offer, holding.path_of)

    async def let(kept: frozenset[Digest]) -> None:
        await asyncio.to_thread(let_go, state / "versions", kept)

    site = Site(
        host=host,
        examiner=host,
        blobs=holding,
        book=journal,
        hosted=hosted,
        let_go=let,
        offers=lambda digest: journal.memory.offers[digest],
        window=str,
        alert=lambda _: None,
        utc_ms=moment.utc_ms,
        monotonic_ms=moment.monotonic_ms,
        sleep=moment.sleep,
        bars=Bars(),
        bounds=Bounds(),
        pace=Pace(measure_s=1.0, retry_s=1.0),
    )
    here = Here(appliance_version="1.0.0", memory_bytes=0, local_names=frozenset)
    agent = Agent(settings, site, journal, beliefs, here)
    return Parts(
        agent=agent,
        orders=Orders(agent, lambda *_: None),
        host=host,
        fetcher=fetcher,
        store=store,
        beliefs=beliefs,
        remembered=remembered,
        acknowledge=_Acknowledgements(directory / ACKNOWLEDGED),
        moment=moment,
    )


def _beliefs(
    state: Path, plan: Plan, remembered: Remembered, journal: Journal, moment: Moment
) -> Beliefs:
    trust = Trust(state / "tuf", plan.bootstrap, remembered, clock=moment.utc_ms, built_utc_ms=0)
    beliefs = Beliefs(
        trust,
        remembered,
        COHORT,
        models=lambda: list(journal.memory.serving),
        pinned=lambda: [one.removeprefix("sha256:") for one in journal.memory.named()],
    )
    beliefs.sources = (HttpMetadata(plan.url, Refresh(), tls=None),)
    return beliefs


def _wrap(owner: object, name: str, around: Around) -> None:
    """Lay `around` about a method; the classes have slots, so a subclass of its own takes it."""
    act = getattr(owner, name)
    wrapped = around(name, act)
    if wrapped is act:
        return
    kind = type(owner)
    fresh = type(kind.__name__, (kind,), {"__slots__": (), name: staticmethod(wrapped)})
    owner.__class__ = fresh


class _Acknowledgements:
    """Write down, durably, what was acknowledged: the person's own memory, not the appliance's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, one: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        descriptor = os.open(self._path, flags, 0o600)
        os.write(descriptor, json.dumps(one).encode() + b"\n")
        os.fsync(descriptor)
        os.close(descriptor)
        sync_directory(self._path.parent)


async def live(directory: Path, plan: Plan, around: Around = untouched) -> dict[str, Any]:
    """Run until nothing is under way; says who serves, and from which files."""
    parts = wired(directory, plan, around)
    try:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            group.create_task(parts.agent.run())
            with contextlib.suppress(SyncError):
                await parts.orders.sync_now("operator")
            await _GOALS[plan.goal](parts)
            await _rest(parts)
            report = report_of(parts)
            parts.agent.close()
    finally:
        await close(parts)
    return report


async def close(parts: Parts) -> None:
    """Take down what was wired, when its agent has ended."""
    await parts.fetcher.close()
    parts.host.close()
    await asyncio.to_thread(parts.store.close, _WAIT_S)


def report_of(parts: Parts) -> dict[str, Any]:
    """Say who serves, and from which files."""
    outlook = parts.orders.outlook()
    return {
        "active": [one.active for one in outlook],
        "refused": [one.refused.refusal.value if one.refused else "" for one in outlook],
        "hosted": parts.host.active or "",
        "serves": parts.host.serves(),
        "percent": parts.host.traffic.percent,
        "workers": len(parts.host.workers),
        "fault": parts.agent.news_fault,
        "later_ms": round(parts.moment.ahead_ms),
    }


async def _rest(parts: Parts) -> None:
    """Wait until nothing is under way, approving what waits for it."""
    agent = parts.agent
    while agent.conductors or not (agent.refusals or parts.beliefs.fault):
        live_now = agent.conductors.get(MODEL)
        if live_now is not None and live_now.deployment.state is State.AWAITING_APPROVAL:
            with contextlib.suppress(DeploymentRefused):
                await parts.orders.approve("operator", MODEL)
                number = live_now.deployment.id
                parts.acknowledge({"command": "approve", "deployment": number})
        await asyncio.sleep(_PASSES)


async def _follow(parts: Parts) -> None:
    """Follow the director, on a wish that does not hinder it."""
    await _wish(parts, is_held=False)
    await _rest(parts)
    committed = await parts.orders.history(1)
    if committed and committed[0].state is State.COMMITTED:
        parts.acknowledge({"command": "committed", "deployment": committed[0].id})
    await _wish(parts, is_held=True)


async def _wish(parts: Parts, *, is_held: bool) -> None:
    asked = {"model": MODEL, "wish": {"is_held": is_held}}
    parts.acknowledge({"command": "asking", **asked})
    await parts.orders.hold("operator", MODEL, is_held=is_held)
    parts.acknowledge({"command": "wish", **asked})


async def _go_back(parts: Parts) -> None:
    """Leave the active version, if there is one to go back to."""
    await _rest(parts)
    with contextlib.suppress(DeploymentRefused):
        done = await parts.orders.rollback("operator", MODEL)
        if done.is_durable and done.deployment.state is State.ROLLED_BACK:
            parts.acknowledge({"command": "rollback", "deployment": done.deployment.id})


_GOALS: dict[str, Callable[[Parts], Awaitable[None]]] = {
    "follow": _follow,
    "go_back": _go_back,
    "rest": _rest,
}
