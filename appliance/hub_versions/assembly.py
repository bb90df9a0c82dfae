"""Build what takes versions from a hub, and run it for as long as the appliance serves.

What this room does: one object of each kind, tied together; their start, their order at the end;
bundles taken in.
What it knows: nothing of it is there before an operator has said whom to believe, by
`appliance trust`, unless versions of a hub are written down already: those are served without any
root, hub or network.
What it never does: decide about a version, or end the appliance: a database that can't be read is
waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import psutil

from appliance import logs
from appliance.access.audit import Audit
from appliance.access.device import DeviceIdentity
from appliance.access.policy import Verb
from appliance.api.deployments import ModelOutlook, ShownDeployment, SyncState
from appliance.clock import BUILT_UTC_MS, monotonic_ms, utc_ms
from appliance.config import Config
from appliance.domain import Client, ClientKind, DrillReport, HostedVersion, Origin
from appliance.errors import ConfigError, HubUnreachable
from appliance.hub_versions.alerts import Alerts
from appliance.hub_versions.checks import Checks
from appliance.hub_versions.chores import Chores
from appliance.hub_versions.contact import Contact
from appliance.hub_versions.keeping import Keeping
from appliance.hub_versions.runs import Runs
from appliance.hub_versions.view import View
from appliance.observe.metrics import Metrics
from appliance.runtime.devices import available_bytes
from appliance.runtime.host import Host
from appliance.runtime.router import Router
from appliance.runtime.standby import Standbys
from appliance.store import Store
from appliance.sync import anchor
from appliance.sync.acts import Pace, Site
from appliance.sync.agent import Agent, Here
from appliance.sync.beliefs import Beliefs
from appliance.sync.blobs import BlobStore
from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from appliance.sync.deployment import Bounds, Deployment
from appliance.sync.download import Fetcher
from appliance.sync.fetcher import HttpMetadata
from appliance.sync.holding import Holding
from appliance.sync.host import Offer
from appliance.sync.hosted import laid_out, let_go
from appliance.sync.http_blobs import HttpBlobs
from appliance.sync.inbox import Inbox
from appliance.sync.journal import POINTER_NAME, Journal
from appliance.sync.judge import Bars
from appliance.sync.orders import Orders
from appliance.sync.remembered import Remembered
from appliance.sync.schedule import Calendar, Schedule
from appliance.sync.sources import Source
from appliance.sync.states import State
from appliance.sync.threads import in_thread
from appliance.sync.throttle import Throttle
from appliance.sync.timetable import Timetable
from appliance.sync.trust import Trust

LINKS_DIRECTORY = "versions"
TUF_DIRECTORY = "tuf"
COHORT_UNTOLD = "default"
STOP_WAIT_S = 10.0
_STORE_RETRY_S = 5.0
_IMPORT_LOOK_S = 0.1
_VERBS = {
    "rollback": Verb.ROLLBACK,
    "approve": Verb.APPROVE,
    "cancel": Verb.CANCEL_DEPLOYMENT,
    "pin": Verb.PIN_VERSION,
    "hold": Verb.HOLD_MODEL,
    "forgive": Verb.FORGIVE_VERSION,
    "sync": Verb.SYNC,
}


class HubVersions:
    """All that takes versions from a hub. Belongs to one loop; `run` once, `stop` once.

    orders: what an operator says. Satisfies `api.deployments.Versions`.
    """

    def __init__(
        self,
        config: Config,
        state: Store,
        audit: Audit,
        metrics: Metrics,
        router: Router,
        standbys: Standbys,
        contact: Contact,
        *,
        program: str,
    ) -> None:
        """Build it; blocks for small files.

        Raises:
            ConfigError: an expression of the calendar is none, or a mirror's address.
            DiskFull, DiskRefused: the directories of files can't be made.
        """
        settings, state_dir = config.deployments, Path(config.server.state_dir)
        self._config = config
        self._state = state
        self._begun, self._ended = asyncio.Event(), asyncio.Event()
        calendar = Calendar(settings)
        self._journal = Journal(state, state_dir, contact.outbox, history_max=settings.history_max)
        remembered = Remembered(state, store_wait_s=2 * config.store.busy_timeout_s)
        self._beliefs = self._believing(remembered)
        timetable = Timetable.of(config)
        self._fetcher = self._fetching(BlobStore(state_dir), timetable)
        self._holding = Holding(
            self._store,
            self._fetcher,
            config.downloads,
            pause=lambda: timetable.pause_at(utc_ms()),
        )
        keeping = Keeping(self._holding, remembered, self._journal, config.downloads)
        host = Host(
            router,
            standbys,
            config.models,
            config.hosting,
            limits=config.limits,
            memory_reserve_bytes=config.engine.memory_reserve_bytes,
        )
        checks = Checks(config, metrics, self._holding.path_of)
        site = self._site(host, keeping, checks, calendar)
        here = Here(
            appliance_version=program,
            memory_bytes=psutil.virtual_memory().total,
            local_names=lambda: _local_names(router),
            free_bytes=lambda: _free_bytes(config.engine.memory_reserve_bytes),
            editions=dict(one.split("=", 1) for one in settings.quantisations),
        )
        self._agent = Agent(settings, site, self._journal, self._beliefs, here)
        runs = Runs(state)
        alerts = Alerts(self._agent, runs, metrics)
        self._chores = Chores(
            config.versions, self._agent, self._holding, host, router, metrics, runs, alerts
        )
        self._schedule = Schedule(settings, calendar.zone, self._look)
        self._inbox: Inbox | None = None
        if settings.inbox_dir:
            retry_ms_max = settings.inbox_retry_s * 1000
            self._inbox = Inbox(Path(settings.inbox_dir), self.take_in, retry_ms_max=retry_ms_max)
        contact.on_hint = self._agent.hint
        contact.on_enrolled = self._enrolled
        if contact.identity is not None:
            self._reach(contact.identity)
        self.orders = Orders(self._agent, _recording(audit))
        self._view = View(self._agent, self._beliefs, remembered, self._holding, contact, alerts)

    @staticmethod
    def are_wanted(config: Config) -> bool:
        """Tell whether somebody said whom to believe, or versions are written down here; blocks."""
        state_dir = Path(config.server.state_dir)
        return anchor.place(state_dir).exists() or (state_dir / POINTER_NAME).exists()

    # --- life ---

    async def run(self) -> None:
        """Once it may `begin`: serve what is written down, then take versions, until `stop`."""
        await self._begun.wait()
        while fault := await asyncio.to_thread(self._state.wait_open):
            logs.event("versions_unknown", level=logging.ERROR, reason=fault)
            await asyncio.sleep(_STORE_RETRY_S)
        async with asyncio.TaskGroup() as group:
            chores = group.create_task(self._chores.run(self._config.deployments.tick_s))
            try:
                self._agent.hint()  # look for news once what is written down is served
                await self._agent.run(self._schedule, self._inbox)
            finally:
                chores.cancel()
                self._ended.set()
                await self._fetcher.close()

    def begin(self) -> None:
        """Let `run` begin: the operator's own files have their names."""
        self._begun.set()

    async def stop(self) -> None:
        """End `run`, waiting at most STOP_WAIT_S; deployments under way stay as they are saved."""
        self._agent.close()
        if self._begun.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_WAIT_S):
                    await self._ended.wait()

    async def booted(self) -> None:
        """Wait until what is written down is served, as far as it can be."""
        await self._agent.booted()

    async def _look(self) -> None:
        self._agent.hint()

    def _reach(self, identity: DeviceIdentity) -> None:
        """Have the hub that we are enrolled with asked: for metadata first, for files last."""
        config, url, tls = self._config, identity.hub.url, identity.tls
        proxy = config.refresh.proxy
        metadata = HttpMetadata(url, config.refresh, tls=tls, proxy=proxy)
        self._beliefs.sources = (metadata, *self._beliefs.sources)
        self._beliefs.cohort = config.versions.cohort or identity.hub.cohort
        self._fetcher.add(HttpBlobs(url, url, config.downloads, tls=tls, proxy=proxy or None))

    def _enrolled(self, identity: DeviceIdentity) -> None:
        self._reach(identity)
        self._agent.hint()

    # --- what an operator sees, and his acts that are no orders ---

    async def sync_state(self) -> SyncState:
        """Say what is known, and since when. Raises StoreError."""
        return await self._view.sync_state()

    async def outlooks(self) -> tuple[ModelOutlook, ...]:
        """Say how each model stands. Raises StoreError."""
        return await self._view.outlooks()

    async def deployments(self, model: str, count: int) -> tuple[ShownDeployment, ...]:
        """List the newest deployments, of a model or of all. Raises StoreError."""
        return await self._view.deployments(model, count)

    async def take_in(self, path: Path) -> None:
        """Learn from a bundle, and have the files of what applies read from it.

        Raises:
            SyncError: it is none, says nothing that is believed, or lacks files.
        """
        bundle = await in_thread(open_bundle, path)
        with self._fetcher.preferring(BundleSource(bundle)):
            await self._agent.look(lambda: self._beliefs.learn_from(bundle))
            try:
                async with asyncio.timeout(self._config.versions.import_wait_s):
                    await self._files_here(str(path))
            except TimeoutError as error:
                raise HubUnreachable(source=str(path), reason="is too slow") from error

    async def _files_here(self, source: str) -> None:
        """Wait until no deployment fetches any more, or can't go on with what there is."""
        while self._is_fetching():
            progress = self._holding.progress
            if progress is not None and progress.stopped_by is not None:
                raise HubUnreachable(source=source, reason=str(progress.stopped_by))
            await asyncio.sleep(_IMPORT_LOOK_S)

    def _is_fetching(self) -> bool:
        early = (State.PLANNED, State.FETCHING)
        return any(live.deployment.state in early for live in self._agent.conductors.values())

    async def drill(self, model: str) -> DrillReport:
        """Rehearse the way back of a model. Raises as `Chores.drill`."""
        return await self._chores.drill(model)

    # --- building ---

    def _believing(self, remembered: Remembered) -> Beliefs:
        config, state_dir = self._config, Path(self._config.server.state_dir)
        try:
            bootstrap = anchor.load(state_dir)
        except ConfigError as error:  # what is written down is served all the same
            logs.event("root_unusable", level=logging.ERROR, reason=error.message)
            bootstrap = b""
        trust = Trust(
            state_dir / TUF_DIRECTORY,
            bootstrap,
            remembered,
            clock=utc_ms,
            built_utc_ms=BUILT_UTC_MS,
        )
        memory = self._journal
        beliefs = Beliefs(
            trust,
            remembered,
            config.versions.cohort or COHORT_UNTOLD,
            models=lambda: frozenset(memory.memory.serving),
            pinned=lambda: frozenset(d.partition(":")[2] for d in memory.memory.named()),
        )
        beliefs.sources = tuple(
            HttpMetadata(url, config.refresh, tls=_tls_of(url), proxy=config.refresh.proxy)
            for url in config.versions.mirrors
        )
        return beliefs

    def _fetching(self, store: BlobStore, timetable: Timetable) -> Fetcher:
        config = self._config
        self._store = store
        proxy = config.refresh.proxy or None
        sources: list[Source] = [
            HttpBlobs(url, url, config.downloads, tls=_tls_of(url), proxy=proxy)
            for url in config.versions.mirrors
        ]
        throttle = Throttle(lambda: timetable.limit_at(utc_ms()))
        return Fetcher(store, sources, config.downloads, throttle)

    def _site(self, host: Host, keeping: Keeping, checks: Checks, calendar: Calendar) -> Site:
        settings = self._config.deployments
        links = Path(self._config.server.state_dir) / LINKS_DIRECTORY

        async def hosted(offer: Offer) -> HostedVersion:
            return await in_thread(laid_out, links, offer, keeping.path_of)

        return Site(
            host=host,
            examiner=host,
            blobs=keeping,
            book=self._journal,
            hosted=hosted,
            let_go=lambda kept: in_thread(let_go, links, kept),
            offers=lambda digest: self._journal.memory.offers[digest],
            window=lambda: calendar.closed(utc_ms()),
            alert=_alert,
            utc_ms=utc_ms,
            monotonic_ms=monotonic_ms,
            sleep=asyncio.sleep,
            checked=checks.look_into,
            bars=Bars(
                bad_min=settings.bad_min,
                bad_over=settings.bad_over,
                time_ratio_max=settings.time_ratio_max,
                slack_ms=settings.slack_ms,
                agreed_min=settings.agreed_min,
            ),
            memory_slack_bytes=settings.memory_slack_bytes,
            bounds=Bounds(entries_max=settings.entries_max, reboots_max=settings.reboots_max),
            pace=Pace(
                measure_s=settings.tick_s,
                retry_s=settings.act_retry_s,
                tries_max=settings.act_tries_max,
            ),
        )


def _tls_of(url: str) -> ssl.SSLContext | None:
    """Choose how a mirror is spoken to: as this machine trusts others, or in the clear."""
    return ssl.create_default_context() if url.startswith("https://") else None


def _free_bytes(reserve_bytes: int) -> int | None:
    available = available_bytes()
    return None if available is None else max(0, available - reserve_bytes)


def _local_names(router: Router) -> frozenset[str]:
    versions = (status.version for status in router.models())
    return frozenset(one.model for one in versions if one.origin is Origin.LOCAL)


def _recording(audit: Audit) -> Callable[[str, str, str, str], None]:
    """Record orders; who gives them came by the Unix socket, for nobody else may."""

    def record(by: str, action: str, model: str, result: str) -> None:
        client = Client(id=by, kind=ClientKind.LOCAL_SOCKET)
        audit.record(client, _VERBS[action], model, result)

    return record


def _alert(deployment: Deployment) -> None:
    logs.event(
        "deployment_stranded",
        level=logging.ERROR,
        deployment=deployment.id,
        version=deployment.label,
        reason=deployment.reason,
    )
