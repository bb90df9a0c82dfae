"""Keep former versions as near to serving as memory allows, and say how near that is.

What this room does: looks at memory now and then; loads a standby, locks its file, brings its pages
back, or gives that up again, as `placement` decides; lets go of a standby that is one no more.
What it knows: how each standby is loaded, and at which level it is held now, as it was last seen.
What it never does: switch, or choose the standby (that is whoever decides about versions).

A standby that is loaded takes no core: its worker waits, and its steps are one heartbeat a second.
One change is made at a time; the level that is shown is the one that was reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Hosting
from appliance.domain import Digest, DrillReport, StandbyLevel, StandbyStatus
from appliance.errors import ApplianceError, DeploymentRefused
from appliance.runtime.devices import available_bytes, memory_pressure
from appliance.runtime.loadable import Loadable
from appliance.runtime.pages import MappedFile, lockable_bytes
from appliance.runtime.placement import Bounds, Decision, Need, Placement, Room
from appliance.runtime.router import Router


class Watcher(Protocol):
    """Be told how standbys are held. Supplied by `observe`; must not block."""

    def standby(self, model: str, level: int, resident_ratio: float) -> None:
        """Take the level (h0 is 0) and how much of the file is in memory."""
        ...

    def event(self, name: str, **fields: str | float | bool | None) -> None:
        """Log one structured event."""
        ...


@dataclasses.dataclass(slots=True)
class _Kept:
    """One standby, and how it is held."""

    loadable: Loadable
    placement: Placement
    level: StandbyLevel
    reason: str
    since_utc_ms: int
    level_max: StandbyLevel = StandbyLevel.LOADED
    file: MappedFile | None = None
    resident_ratio: float = 0.0
    drill: DrillReport | None = None


class Standbys:
    """The standby of each model. `run` holds their levels."""

    def __init__(
        self,
        router: Router,
        settings: Hosting,
        observer: Watcher,
        *,
        read_room: Callable[[], Room] | None = None,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        """Hold nothing yet. `read_room` reads the machine and does not block."""
        self._router = router
        self._settings = settings
        self._observer = observer
        self._read_room = read_room or machine_room
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._gone: list[_Kept] = []  # still to be let go of
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    # --- what others ask ---

    def statuses(self) -> tuple[StandbyStatus, ...]:
        """Say how each standby is held."""
        return tuple(_status(kept) for kept in self._kept.values())

    @contextlib.asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Change no level within; begins once the change that is being made is."""
        async with self._turn:
            yield

    def keep(self, loadable: Loadable, *, unloaded_for: str = "") -> None:
        """Hold a version as the standby of its model, as high as memory allows; does not block.

        unloaded_for: why it is not to be loaded again, but held in the page cache at most.
        """
        version = loadable.version
        held = self._kept.get(version.model)
        if held is not None and held.loadable.version.digest == version.digest:
            return
        self.drop(version.model)
        is_loaded = self._router.served(version.digest) is not None
        self._router.keep_standby(version.model, version.digest)
        self._kept[version.model] = _Kept(
            loadable=loadable,
            placement=Placement(self._bounds()),
            level=StandbyLevel.LOADED if is_loaded else StandbyLevel.DISK,
            level_max=StandbyLevel.CACHED if unloaded_for else StandbyLevel.LOADED,
            reason=unloaded_for,
            since_utc_ms=utc_ms(),
        )
        self._changed.set()

    def drop(self, model: str) -> None:
        """Hold no standby of a model any more; what is held of it goes once it is idle."""
        kept = self._kept.pop(model, None)
        if kept is None:
            return
        self._gone.append(kept)
        self._changed.set()
        if self._router.row(model).standby == kept.loadable.version.digest:
            self._router.keep_standby(model, None)

    def loadable(self, digest: Digest) -> Loadable | None:
        """Find how a standby is to be loaded."""
        held = (kept.loadable for kept in self._kept.values())
        return next((one for one in held if one.version.digest == digest), None)

    def drilled(self, model: str, report: DrillReport) -> None:
        """Take in what a drill found: a standby that is loaded and went well is proven."""
        kept = self._kept.get(model)
        if kept is None:
            return
        kept.drill = report
        if kept.level.rank >= StandbyLevel.LOADED.rank:
            went_well = not report.reason
            level = StandbyLevel.PROVEN if went_well else StandbyLevel.LOADED
            self._reach(kept, level, report.reason)

    # --- holding levels ---

    async def run(self) -> None:
        """Look at every standby, at once when one is new and else now and then, until cancelled."""
        try:
            while True:
                await self.look()
                try:
                    async with asyncio.timeout(self._settings.standby_check_s):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
        finally:
            for kept in (*self._kept.values(), *self._gone):
                if kept.file is not None:
                    kept.file.close()

    async def look(self) -> None:
        """Bring every standby to the level that memory allows now."""
        async with self._turn:
            self._gone = [kept for kept in self._gone if not await self._let_go(kept)]
            for kept in tuple(self._kept.values()):
                if self._kept.get(kept.loadable.version.model) is kept:
                    await self._hold(kept)

    async def _hold(self, kept: _Kept) -> None:
        served = self._router.served(kept.loadable.version.digest)
        if served is None and kept.level.rank >= StandbyLevel.LOADED.rank:
            self._reach(kept, StandbyLevel.DISK, "it is not loaded any more")
        need = Need(
            weights_bytes=kept.loadable.version.blob_bytes, own_bytes=kept.loadable.own_bytes
        )
        room = self._read_room()
        lockable = min(self._settings.locked_bytes_max or room.lockable_bytes, room.lockable_bytes)
        room = msgspec.structs.replace(room, lockable_bytes=lockable)
        decision = kept.placement.decide(self._clock(), kept.level, need, room)
        if decision.level.rank > kept.level_max.rank:
            decision = Decision(level=kept.level_max, reason=kept.reason)
        try:
            await self._move(kept, decision, lockable)
        except (ApplianceError, OSError) as error:
            kept.level_max = StandbyLevel.CACHED
            self._reach(kept, StandbyLevel.DISK, str(error))

    async def _move(self, kept: _Kept, decision: Decision, lockable_bytes: int) -> None:
        """Go to a level, and see to it that it is what it says."""
        loadable, level = kept.loadable, decision.level
        digest = loadable.version.digest
        served = self._router.served(digest)
        if level is StandbyLevel.LOADED and served is None:
            await self._router.load(loadable)
        if level.rank < StandbyLevel.LOADED.rank and served is not None:
            if not served.book.idle.is_set():
                return  # it still answers somebody; the next look sees to it
            await self._router.unload(digest, drain_s=0.0)
        if level is StandbyLevel.DISK:
            if kept.file is not None:
                kept.file.close()
            kept.file, kept.resident_ratio = None, 0.0
            self._reach(kept, level, decision.reason)
            return
        file, kept.resident_ratio = await asyncio.to_thread(
            _hold_pages, kept.file, loadable.path, level, lockable_bytes
        )
        kept.file = file
        if level is StandbyLevel.LOCKED and not file.locked_bytes:
            level = StandbyLevel.CACHED
        if level is StandbyLevel.LOADED and kept.level is StandbyLevel.PROVEN:
            level = StandbyLevel.PROVEN
        self._reach(kept, level, decision.reason)

    async def _let_go(self, kept: _Kept) -> bool:
        """Let go of what is held of a former standby; False: it still answers somebody."""
        version = kept.loadable.version
        served, row = self._router.served(version.digest), self._router.row(version.model)
        is_needed = version.digest in (row.active, row.standby, row.traffic.candidate)
        if served is not None and not is_needed:
            if not served.book.idle.is_set():
                return False
            with contextlib.suppress(DeploymentRefused):  # somebody needs it, just now
                await self._router.unload(version.digest, drain_s=0.0)
        if kept.file is not None:
            kept.file.close()
            kept.file = None
        return True

    def _reach(self, kept: _Kept, level: StandbyLevel, reason: str) -> None:
        """Note the level that is held now; a change is logged with its reason."""
        if level is not kept.level:
            kept.since_utc_ms = utc_ms()
            self._observer.event(
                "standby_level",
                model=kept.loadable.version.label,
                level=level.value,
                before=kept.level.value,
                reason=reason,
            )
        kept.level, kept.reason = level, reason
        model = kept.loadable.version.model
        self._observer.standby(model, level.rank, kept.resident_ratio)

    def _bounds(self) -> Bounds:
        settings = self._settings
        return Bounds(
            level_max=StandbyLevel(settings.standby_level),
            free_bytes=settings.memory_free_bytes,
            pressure_percent=settings.memory_pressure_percent,
            rise_ms=settings.standby_rise_s * 1000,
        )


def machine_room() -> Room:
    """Read what this machine has now."""
    available = available_bytes()
    return Room(
        available_bytes=2**63 - 1 if available is None else available,
        lockable_bytes=lockable_bytes(),
        pressure_percent=memory_pressure(),
    )


def _status(kept: _Kept) -> StandbyStatus:
    drill = kept.drill
    return StandbyStatus(
        version=kept.loadable.version,
        level=kept.level,
        reason=kept.reason,
        since_utc_ms=kept.since_utc_ms,
        resident_ratio=kept.resident_ratio,
        locked_bytes=kept.file.locked_bytes if kept.file is not None else 0,
        rollback_ms=drill.accepted_ms + drill.load_ms if drill and not drill.reason else None,
    )


def _hold_pages(
    file: MappedFile | None, path: Path, level: StandbyLevel, lockable: int
) -> tuple[MappedFile, float]:
    """Bring a file's pages in, and lock them if the level says so; blocks.

    Raises:
        OSError: the file can't be read.
    """
    file = file or MappedFile(path)
    if level is StandbyLevel.LOCKED:
        if not file.locked_bytes:
            file.lock(lockable)
    elif file.locked_bytes:
        file.unlock()
    file.touch()
    return file, file.resident_ratio()
