"""Carry one file from what is missing to what is right and durable.

What this room does: the state of one download: its plan, its account, who sent what; the keeper
that follows behind the connections: hashes what lies there without a gap, records what is durable,
and lets the page cache drop it.
What it knows: connections wait while too much is unrecorded, so a slow disk bounds what is dirty.
The whole hash reads the file back, beside the download: at the end there is little left to read.
What it never does: ask a source.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from appliance.config import Downloads
from appliance.errors import BlobCorrupt, HubUnreachable
from appliance.sync.progress import Account, Progress
from appliance.sync.sources import SourceFailed, Standing
from appliance.sync.spans import Cutter, Plan
from appliance.sync.staging import Staged, WholeHash
from appliance.sync.threads import in_thread

_UNRECORDED_FACTOR = 2  # times record_bytes may wait for the disk
_SLOW_MS = 2000.0  # after which an idle connection takes over half of what another waits for
_WRONG_MAX = 2  # times a source may send wrong bytes of one file
_GAIN_BYTES = 65_536  # of chunks that are not whole: so much counts as going forward
_ROUNDS_MAX = 4  # times a whole file may turn out wrong


class Job:
    """One file on its way. For one event loop."""

    def __init__(
        self,
        staged: Staged,
        settings: Downloads,
        account: Account,
        *,
        told: Callable[[Progress], None],
        now_ms: Callable[[], float],
    ) -> None:
        self.staged = staged
        self.excluded: set[str] = set()
        self.account = account
        self.plan = Plan(staged.layout, [])
        self.failure: HubUnreachable | None = None
        self._settings = settings
        self._told = told
        self._now_ms = now_ms
        self._wrong: dict[str, int] = {}
        self._senders: set[str] = set()
        self._dry = 0
        self._part_bytes = 0
        self._rounds = 0
        self._whole = WholeHash(staged)
        self._unrecorded = 0
        self._recorded_ms = now_ms()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._moved = asyncio.Event()  # another one after each chunk
        self._cutters: dict[Cutter, float] = {}  # and since when each waits

    @property
    def is_right(self) -> bool:
        """Say whether the whole file is what its name says."""
        return self._whole.is_right

    def begin(self) -> None:
        """Plan for what is missing now."""
        self.plan = Plan(self.staged.layout, self.staged.missing())

    def found(self, number: int, *, is_seed: bool) -> None:
        """Note a chunk that is right without having been fetched."""
        length = self.staged.layout.chunks[number].length
        self.staged.verified.add(number)
        self._unrecorded += length
        if is_seed:
            self.account.seeded(length)
        else:
            self.account.found(length)
        self.tell()

    def fetched(self, number: int, standing: Standing) -> None:
        """Note a chunk that a source sent, right and written."""
        length = self.staged.layout.chunks[number].length
        self.plan.done(number)
        self.staged.verified.add(number)
        self._senders.add(standing.source.name)
        standing.delivered()
        self._dry = 0
        self._unrecorded += length
        if self._unrecorded > _UNRECORDED_FACTOR * self._settings.record_bytes:
            self._room.clear()
        self.account.fetched(length, self._now_ms())
        self._news.set()
        self._moved.set()
        self._moved = asyncio.Event()
        self.tell()

    def cutter(self, numbers: Sequence[int], room: bytearray) -> Cutter:
        """Begin to wait for claimed chunks."""
        cutter = Cutter(self.staged.layout.chunks, numbers, room)
        self._cutters[cutter] = self._now_ms()
        return cutter

    def drop(self, cutter: Cutter) -> None:
        """Wait for these chunks no more; what did not come is free again."""
        self.plan.give_back(cutter.waits_for)
        self._cutters.pop(cutter)

    async def moved(self, at_most_ms: float) -> None:
        """Wait until another chunk is there, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_ms / 1000):
                await self._moved.wait()

    async def take_over(self) -> list[int]:
        """Wait until there is something to do for an idle connection; nothing: there never will be.

        That is half of what the slowest other one still waits for, once it is slow.
        """
        while not self.plan.is_complete:
            now_ms = self._now_ms()
            slow = [one for one, since in self._cutters.items() if now_ms - since >= _SLOW_MS]
            slowest = max(slow, key=lambda one: len(one.waits_for), default=None)
            if slowest is not None and (taken := slowest.give_up_half()):
                return taken
            await self.moved(_SLOW_MS)
            if taken := self.plan.claim(self._settings.request_bytes, self._settings.connections):
                return taken
        return []

    def wrong(self, number: int, standing: Standing) -> None:
        """Note that a source sent wrong bytes for a claimed chunk."""
        self.plan.give_back([number])
        self._blame(standing)

    def failed(self, standing: Standing, failure: SourceFailed, *, part_bytes: int) -> None:
        """Note that a source failed; of a chunk that is not whole `part_bytes` came and are kept.

        Raises:
            HubUnreachable: too often, and no bytes came.
        """
        self.failure = HubUnreachable(source=standing.source.name, reason=failure.reason)
        self._part_bytes += part_bytes
        if self._part_bytes >= _GAIN_BYTES:
            self._dry = self._part_bytes = 0
        self._dry += 1
        if self._dry >= self._settings.failures_max:
            raise self.failure

    def tell(self, stopped_by: HubUnreachable | None = None) -> None:
        """Say where the download is."""
        self._told(self.account.progress(self._now_ms(), stopped_by))

    async def room(self) -> None:
        """Wait until the disk has caught up."""
        await self._room.wait()

    async def keep(self) -> None:
        """Follow behind the connections until everything is there, hashed and recorded.

        Raises:
            DiskFull, DiskRefused: the disk does not take it.
        """
        while True:
            self._news.clear()
            while self._whole.reaches:
                await in_thread(self._whole.step)
                await self._record_if_due()
            await self._record_if_due()
            if self._whole.is_whole:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.record_s):
                    await self._news.wait()

    async def record(self) -> None:
        """Make durable what is there. Raises as `Staged.record`."""
        count, verified, length = self._unrecorded, self.staged.verified, self._whole.length
        if count:
            await in_thread(self._record, frozenset(verified), length)
            self._unrecorded -= count
        self._recorded_ms = self._now_ms()
        self._room.set()

    def ended(self) -> None:
        """Note that there is nothing left to record: the file has its name, or is gone."""
        self._unrecorded = 0

    async def look_again(self, standings: list[Standing]) -> None:
        """Find out what is wrong with a file that is whole and not right, to fetch it again.

        Raises:
            BlobCorrupt: nothing of it can be right, or too often.
        """
        layout, digest = self.staged.layout, self.staged.layout.blob.sha256
        self._rounds += 1
        lost = list(range(len(layout.chunks)))
        if layout.is_hashed:
            lost = [one for one in lost if not await in_thread(self.staged.is_right, one)]
        else:
            for standing in standings:
                if standing.source.name in self._senders:
                    self._blame(standing)
        if not lost or self._rounds >= _ROUNDS_MAX:
            reason = "its parts keep being wrong" if lost else "its chunk map is of other bytes"
            raise BlobCorrupt(digest=digest, reason=reason)
        await in_thread(self.staged.forget, lost)
        self.account.found(-sum(layout.chunks[one].length for one in lost))
        self._senders.clear()
        self._whole = WholeHash(self.staged)

    def _blame(self, standing: Standing) -> None:
        name = standing.source.name
        standing.wrong_count += 1
        self._wrong[name] = self._wrong.get(name, 0) + 1
        if self._wrong[name] >= _WRONG_MAX:
            self.excluded.add(name)

    def _record(self, verified: frozenset[int], length: int) -> None:
        self.staged.record(verified)
        self.staged.uncache(length)

    async def _record_if_due(self) -> None:
        waited_ms = self._now_ms() - self._recorded_ms
        if (
            self._unrecorded >= self._settings.record_bytes
            or waited_ms >= self._settings.record_s * 1000
        ):
            await self.record()
