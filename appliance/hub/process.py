"""Build the hub once, run it until it is asked to stop, and take it down in order.

What this room does: the hub's composition root: inventory, CA, listeners, the watch on the
repository, re-signing before metadata expires.
What it knows: every room of the hub but `publish`, which holds offline keys and never runs here.
What it never does: publish, or stop because signing or the inventory failed: it says so.

The first SIGTERM or SIGINT drains for at most hub.drain_s; a second one skips the rest of the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from appliance import logs
from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Config
from appliance.errors import ApplianceError, ConfigError, StoreError
from appliance.hub import inventory
from appliance.hub.admission import Admission
from appliance.hub.authority import Authority
from appliance.hub.enrol import Enrolment
from appliance.hub.push import PushServer
from appliance.hub.repository_watch import RepositoryWatch
from appliance.hub.server import HubServer
from appliance.hub.server_certificate import ServerCertificate
from appliance.store import Store

INVENTORY_FILE = "hub.db"
REPOSITORY_DIRECTORY = "repository"
STORE_CLOSE_S = 10.0
GOODBYE_S = 2.0
_DAY_MS = 86_400_000
_PORT_MAX = 65_535

Resign = Callable[[int], str]


def hub_directory(config: Config) -> Path:
    """Make the hub's directory if there is none, for this user alone, and name it.

    Raises:
        ConfigError: it can't be made.
    """
    directory = Path(config.hub.state_dir)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{directory}: {error.strerror or error}"
        raise ConfigError(key="hub.state_dir", reason=reason) from error
    return directory


@contextlib.contextmanager
def opened_inventory(config: Config) -> Iterator[Store]:
    """Hold the inventory; several processes may.

    Raises:
        StoreError: it can't be used.
    """
    path = hub_directory(config) / INVENTORY_FILE
    store = Store(path, inventory.MIGRATIONS, config.store)
    try:
        fault = store.wait_open()
        if fault:
            raise StoreError(database=path.name, reason=fault)
        yield store
    finally:
        store.close(STORE_CLOSE_S)


def run(config: Config, resign: Resign | None = None) -> None:
    """Serve until asked to stop; blocks.

    resign: signs what must be signed by the online keys at a time (UTC, ms), and says in words what
    it did, "" for nothing; None: this hub signs nothing by itself.

    Raises:
        ApplianceError: the configuration can't be followed, or the inventory not be opened.
    """
    with opened_inventory(config) as store:
        asyncio.run(HubProcess(config, store, resign).run())


class HubProcess:
    """The running hub. Lives in one event loop."""

    def __init__(self, config: Config, store: Store, resign: Resign | None) -> None:
        """Build; `run` starts. Blocks for small files."""
        settings = config.hub
        directory = hub_directory(config)
        self._settings = settings
        self._resign = resign
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        repository = directory / REPOSITORY_DIRECTORY
        authority = Authority.open(directory, utc_ms())
        self._certificate = ServerCertificate(
            directory,
            authority,
            settings.names,
            int(settings.server_certificate_days * _DAY_MS),
        )
        self._certificate.refresh(utc_ms())
        admission = Admission(
            store,
            monotonic_ms=monotonic_ms,
            answer_ms=settings.status_s * 1000,
            device_connections_max=settings.device_connections_max,
        )
        self._push = PushServer(store, admission, self._certificate, settings, utc_ms=utc_ms)
        self._enrolment = Enrolment(
            store,
            authority,
            utc_ms=utc_ms,
            life_ms=int(settings.certificate_days * _DAY_MS),
            grace_ms=int(settings.certificate_grace_days * _DAY_MS),
        )
        self._server = HubServer(
            repository,
            self._enrolment,
            admission,
            settings,
            tls=self._certificate.tls,
            ca_pem=authority.certificate_pem,
        )
        self._watch = RepositoryWatch(repository)

    async def run(self) -> None:
        """Listen, watch and sign until a signal, then drain."""
        settings = self._settings
        async with self._signals(), asyncio.TaskGroup() as group:
            if settings.push_listen:
                await self._push.start(settings.push_listen)
                self._enrolment.push_address = settings.push_address or _joined(
                    settings.names[0], self._push.port
                )
                logs.event("listening", plane="push", address=self._enrolment.push_address)
            host, port = parted("hub.listen", settings.listen)
            try:
                await self._server.start(host, port)
                address = _joined(settings.names[0], self._server.port)
                logs.event("listening", plane="hub", address=address)
                chores = [
                    group.create_task(self._watching()),
                    group.create_task(self._keeping_fresh()),
                ]
                await self._stop.wait()
                for chore in chores:
                    chore.cancel()
            finally:
                await self._push.stop(GOODBYE_S)
                await self._drain()
        logs.event("stopped")

    async def _watching(self) -> None:
        """Tell the devices when something was published."""
        while True:
            if await asyncio.to_thread(self._watch.look):
                told = self._push.nudge(self._watch.version)
                logs.event("published", timestamp_version=self._watch.version, devices_told=told)
            await asyncio.sleep(self._settings.watch_s)

    async def _keeping_fresh(self) -> None:
        """Sign again what would expire, and renew the hub's own certificate."""
        while True:
            try:
                if await asyncio.to_thread(self._certificate.refresh, utc_ms()):
                    logs.event("hub_certificate_renewed")
                if self._resign is not None:
                    done = await asyncio.to_thread(self._resign, utc_ms())
                    if done:
                        logs.event("signed_again", what=done)
            except ApplianceError as error:
                logs.event("signing_failed", level=logging.ERROR, reason=error.message)
            await asyncio.sleep(self._settings.resign_check_s)

    async def _drain(self) -> None:
        """Let transfers end, at most hub.drain_s, or until hurried."""
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(self._server.stop(self._settings.drain_s))
            hurry = group.create_task(self._hurry.wait())
            await asyncio.wait((stopping, hurry), return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            stopping.cancel()

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()
        logs.event("signal", signal=signal.Signals(number).name, hurry=self._hurry.is_set())


def parted(key: str, address: str) -> tuple[str, int]:
    """Cut "HOST:PORT" in two.

    Raises:
        ConfigError: it is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > _PORT_MAX:
        raise ConfigError(key=key, reason=f"must be HOST:PORT, not {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
