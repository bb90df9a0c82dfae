"""Keep one version served: its worker's lives, its tickets, and their replay.

What this room does: starts the worker and takes it through its handshake; hands tickets to it and
their news back; watches that it moves; starts it again when it ends, and replays its tickets.
What it knows: one version, its worker and its tickets.
What it never does: choose between versions, look into a prompt, or touch another version's worker.

| state      | event → next                                                                       |
|------------|------------------------------------------------------------------------------------|
| LOADING    | Ready → READY · LoadFailed, worker ended → FAILED                                  |
| READY      | worker ended → RESTARTING (FAILED when it has ended too often)                     |
| RESTARTING | Ready → READY · LoadFailed, worker ended → RESTARTING (FAILED when too often)      |
| FAILED     | the end; every ticket has ended                                                    |
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from appliance.clock import utc_ms
from appliance.config import Engine, Limits
from appliance.domain import ModelFacts, ModelStatus, ModelVersion, Role, VersionState
from appliance.errors import ApplianceError, ModelNotReady, ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.adapters import Adapters
from appliance.runtime.process import CANNOT_START, Child
from appliance.runtime.ticket_book import TicketBook
from appliance.runtime.tickets import EmbedJob, EmbedTicket, Job, Ticket

TICK_S = 0.25


class Observer(Protocol):
    """Be told what happens in the engine. Supplied by `observe`; must not block."""

    def step(self, model: str, gauges: wire.EngineGauges) -> None:
        """Take the gauges of one step."""
        ...

    def worker_lost(self, model: str, cause: str) -> None:
        """Count one unasked end of a worker or of the text process (model "")."""
        ...

    def event(self, name: str, **fields: str | float | bool | None) -> None:
        """Log one structured event."""
        ...


class Keeper(Protocol):
    """Give workers to a version, and be told what became of it. Supplied by `hosting`."""

    async def start_worker(self) -> Child[wire.FromWorker]:
        """Start a worker, or hand over one that waits; OSError: there can't be one."""
        ...

    def is_ready(self, version: ModelVersion) -> None:
        """Take notice that its worker answers; must not block."""
        ...

    def has_failed(self, version: ModelVersion) -> None:
        """Take notice that it never will, while its tickets are still there; must not block."""
        ...


class Served:
    """One loaded version, and everything behind it."""

    def __init__(
        self,
        version: ModelVersion,
        options: wire.EngineOptions,
        engine: Engine,
        limits: Limits,
        observer: Observer,
        *,
        keeper: Keeper,
        book: TicketBook,
        clock: Callable[[], float],
    ) -> None:
        """Describe what to serve; `run` does it. `book` is empty, and belongs to it from now on."""
        self.version = version
        self.kind = options.kind
        self.state = VersionState.LOADING
        self.facts: ModelFacts | None = None
        self.has_vocabulary = False  # told by the router, once prompts can be prepared
        self.settled = asyncio.Event()  # READY or FAILED for the first time
        self.yields = False  # told by the router: a worker that gets no core is not stalled
        self.book = book
        self.adapters = Adapters(
            version.label,
            limits.adapters,
            count_of=self.book.count_adapter,
            fail=self.book.fail_adapter,
        )
        self.failure: ApplianceError | None = None
        self._keeper = keeper
        self._options = options
        self._engine = engine
        self._observer = observer
        self._clock = clock
        self._created_utc_ms = utc_ms()
        self._is_answering = False  # a worker is past its handshake and has not ended
        self._pid = 0
        self._loading_ratio = 0.0
        self._reason = ""
        self._restarts = 0
        self._worst_ms = 0.0
        self._acked = 0
        self._gauges: wire.EngineGauges | None = None

    # --- what others ask ---

    def status(self, role: Role) -> ModelStatus:
        """Describe this version as one row of the role table."""
        state = self._shown_state
        gauges = self._gauges if state is VersionState.READY else None
        return ModelStatus(
            version=self.version,
            role=role,
            state=state,
            loading_ratio=self._loading_ratio,
            created_utc_ms=self._created_utc_ms,
            kind=self.kind,
            reason=self._reason,
            facts=self.facts,
            running_count=self.book.running,
            waiting_count=self.book.waiting,
            worker_pid=self._pid,
            worker_restarts=self._restarts,
            kv_cells_used=gauges.cells_used if gauges else 0,
            kv_cells_total=self.facts.kv_cells if self.facts and state is VersionState.READY else 0,
            adapters=self.adapters.statuses(),
        )

    @property
    def pid(self) -> int:
        """Name the worker; 0 while there is none."""
        return self._pid

    @property
    def path(self) -> Path:
        """Name the file it is loaded from."""
        return Path(self._options.path)

    def admit(self, job: Job, *, again: bool = False) -> Ticket:
        """Give the job a ticket, or refuse it now; does not block. again: see `TicketBook.admit`.

        Raises:
            ModelNotReady: it has never been loaded, or has failed.
            AdapterNotLoaded: the adapter it names takes no requests now.
            ContextTooLong, InvalidRequest, QueueFull: see `TicketBook.admit`.
        """
        facts = self.answering()
        key = self.adapters.key_of(job.adapter)
        return self.book.admit(msgspec.structs.replace(job, adapter=key), facts, again=again)

    def admit_embed(self, job: EmbedJob, *, again: bool = False) -> EmbedTicket:
        """Give an embedding job a ticket, or refuse it now; does not block. Raises as `admit`."""
        return self.book.admit_embed(job, self.answering(), again=again)

    # --- the worker's lives ---

    async def run(self) -> None:
        """Keep the worker alive until cancelled, or until it has ended too often."""
        losses: deque[float] = deque()
        try:
            while True:
                cause = await self._live()
                self._pid = 0
                if self.state is VersionState.READY:
                    self._observer.worker_lost(self.version.label, cause)
                    self.book.measure.lose_worker()
                self.book.judge(cause)
                now_ms = self._clock()
                losses.append(now_ms)
                while losses[0] < now_ms - self._engine.restarts_window_s * 1000:
                    losses.popleft()
                if self.state is VersionState.LOADING or len(losses) > self._engine.restarts_max:
                    self._give_up(cause)
                    return
                self._enter(VersionState.RESTARTING, cause)
                self._restarts += 1
                backoff_ms = self._engine.restart_backoff_ms * 2 ** (len(losses) - 1)
                await self._wait_ms(min(backoff_ms, self._engine.restart_backoff_ms_max))
        finally:
            self.adapters.fail_all("stopped")
            self.book.fail_all("stopped")
            self.settled.set()

    async def _live(self) -> str:
        """Take one worker from its start to its end; return the cause of the end."""
        try:
            child = await self._keeper.start_worker()
        except OSError:
            return CANNOT_START
        self._pid = child.pid
        async with asyncio.TaskGroup() as group:
            stderr = group.create_task(child.log_stderr(self.version.label))
            try:
                await self._converse(child)
            finally:
                self._is_answering = False
                self.book.detach()
                self.adapters.detach()
                cause = await child.end()
                self.adapters.judge(cause)
                await asyncio.wait({stderr}, timeout=self._engine.stop_wait_s)
                stderr.cancel()
        return cause

    async def _converse(self, child: Child[wire.FromWorker]) -> None:
        """Exchange frames until the stream ends or the worker has to be killed."""
        child.send(wire.Start(protocol_version=wire.PROTOCOL_VERSION, engine=self._options))
        began_ms = self._clock()
        greeted = False
        quiet_s = 0.0
        while True:
            frames = None
            try:
                async with asyncio.timeout(TICK_S):
                    frames = await child.receive()
                quiet_s = 0.0
            except TimeoutError:
                # Counted in ticks, not by the clock: a daemon that was itself stopped for a while
                # must not find its worker guilty.
                quiet_s += TICK_S
                frames = iter(())
            if frames is None:
                return
            try:
                for frame in frames:
                    greeted = True
                    self._handle(child, frame)
            except wire.WireFault as fault:
                self._observer.event("wire_fault", model=self.version.label, reason=str(fault))
                child.kill("wire_fault")
            if not greeted:
                overdue = self._clock() - began_ms > self._engine.hello_timeout_s * 1000
            elif not self._is_answering:
                overdue = self._clock() - began_ms > self._engine.load_timeout_s * 1000
            else:
                overdue = quiet_s * 1000 > self._stall_limit_ms()
            if overdue:
                child.kill("hung")
            if child.killed:
                return
            self.book.expire()
            self.adapters.settle()
            self.book.submit_next()

    def _stall_limit_ms(self) -> float:
        if self.yields:
            return self._engine.load_timeout_s * 1000
        return max(
            self._engine.stall_floor_s * 1000,
            self._engine.stall_factor * self._worst_ms,
            self._gauges.stall_limit_ms if self._gauges else 0.0,
        )

    def _handle(self, child: Child[wire.FromWorker], frame: wire.FromWorker) -> None:
        if isinstance(frame, wire.Step):
            self._gauges = frame.gauges
            self.book.take_step(frame)
            self._observer.step(self.version.label, frame.gauges)
            # Not each one: an Ack wakes the worker while it evaluates the next step.
            if frame.step - self._acked >= max(1, self._engine.ack_window_steps // 4):
                self._acked = frame.step
                child.send(wire.Ack(step=frame.step))
        elif isinstance(frame, wire.AdapterLoaded | wire.AdapterFailed):
            self._take_adapter(child, frame)
        elif isinstance(frame, wire.Embedded):
            self.book.finish_embed(frame)
        elif isinstance(frame, wire.TicketFailed):
            self.book.fail_one(frame.failure)
        elif isinstance(frame, wire.Loading):
            self._loading_ratio = frame.ratio
        elif isinstance(frame, wire.Hello):
            if frame.protocol_version != wire.PROTOCOL_VERSION:
                raise wire.WireFault(f"version {frame.protocol_version}")
        elif isinstance(frame, wire.LoadFailed):
            self.failure = ModelUnloadable(path=frame.path, reason=frame.reason)
        else:
            self._become_ready(child, frame)

    def _become_ready(self, child: Child[wire.FromWorker], ready: wire.Ready) -> None:
        self.facts = ready.facts
        self.failure = None
        self._worst_ms = ready.step_ms_worst
        self._acked = 0
        self._gauges = None
        self._loading_ratio = 1.0
        self._is_answering = True
        self.yields = False  # this worker does not yet
        self._enter(VersionState.READY, "")
        self.adapters.attach(child.send)
        if not self.adapters.is_restoring:
            self.book.attach(child.send)
        self.settled.set()
        self._keeper.is_ready(self.version)

    def _take_adapter(
        self, child: Child[wire.FromWorker], frame: wire.AdapterLoaded | wire.AdapterFailed
    ) -> None:
        """Take news of an adapter; the last one that is restored lets requests in again."""
        is_loaded = isinstance(frame, wire.AdapterLoaded)
        self._observer.event(
            "adapter_loaded" if is_loaded else "adapter_failed",
            model=self.version.label,
            adapter=frame.key,
            blocked_ms=round(frame.blocked_ms, 1) if isinstance(frame, wire.AdapterLoaded) else 0.0,
            reason="" if isinstance(frame, wire.AdapterLoaded) else frame.reason,
        )
        was_restoring = self.adapters.is_restoring
        self.adapters.take(frame)
        if was_restoring and not self.adapters.is_restoring:
            self.book.attach(child.send)

    def _give_up(self, cause: str) -> None:
        if self.failure is None:
            where = "while loading" if self.state is VersionState.LOADING else "too often"
            reason = f"the worker process ended {where} ({cause})"
            self.failure = ModelUnloadable(path=self._options.path, reason=reason)
        loading = self.state is VersionState.LOADING  # then whoever asked tells the whole reason
        self._enter(VersionState.FAILED, cause if loading else str(self.failure))
        self._keeper.has_failed(self.version)
        self.adapters.fail_all(cause)
        self.book.fail_all(cause)

    async def _wait_ms(self, duration_ms: float) -> None:
        """Wait before a restart; deadlines go on being honoured."""
        until_ms = self._clock() + duration_ms
        while (left_ms := until_ms - self._clock()) > 0:
            await asyncio.sleep(min(left_ms / 1000, TICK_S))
            self.book.expire()

    def _enter(self, state: VersionState, reason: str) -> None:
        self.state = state
        self._reason = reason
        self._observer.event(
            "version_state",
            model=self.version.label,
            state=state.value,
            reason=reason,
            pid=self._pid,
            restarts=self._restarts,
        )

    @property
    def answers(self) -> bool:
        """Tell whether a worker answers at this moment."""
        return self.state is VersionState.READY and self.has_vocabulary

    def answering(self) -> ModelFacts:
        """Find the model's facts, if it may be asked now: it has answered, and will again.

        Raises:
            ModelNotReady: it has never been loaded whole, or has failed.
        """
        states = (VersionState.READY, VersionState.RESTARTING)
        if self.facts is None or not self.has_vocabulary or self.state not in states:
            raise ModelNotReady(
                model=self.version.label,
                state=self._shown_state.value,
                retry_after_s=self.book.retry_after_s(),
            )
        return self.facts

    @property
    def _shown_state(self) -> VersionState:
        """Name the state as others see it: loading also takes the vocabulary."""
        is_half = self.state is VersionState.READY and not self.has_vocabulary
        return VersionState.LOADING if is_half else self.state
