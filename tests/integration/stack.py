"""Run the whole appliance in this process, apart from its workers: both faces on real sockets.

The event loop has a thread of its own, so that tests may use blocking clients, and may start loops
of their own. `run` brings a coroutine to it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from appliance import local_versions
from appliance.access import audit as audits
from appliance.access.audit import Audit
from appliance.access.identity import Identity
from appliance.access.keys import Keyring
from appliance.api.adapters import AdapterService
from appliance.api.deployments import DeploymentDesk
from appliance.api.generate import Service
from appliance.api.grpc_server import GrpcServer
from appliance.api.rest_server import RestServer
from appliance.api.resume import Streams
from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Access, Client, Engine, Grpc, Hosting, Limits, Model, Rest
from appliance.config import Store as StoreSettings
from appliance.domain import Digest, ModelStatus, ModelVersion, Origin
from appliance.local_versions import LocalVersions
from appliance.observe.metrics import Metrics
from appliance.runtime.router import Router
from appliance.runtime.standby import Standbys
from appliance.store import Store

DEMO = Path(__file__).resolve().parents[2] / "appliance" / "models" / "demo" / "demo-2.q8_0.gguf"
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.01

T = TypeVar("T")


def demo_version(model: str = "demo", index: int = 0) -> ModelVersion:
    """Name a file as a version; the stack looks neither at signatures nor at what the file is."""
    return ModelVersion(
        model=model,
        version="2",
        digest=Digest(f"sha256:{index:064x}"),
        blob_bytes=DEMO.stat().st_size,
        origin=Origin.LOCAL,
        key_id="local:test",
        signature="",
    )


class Stack:
    """Router, use case and both faces. `start` and `stop` from the test's thread."""

    def __init__(  # noqa: PLR0913 - one for each part that tests vary
        self,
        runtime_dir: Path,
        *,
        engine: Engine | None = None,
        limits: Limits | None = None,
        rest: Rest | None = None,
        grpc: Grpc | None = None,
        access: Access | None = None,
        clients: tuple[Client, ...] = (),
        models: tuple[Model, ...] = (Model(path=str(DEMO), name="demo"),),
        adapter_dir: str = "",
    ) -> None:
        """Describe; nothing runs yet."""
        self._adapter_dir = adapter_dir
        self._models = models
        self._keyring = Keyring(access or Access(), clients)
        self.rest_settings = rest or Rest(tcp="127.0.0.1:0")
        self.grpc_settings = grpc or Grpc(tcp="127.0.0.1:0")
        self._engine = engine or Engine(context_tokens=1024, sequences_max=64, threads=1)
        self._limits = limits or Limits()
        self._runtime_dir = runtime_dir
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._begun: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._store: Store
        self._audit: Audit
        self.router: Router
        self.standbys: Standbys
        self.service: Service
        self.streams: Streams
        self.adapters: AdapterService
        self.metrics: Metrics
        self.grpc_target = ""
        self.grpc_tcp = ""
        self.rest_url = ""
        self.rest_address = ("", 0)

    def start(self) -> None:
        """Start, and wait until the model answers."""
        self._thread.start()
        self._begun.result(START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop, and wait until everything is gone."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_TIMEOUT_S)
        assert not self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the stack's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def call(self, work: Callable[[], T]) -> T:
        """Call a function on the stack's loop and wait for it."""

        async def called() -> T:
            return work()

        return self.run(called())

    def status(self) -> ModelStatus:
        """Read the only row of the role table."""
        return self.call(lambda: self.router.models()[0])

    def audited(self, verb: str) -> list[tuple[object, ...]]:
        """Read who did a verb to what, and the result, in order."""
        self._audit.flush().result(CALL_TIMEOUT_S)
        rows = self._store.read("SELECT client, object, result FROM audit WHERE verb = ?", (verb,))
        return [tuple(row) for row in rows]

    def wait_idle(self) -> None:
        """Wait until nothing is held any more: requests, tickets, sequences, KV cells."""
        self.wait_for(self._is_idle)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Look at a condition on the stack's loop until it holds, for a bounded time."""

        async def until() -> None:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                while not condition():  # noqa: ASYNC110 - of what has no event, e.g. KV cells
                    await asyncio.sleep(POLL_S)

        self.run(until())

    def _is_idle(self) -> bool:
        held = sum(
            status.running_count + status.waiting_count + status.kv_cells_used
            for status in self.router.models()
        )
        sequences = sum(
            self.metrics.value("appliance_sequences_used", model=status.version.label)
            for status in self.router.models()
        )
        return held == 0 and sequences == 0 and self.service.in_flight_count == 0

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._begun.done():
                self._begun.set_exception(error)
            raise

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        store = Store(self._runtime_dir / "events.db", audits.MIGRATIONS, StoreSettings())
        self._store, self._audit = store, Audit(store, StoreSettings(), utc_ms)
        self.metrics = Metrics(version="test", series_max=256)
        self.router = Router(
            self._engine, self._limits, self.metrics, workers_planned=len(self._models)
        )
        self.standbys = Standbys(self.router, Hosting(spare_worker=False), self.metrics)
        self.service = Service(
            self.router,
            self._audit,
            self.metrics,
            self._limits,
            keyring=self._keyring,
            clock=monotonic_ms,
            standbys=self.standbys.statuses,
        )
        self.streams = Streams(self._limits, self.metrics)
        state = Store(self._runtime_dir / "state.db", local_versions.MIGRATIONS, StoreSettings())
        identity = Identity.open(self._runtime_dir)
        signer = LocalVersions(state, identity, self._limits, store_wait_s=STOP_TIMEOUT_S)
        self.adapters = AdapterService(
            self.router, signer, self._audit, self.metrics, self._adapter_dir
        )
        async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
            stack.callback(store.close, STOP_TIMEOUT_S)
            stack.callback(state.close, STOP_TIMEOUT_S)
            group.create_task(self.router.run())
            group.create_task(self.streams.run())
            stack.callback(self.streams.close)
            stack.push_async_callback(self.router.close)
            await self._listen(stack)
            for index, model in enumerate(self._models):
                version = demo_version(model.name, index)
                await self.router.serve(version, Path(model.path), model)
            self._begun.set_result(None)
            await self._stop.wait()

    async def _listen(self, stack: AsyncExitStack) -> None:
        parts = (self.service, self.streams, self.adapters)
        self.deployments = DeploymentDesk(None, self._audit)
        grpc = GrpcServer(
            *parts, self.deployments, self.grpc_settings, self._runtime_dir, clock=monotonic_ms
        )
        rest = RestServer(*parts, self.rest_settings, utc_ms=utc_ms)
        await grpc.start()
        stack.push_async_callback(grpc.stop, 1.0)
        await rest.start()
        stack.push_async_callback(rest.stop, 1.0)
        self.grpc_target = f"unix:{grpc.unix_path}"
        self.grpc_tcp = grpc.tcp_address
        self.rest_url = f"http://{rest.tcp_address}"
        host, _, port = rest.tcp_address.rpartition(":")
        self.rest_address = (host, int(port))
