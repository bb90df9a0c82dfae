"""Hold the versions that are loaded: a worker each, from its start to its end.

What this room does: loads a version and its vocabulary, has its pinned prompts evaluated, unloads
it; divides the cores among models; hands the spare worker to whatever loads next.
What it knows: every loaded version, and the text process.
What it never does: choose between versions (that is `roles`), or let a request in by itself.

The versions of one model share the cores of that model: while one serves, the others are idle.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path

import msgspec

from appliance.clock import utc_ms
from appliance.config import Engine, Limits, Model, Scheduling
from appliance.config import Hosting as HostingSettings
from appliance.domain import (
    ChatPrompt,
    Digest,
    Message,
    ModelKind,
    ModelVersion,
    Priority,
    Prompt,
    RequestId,
    StopOptions,
    TextPrompt,
    VersionState,
)
from appliance.errors import (
    AdapterUnloadable,
    Draining,
    ModelNotServed,
    ModelUnloadable,
    TooManyAdapters,
)
from appliance.runtime import wire
from appliance.runtime.adapters import AdapterFile
from appliance.runtime.devices import cores_available, divide_threads
from appliance.runtime.loadable import Loadable, read_options
from appliance.runtime.measure import Measure
from appliance.runtime.process import Child
from appliance.runtime.served import Observer, Served
from appliance.runtime.spare import Spare
from appliance.runtime.text_process import TextProcess
from appliance.runtime.ticket_book import TicketBook
from appliance.runtime.tickets import Job

_PROCESS_BYTES = 128 * 1024 * 1024  # of a worker, beside weights and cells


class Hosting:
    """Every loaded version. `run` owns every task and must be running before `load` is awaited."""

    def __init__(  # noqa: PLR0913 - each of the bounds is somebody's
        self,
        engine: Engine,
        limits: Limits,
        scheduling: Scheduling,
        observer: Observer,
        text: TextProcess,
        *,
        settings: HostingSettings,
        models_planned: int,
        clock: Callable[[], float],
        on_ready: Callable[[Served], None],
        on_failed: Callable[[Served], None],
    ) -> None:
        """Take the bounds; nothing is started yet.

        models_planned: among how many models the cores are divided. on_ready: is told when a worker
        answers; on_failed: of a version that can't be restarted any more, while it still holds its
        tickets. Neither may block.
        """
        self._engine = engine
        self._limits = limits
        self._scheduling = scheduling
        self._observer = observer
        self._text = text
        self._clock = clock
        self._samples_max = settings.window_samples
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._threads = divide_threads(engine.threads or cores_available(), max(1, models_planned))
        self._shares: dict[str, int] = {}  # by model: which of those it has
        self._served: dict[Digest, Served] = {}
        self._loadables: dict[Digest, Loadable] = {}
        self._tasks: dict[Digest, asyncio.Task[None]] = {}
        self._ticket_ids = itertools.count(1)
        self._spare = Spare(wanted=settings.spare_worker, stop_wait_s=engine.stop_wait_s)
        self._group: asyncio.TaskGroup | None = None
        self._running = asyncio.Event()

    # --- life ---

    async def run(self, closing: asyncio.Event, *others: Coroutine[None, None, None]) -> None:
        """Own every task, the `others` too, until `closing` is set, or until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                always = (
                    group.create_task(self._text.run()),
                    group.create_task(self._spare.run()),
                    *(group.create_task(other) for other in others),
                )
                self._group = group
                self._running.set()
                await closing.wait()
                self._group = None
                for task in (*self._tasks.values(), *always):
                    task.cancel()
        finally:
            self._group = None

    async def running(self) -> None:
        """Wait until `run` is.

        Raises:
            TimeoutError: it is not.
        """
        async with asyncio.timeout(self._engine.hello_timeout_s):
            await self._running.wait()

    @property
    def has_run(self) -> bool:
        """Tell whether `run` has ever begun."""
        return self._running.is_set()

    # --- reading ---

    def __iter__(self) -> itertools.chain[Served]:
        """Go through what is loaded, in the order of loading."""
        return itertools.chain(tuple(self._served.values()))

    def get(self, digest: Digest) -> Served | None:
        """Find a loaded version."""
        return self._served.get(digest)

    def loadable(self, digest: Digest) -> Loadable | None:
        """Find how a loaded version was loaded, and what it takes."""
        loadable, served = self._loadables.get(digest), self._served.get(digest)
        if loadable is None or served is None or served.facts is None:
            return loadable
        cells_bytes = served.facts.kv_cells * served.facts.kv_bytes_per_token
        return msgspec.structs.replace(loadable, own_bytes=cells_bytes + _PROCESS_BYTES)

    def served(self, version: ModelVersion) -> Served:
        """Find a version that must be loaded.

        Raises:
            ModelNotServed: it is not.
        """
        try:
            return self._served[version.digest]
        except KeyError:
            raise ModelNotServed(model=version.label) from None

    @property
    def spare_pid(self) -> int:
        """Name the spare worker; 0 while there is none."""
        return self._spare.pid

    # --- loading ---

    async def options(self, model: str, path: Path, settings: Model) -> wire.EngineOptions:
        """Read how a file is to be loaded.

        Raises:
            ModelUnloadable: its head can't be read.
        """
        await self.running()
        share = self._shares.setdefault(model, len(self._shares))
        threads = self._threads[min(share, len(self._threads) - 1)]
        return await asyncio.to_thread(
            read_options,
            path,
            settings,
            self._engine,
            self._limits,
            self._scheduling,
            threads=threads,
        )

    def start(self, loadable: Loadable, options: wire.EngineOptions) -> Served:
        """Start loading; does not block. Follow with `ready`, or with `stop`.

        Raises:
            Draining: we are going.
        """
        if self._group is None:
            raise Draining
        version = loadable.version
        assert version.digest not in self._served, "this version is loaded already"
        self._loadables[version.digest] = loadable
        served = Served(
            version,
            options,
            self._engine,
            self._limits,
            self._observer,
            keeper=self,
            book=TicketBook(
                version.label,
                self._engine,
                self._limits,
                ticket_ids=self._ticket_ids,
                clock=self._clock,
                measure=Measure(self._samples_max, utc_ms=utc_ms()),
            ),
            clock=self._clock,
        )
        self._served[version.digest] = served
        self._tasks[version.digest] = self._group.create_task(served.run())
        return served

    async def ready(self, served: Served, loadable: Loadable) -> None:
        """Wait until a version that was started may be asked, its adapters among it.

        Raises:
            ModelUnloadable: the file, or an adapter, can't be served, now or ever.
            Draining: we are going.
        """
        await served.settled.wait()
        if served.state is VersionState.FAILED:
            raise served.failure or ModelUnloadable(path=str(served.path), reason="it failed")
        if served.state is not VersionState.READY:
            raise Draining
        for file in loadable.adapters:
            await self._load_adapter(served, file)
        await self._text.open(served.version.digest, served.path)
        served.has_vocabulary = True
        await self._pin(served, loadable.settings)

    def stop(self, version: ModelVersion) -> asyncio.Task[None]:
        """Take a version out; does not block. The task ends when its worker is gone.

        Every ticket it still has ends in WorkerLost.
        """
        task = self._tasks.pop(version.digest)
        del self._served[version.digest]
        del self._loadables[version.digest]
        task.cancel()
        return task

    async def forget(self, version: ModelVersion) -> None:
        """Free the vocabulary of a version that was stopped."""
        await self._text.close(version.digest)

    async def _load_adapter(self, served: Served, file: AdapterFile) -> None:
        """Load an adapter that comes with a version, before anybody may ask."""
        name = file.version.name
        if served.kind is not ModelKind.GENERATE:
            reason = f"it generates no text, so its adapter {name} is of no use"
            raise ModelUnloadable(path=file.path, reason=reason)
        try:
            await served.adapters.load(file, is_shelved=False, utc_ms=utc_ms())
        except (AdapterUnloadable, TooManyAdapters) as error:
            raise ModelUnloadable(path=file.path, reason=f"its adapter {name}: {error}") from error

    async def _pin(self, served: Served, settings: Model) -> None:
        """Have the operator's prompts evaluated, now and after each restart of the worker."""
        assert served.facts is not None, "a version that is ready has facts"
        prompts: list[Prompt] = [TextPrompt(text=text) for text in settings.pinned_texts]
        prompts += [
            ChatPrompt(messages=(Message(role="system", content=text),))
            for text in settings.pinned_systems
        ]
        for number, prompt in enumerate(prompts):
            prepared = await self._text.prepare(
                wire.Prepare(
                    ticket=0,
                    key=served.version.digest,
                    prompt=prompt,
                    limit_tokens=served.facts.context_tokens,
                    with_pieces=False,
                )
            )
            served.book.pin(
                Job(
                    request_id=RequestId(f"pin-{number}"),
                    prompt_ids=prepared.token_ids,
                    seed=0,
                    stop=StopOptions(max_tokens=0),
                    priority=Priority.BATCH,
                    is_pin=True,
                )
            )

    # --- what `Served` asks of its keeper ---

    async def start_worker(self) -> Child[wire.FromWorker]:
        """Hand over the spare worker, or a new one. Raises OSError as `Spare.take`."""
        return await self._spare.take()

    def is_ready(self, version: ModelVersion) -> None:
        """Pass it on, and refill the spare once nothing loads."""
        served = self._served.get(version.digest)
        if served is not None:
            self._on_ready(served)
        self._refill()

    def has_failed(self, version: ModelVersion) -> None:
        """Pass it on, and refill the spare likewise."""
        served = self._served.get(version.digest)
        if served is not None:
            self._on_failed(served)
        self._refill()

    def _refill(self) -> None:
        if all(one.state is not VersionState.LOADING for one in self._served.values()):
            self._spare.refill()
