"""Build the appliance once, run it until it is asked to stop, and take it down in order.

What this room does: the composition root; the listener table; start and stop; signals; what is
told to systemd.
What it knows: every component and who needs whom; nothing of what they do.
What it never does: import the engine, serve a request itself, or stop because a database failed.

| step  | start, top to bottom              | stop, bottom to top                                 |
|-------|-----------------------------------|-----------------------------------------------------|
| store | open the databases and the key    | write what waits, close: last of all                |
| serve | listeners                         | after the workers: every stream hears its end       |
| work  | text process, one worker a model  | drain for at most server.drain_s, then end them     |

The first SIGTERM, SIGINT or SIGHUP drains; a second one skips the rest of the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import faulthandler
import fcntl
import functools
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from appliance import local_versions, logs
from appliance.access import audit as audits
from appliance.access.audit import Audit
from appliance.access.identity import Identity
from appliance.access.keys import Keyring
from appliance.access.policy import Verb, authorise
from appliance.api.adapters import AdapterService
from appliance.api.deployments import DeploymentDesk
from appliance.api.generate import Service
from appliance.api.grpc_server import GrpcServer
from appliance.api.rest_server import RestServer
from appliance.api.resume import Streams
from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Config
from appliance.domain import Client, ClientKind
from appliance.errors import ApplianceError, ConfigError, StoreError
from appliance.hub_versions import runs
from appliance.hub_versions.arrival import Arrival
from appliance.hub_versions.assembly import HubVersions
from appliance.hub_versions.contact import Contact
from appliance.local_models import LocalModels
from appliance.local_versions import LocalVersions
from appliance.observe.metrics import Metrics
from appliance.runtime.router import Router
from appliance.runtime.standby import Standbys
from appliance.store import Migration, Store
from appliance.sync import outbox, records, remembered

GOODBYE_S = 2.0  # for the last answers to reach their readers, once all requests have ended
STORE_CLOSE_S = 10.0
LOCK_FILE = "lock"
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

STATE_MIGRATIONS = (
    *local_versions.MIGRATIONS,
    *outbox.MIGRATIONS,
    *remembered.MIGRATIONS,
    *records.MIGRATIONS,
    *runs.MIGRATIONS,
)

Progress = Callable[[str, float], None]


class InUse(Exception):
    """What this daemon needs belongs to another process now; trying later may help."""


class Failed(Exception):
    """A bug of ours ended the daemon; its traceback is in the log."""


class Plane(enum.Enum):
    """What kind of traffic an address is for."""

    INFERENCE = "inference"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One row of the listener table: what is served where."""

    plane: Plane
    address: str
    services: tuple[str, ...]


def listeners(unix: str, grpc_tcp: str, rest_tcp: str) -> tuple[Listener, ...]:
    """Lay out the table: plane, address, services. An empty address is not listened on."""
    ours = ("InferenceService", "ModelService", "DeploymentService")
    grpc = (*(f"appliance.v1.{name}" for name in ours), "grpc.health.v1.Health")
    rows: tuple[tuple[Plane, str, tuple[str, ...]], ...] = (
        (Plane.INFERENCE, unix, grpc),
        (Plane.INFERENCE, grpc_tcp, grpc),
        (Plane.INFERENCE, rest_tcp, ("/v1", "/healthz", "/readyz")),
        (Plane.METRICS, rest_tcp, ("/metrics",)),
    )
    return tuple(
        Listener(plane=plane, address=address, services=services)
        for plane, address, services in rows
        if address
    )


def program_version() -> str:
    """Name the version of this program; "0" when it runs from a tree that is not installed."""
    try:
        return metadata.version("appliance")
    except metadata.PackageNotFoundError:
        return "0"


def run(config: Config, progress: Progress) -> None:
    """Serve until asked to stop; blocks.

    `progress` is told what is being done and how far it is, 0 to 1, while models load; at the end
    it is told "" and 1.

    Raises:
        ApplianceError: a model file can't be served, or the configuration can't be followed.
        InUse: an address or a directory belongs to another process.
        Failed: there is a bug of ours.
    """
    faulthandler.enable()
    with contextlib.ExitStack() as held:
        places = {"server.state_dir": config.server.state_dir}
        if Path(config.server.runtime_dir).resolve() != Path(config.server.state_dir).resolve():
            places["server.runtime_dir"] = config.server.runtime_dir
        for key, place in places.items():
            held.enter_context(held_directory(key, Path(place)))
        try:
            asyncio.run(Daemon(config, progress).run())
        except (ApplianceError, InUse):
            raise
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                logging.getLogger(logs.LOGGER_NAME).exception("daemon_failed")
                raise Failed from error
            raise reason from error


class Daemon:
    """The running appliance. Lives in one event loop."""

    def __init__(self, config: Config, progress: Progress) -> None:
        """Remember; `run` builds."""
        self._config = config
        self._progress = progress
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._notifier = Notifier(os.environ.get("NOTIFY_SOCKET", ""))
        self._operator = Client(id=f"uid:{os.geteuid()}", kind=ClientKind.LOCAL_SOCKET)

    async def run(self) -> None:
        """Open the stores, serve, close the stores. Raises as `daemon.run`, perhaps in a group."""
        authorise(self._operator, Verb.SERVE, "*")
        settings = self._config.store
        async with (
            self._signals(),
            self._store("state", STATE_MIGRATIONS) as state,
            self._store("events", audits.MIGRATIONS) as events,
        ):
            state_dir = Path(self._config.server.state_dir)
            identity = await asyncio.to_thread(Identity.open, state_dir)
            versions = LocalVersions(
                state, identity, self._config.limits, store_wait_s=2 * settings.busy_timeout_s
            )
            audit = Audit(events, settings, utc_ms)
            try:
                metrics = self._metrics(audit, state=state, events=events)
                await self._serve(versions, state, audit, metrics)
            finally:
                await _flush(audit)

    def _metrics(self, audit: Audit, **stores: Store) -> Metrics:
        limit = self._config.limits.metric_series
        metrics = Metrics(version=program_version(), series_max=limit)
        metrics.follow("appliance_audit_records_lost_total", lambda: audit.lost)
        for name, store in stores.items():
            failures = functools.partial(getattr, store, "failures")
            metrics.follow("appliance_store_failures_total", failures, database=name)
        return metrics

    @contextlib.asynccontextmanager
    async def _store(self, name: str, migrations: Sequence[Migration]) -> AsyncIterator[Store]:
        """Hold one database; one that can't be opened is reported, and we go on without."""
        store = Store(
            Path(self._config.server.state_dir) / f"{name}.db", migrations, self._config.store
        )
        try:
            fault = await asyncio.to_thread(store.wait_open)
            if fault:
                logs.event("store_unusable", level=logging.ERROR, store=name, reason=fault)
            yield store
        finally:
            if not await asyncio.to_thread(store.close, STORE_CLOSE_S):
                logs.event("store_not_closed", level=logging.ERROR, store=name)

    async def _serve(
        self, versions: LocalVersions, state: Store, audit: Audit, metrics: Metrics
    ) -> None:
        config = self._config
        are_wanted = functools.partial(HubVersions.are_wanted, config)
        is_hubs = await asyncio.to_thread(are_wanted)
        router = Router(
            config.engine,
            config.limits,
            metrics,
            scheduling=config.scheduling,
            hosting=config.hosting,
            workers_planned=len(config.models) + is_hubs * config.versions.models_expected,
        )
        standbys = Standbys(router, config.hosting, metrics)
        keyring = Keyring(config.access, config.clients)
        service = Service(
            router,
            audit,
            metrics,
            config.limits,
            keyring=keyring,
            clock=monotonic_ms,
            standbys=standbys.statuses,
        )
        streams = Streams(config.limits, metrics)
        adapters = AdapterService(router, versions, audit, metrics, config.server.adapter_dir)
        models = LocalModels(config.models, versions, router, adapters, audit, self._operator)
        contact, desk = Contact(state, config, program_version()), DeploymentDesk(None, audit)
        await contact.find()
        build = functools.partial(
            HubVersions,
            config,
            state,
            audit,
            metrics,
            router,
            standbys,
            contact,
            program=program_version(),
        )
        hubs = Arrival(are_wanted, build, config.deployments.tick_s, desk.show)
        await hubs.look()
        async with asyncio.TaskGroup() as group:
            group.create_task(router.run())
            holding = group.create_task(standbys.run())
            group.create_task(streams.run())
            watchdog = group.create_task(self._notifier.keep_alive())
            beside = [holding, watchdog]
            beside += [group.create_task(one.run()) for one in (contact, hubs)]
            try:
                async with self._faces(service, streams, adapters, desk):
                    audit.record(self._operator, Verb.SERVE, "*", "ok")
                    try:
                        await self._until_asked(router, models, hubs)
                        await hubs.stop()
                        await self._drain(router)
                    finally:
                        await router.close()
                audit.record(self._operator, Verb.STOP, "*", "ok")
            finally:
                streams.close()
                for task in beside:
                    task.cancel()
        logs.event("stopped")

    @contextlib.asynccontextmanager
    async def _faces(
        self,
        service: Service,
        streams: Streams,
        adapters: AdapterService,
        deployments: DeploymentDesk,
    ) -> AsyncIterator[None]:
        """Listen on every address of the table; on leaving, stop after what is still to be told."""
        config = self._config
        grpc = GrpcServer(
            service,
            streams,
            adapters,
            deployments,
            config.grpc,
            Path(config.server.runtime_dir),
            clock=monotonic_ms,
            version=program_version(),
        )
        rest = RestServer(service, streams, adapters, config.rest, utc_ms=utc_ms)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(grpc.stop, GOODBYE_S)
            await grpc.start()
            if config.rest.tcp:
                stack.push_async_callback(rest.stop, GOODBYE_S)
                await rest.start()
            for row in listeners(f"unix:{grpc.unix_path}", grpc.tcp_address, rest.tcp_address):
                logs.event("listening", plane=row.plane.value, address=row.address)
            yield

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()
        logs.event("signal", signal=signal.Signals(number).name, hurry=self._hurry.is_set())

    # --- between start and stop -----------------------------------------------------------------

    async def _until_asked(self, router: Router, models: LocalModels, hubs: Arrival) -> None:
        """Load every model, then wait for a signal; one that comes earlier ends the loading."""
        self._notifier.tell("READY=1", "STATUS=loading")
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(_load(models, hubs))
            telling = group.create_task(models.tell_progress(self._tell))
            stopping = group.create_task(self._stop.wait())
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            telling.cancel()
            if loading.done() and not loading.exception():
                self._progress("", 1.0)
                labels = [status.version.label for status in router.models()]
                self._notifier.tell(f"STATUS=serving {', '.join(labels)}")
                logs.event("ready", models=labels)
            await self._stop.wait()
            loading.cancel()

    def _tell(self, what: str, ratio: float) -> None:
        self._progress(what, ratio)
        self._notifier.tell(f"STATUS={what} {ratio:.0%}")

    async def _drain(self, router: Router) -> None:
        """Admit nothing more and wait for what runs, at most server.drain_s, or until hurried."""
        self._notifier.tell("STOPPING=1", "STATUS=draining")
        router.drain()
        async with asyncio.TaskGroup() as group:
            drained = group.create_task(router.drained(self._config.server.drain_s))
            hurry = group.create_task(self._hurry.wait())
            await asyncio.wait((drained, hurry), return_when=asyncio.FIRST_COMPLETED)
            whole = drained.done() and drained.result()
            drained.cancel()
            hurry.cancel()
        logs.event("drained", whole=whole, level=logging.INFO if whole else logging.WARNING)


class Notifier:
    """Tell systemd how we are (sd_notify(3)): one datagram each, to nobody if not under systemd."""

    def __init__(self, address: str) -> None:
        """Send to NOTIFY_SOCKET; "@" in front of it means an abstract address."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def tell(self, *assignments: str) -> None:
        """Send the assignments in one datagram; never blocks, and nobody listening is no error."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out,
        ):
            out.sendto("\n".join(assignments).encode(), self._address)

    async def keep_alive(self) -> None:
        """Send WATCHDOG=1 at a third of the asked interval, for as long as the loop turns."""
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = os.environ.get("WATCHDOG_USEC", "")
        if not (self._address and for_us and interval.isdecimal() and int(interval)):
            return
        while True:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(int(interval) / 3e6)


@contextlib.contextmanager
def held_directory(key: str, path: Path) -> Iterator[None]:
    """Make a directory for this user alone if there is none, and hold it against other daemons.

    Raises:
        ConfigError: it can't be made, or others may write into it.
        InUse: another daemon holds it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        lock = (path / LOCK_FILE).open("ab")
    except OSError as error:
        reason = f"{path}: {error.strerror or error}"
        raise ConfigError(key=key, reason=reason) from error
    with lock:
        if found.st_mode & OTHERS_MAY_WRITE or found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(key=key, reason=f"{path}: others than this user may write there")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(f"{key}: {path} is in use by another appliance") from error
        yield


async def _load(models: LocalModels, hubs: Arrival) -> None:
    """Load the operator's own files, then the versions of a hub: his have the names first."""
    await models.load()
    hubs.begin()
    await hubs.booted()


async def _flush(audit: Audit) -> None:
    """Write what an earlier failure left of the audit; its store says what can't be written."""
    written = asyncio.wrap_future(audit.flush())
    try:
        async with asyncio.timeout(STORE_CLOSE_S):
            await written
    except (StoreError, TimeoutError) as error:
        logs.event("audit_not_flushed", level=logging.ERROR, reason=str(error) or "too slow")


def _reason(error: Exception) -> ApplianceError | InUse | None:
    """Find the refusal in a group; None if there is none, or a bug of ours is in it too."""
    if not isinstance(error, ExceptionGroup):
        return None
    known, bugs = error.split((ApplianceError, InUse))
    if known is None or bugs is not None:
        return None
    first: Exception = known
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, (ApplianceError, InUse))
    return first
