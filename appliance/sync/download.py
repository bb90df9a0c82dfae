"""Fetch files: by chunk, from several sources, over several connections, as long as it takes.

What this room does: for each file that is wanted: takes its space, counts what is already there,
copies what other files have, asks the sources for the rest, and gives the file its name when it is
right. `fetch` goes on by itself after whatever stops it; `fetch_now` says what stopped it.
What it knows:

| what happens | what is done |
|---|---|
| a source fails, stalls, drips, lies about lengths | it rests; another is asked; bytes are kept |
| it ignores Range | one connection takes all of it, and keeps what is missing |
| wrong bytes | they are not written; twice, and it is not asked for this file again |
| killed, restarted | recorded chunks count, others are hashed again, none is fetched again |
| the whole is wrong | each chunk is looked at again; the wrong ones are fetched again |
| disk full, read-only | nothing is lost; it is tried again |

What it never does: trust a source, write to a finished file, or keep what is half a chunk over a
restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path

from appliance.clock import monotonic_ms
from appliance.config import Downloads
from appliance.contract.chunk_map import MAP_BYTES_MAX, ChunkMap
from appliance.errors import (
    BlobCorrupt,
    DocumentRefused,
    HubUnreachable,
    SyncError,
)
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.job import Job
from appliance.sync.progress import Account, Progress
from appliance.sync.seeding import seed
from appliance.sync.sources import Body, Ranking, Source, SourceFailed, Standing
from appliance.sync.spans import Cutter, Layout, layout_of
from appliance.sync.staging import Staged
from appliance.sync.threads import in_thread
from appliance.sync.throttle import Throttle


class Fetcher:
    """What brings files into a store. One download runs at a time; others wait for it."""

    def __init__(
        self,
        store: BlobStore,
        sources: Sequence[Source],
        settings: Downloads,
        throttle: Throttle,
        *,
        now_ms: Callable[[], float] = monotonic_ms,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Use these sources, in the order in which they are preferred; closes them in `close`."""
        self._store = store
        self._sources = tuple(sources)
        self._ranking = Ranking(sources, settings, now_ms=now_ms, draw=draw)
        self._settings = settings
        self._throttle = throttle
        self._now_ms = now_ms
        self._busy = asyncio.Lock()
        self._again = asyncio.Event()

    async def close(self) -> None:
        """Close the sources' connections."""
        for source in self._sources:
            await source.close()

    def add(self, source: Source) -> None:
        """Ask another source after all others, from now on; closes it in `close`."""
        self._sources += (source,)
        self._ranking.put_last(source)
        self.try_again()

    @contextlib.contextmanager
    def preferring(self, source: Source) -> Iterator[None]:
        """Ask another source before all others, while the block runs: a stick that was brought."""
        standing = self._ranking.put_first(source)
        self.try_again()
        try:
            yield
        finally:
            self._ranking.remove(standing)

    def try_again(self) -> None:
        """Let a download that waits go on now: something has changed for the better."""
        self._again.set()

    async def fetch(
        self,
        wanted: Sequence[Wanted],
        *,
        seeds: Sequence[Wanted] = (),
        told: Callable[[Progress], None] | None = None,
    ) -> None:
        """Have these files, however long it takes; cancel it to give up.

        Args:
            wanted: the files, fetched in order; those that are here cost nothing.
            seeds: files with maps that may be here and share chunks with them.
            told: called on the loop whenever something changed; `stopped_by` says why it waits.

        Raises:
            BlobCorrupt: no source has the right bytes.
            DocumentRefused: a chunk map is none, or of another file.
        """
        told = told or _nobody
        account = Account(_total(wanted))
        while True:
            try:
                return await self._turn(wanted, seeds, account, told)
            except SyncError as error:
                if not error.retryable:
                    raise
                told(account.progress(self._now_ms(), error))
            self._again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.retry_s):
                    await self._again.wait()

    async def fetch_now(
        self,
        wanted: Sequence[Wanted],
        *,
        seeds: Sequence[Wanted] = (),
        told: Callable[[Progress], None] | None = None,
    ) -> None:
        """Have these files, or say at once what stands in the way. As `fetch` otherwise.

        Raises:
            BlobCorrupt, DocumentRefused: as `fetch`.
            HubUnreachable: the sources failed failures_max times and sent nothing.
            DiskFull, DiskRefused: the disk; what is there already is kept.
        """
        await self._turn(wanted, seeds, Account(_total(wanted)), told or _nobody)

    async def repair(self, damaged: Wanted) -> None:
        """Put a right file in the place of one that is damaged, keeping what is right of it.

        Who has mapped the damaged file keeps it. Raises as `fetch_now`.
        """
        async with self._busy:
            account = Account(_total([damaged]))
            await self._fetch_map(damaged, account, _nobody)
            layout = layout_of(damaged.blob, await in_thread(self._store.map_of, damaged))
            async with self._staged(layout, account, _nobody) as job:
                await self._complete(job, [damaged])

    async def _turn(
        self,
        wanted: Sequence[Wanted],
        seeds: Sequence[Wanted],
        account: Account,
        told: Callable[[Progress], None],
    ) -> None:
        async with self._busy, contextlib.AsyncExitStack() as stack:
            account.again()
            layouts: list[Layout] = []
            for one in dict.fromkeys(wanted):
                await self._fetch_map(one, account, told)
                if await in_thread(self._store.has, one.blob):
                    account.found(one.blob.length)
                else:
                    chunk_map = await in_thread(self._store.map_of, one)
                    layouts.append(layout_of(one.blob, chunk_map))
            jobs = [  # all of them: the space of all is taken before the first byte comes
                await stack.enter_async_context(self._staged(one, account, told))
                for one in {layout.blob.sha256: layout for layout in layouts}.values()
            ]
            for job in jobs:
                await self._complete(job, seeds)
            told(account.progress(self._now_ms()))

    async def _fetch_map(
        self, wanted: Wanted, account: Account, told: Callable[[Progress], None]
    ) -> None:
        """Have the map of a file here and right."""
        if (reference := wanted.chunk_map) is None:
            return
        if reference.length > MAP_BYTES_MAX:
            reason = f"is {reference.length} bytes; at most {MAP_BYTES_MAX}"
            raise DocumentRefused(document="chunk map", field="length", reason=reason)
        if await in_thread(self._store.has, reference):
            try:
                await in_thread(self._store.map_of, wanted)
            except BlobCorrupt:
                pass  # rotten on this disk: another takes its place
            else:
                account.found(reference.length)
                return
        async with self._staged(layout_of(reference, None), account, told) as job:
            await self._complete(job, ())

    @contextlib.asynccontextmanager
    async def _staged(
        self, layout: Layout, account: Account, told: Callable[[Progress], None]
    ) -> AsyncIterator[Job]:
        """Open an unfinished file, and let go of it with everything recorded."""
        staged = await in_thread(
            lambda: self._store.stage(layout, floor_bytes=self._settings.free_bytes_min),
            undo=Staged.close,
        )
        job = Job(staged, self._settings, account, told=told, now_ms=self._now_ms)
        try:
            account.found(sum(layout.chunks[one].length for one in staged.verified))
            yield job
        finally:
            with contextlib.suppress(SyncError):  # what is not recorded is hashed again
                await job.record()
            staged.close()

    async def _complete(self, job: Job, seeds: Sequence[Wanted]) -> None:
        """Bring one file to its end."""
        for steps, is_seed in (
            (job.staged.recheck(), False),
            (seed(job.staged, self._maps(seeds)), True),
        ):
            while (number := await in_thread(next, steps, None)) is not None:
                job.found(number, is_seed=is_seed)
        digest = job.staged.layout.blob.sha256
        while True:
            job.begin()
            await _all_of(job.keep(), self._connections(job))
            if job.is_right:
                break
            try:
                await job.look_again(self._ranking.standings)
            except BlobCorrupt:
                await in_thread(self._store.drop_unfinished, digest)
                job.ended()
                raise
        await in_thread(self._store.finish, job.staged)
        job.ended()

    def _maps(self, seeds: Sequence[Wanted]) -> Iterator[tuple[Path, ChunkMap]]:
        for one in seeds:
            with contextlib.suppress(SyncError):  # one that is damaged gives nothing
                chunk_map = self._store.map_of(one)
                if chunk_map is not None:
                    yield self._store.path_of(one.blob.sha256), chunk_map

    async def _connections(self, job: Job) -> None:
        count = 0 if job.plan.is_complete else self._settings.connections
        await _all_of(*(self._connection(job) for _ in range(count)))

    async def _connection(self, job: Job) -> None:
        """Ask for one stretch after another until nothing is left to ask for."""
        room = bytearray(job.staged.layout.chunk_bytes_max)
        cutter: Cutter | None = None
        standing: Standing | None = None
        while True:
            chosen = await self._next(job)
            if chosen is None:
                return
            if cutter and (chosen is not standing or chosen.sends_all):
                job.drop(cutter)  # bytes of two sources are not mixed
                cutter = None
            standing = chosen
            turn = standing.turn if standing.sends_all else contextlib.nullcontext()
            async with turn:
                if cutter is None:
                    numbers = await self._claimed(job, standing)
                    if not numbers:
                        return
                    cutter = job.cutter(numbers, room)
                await self._ask(job, standing, cutter)
            if not cutter.waits_for:
                job.drop(cutter)
                cutter = None

    async def _claimed(self, job: Job, standing: Standing) -> list[int]:
        if standing.sends_all:
            return job.plan.claim_all()
        settings = self._settings
        numbers = job.plan.claim(settings.request_bytes, settings.connections)
        return numbers or await job.take_over()

    async def _next(self, job: Job) -> Standing | None:
        """Choose the source that is asked next, and wait while all rest; None: all is there."""
        while not job.plan.is_complete:
            best = self._ranking.best(job.excluded)
            if best is None and not self._ranking.standings:
                raise HubUnreachable(source="downloads", reason="no source is known")
            if best is None:
                digest = job.staged.layout.blob.sha256
                raise BlobCorrupt(digest=digest, reason="no source has the right bytes")
            standing, wait_ms = best
            if not wait_ms:
                return standing
            job.tell(job.failure)
            await job.moved(wait_ms)
        return None

    async def _ask(self, job: Job, standing: Standing, cutter: Cutter) -> None:
        """Make one request, and keep what comes of it."""
        before = cutter.part_bytes
        try:
            start, stop = cutter.span
            async with standing.source.open(job.staged.layout.blob, start, stop) as body:
                sent_all, standing.sends_all = standing.sends_all, body.start != start
                if standing.sends_all and not sent_all:
                    return  # then one connection after another
                await self._read(job, standing, cutter, body)
        except SourceFailed as failure:
            self._ranking.failed(standing, failure)
            job.failed(standing, failure, part_bytes=max(0, cutter.part_bytes - before))

    async def _read(self, job: Job, standing: Standing, cutter: Cutter, body: Body) -> None:
        position = body.start
        pace = _Pace(self._settings.bytes_per_s_min, self._settings.rate_window_s)
        while cutter.waits_for:
            await job.room()
            asked_ms = self._now_ms()
            piece = await anext(body.pieces, b"")
            pace.note(len(piece), self._now_ms() - asked_ms)
            if not piece:
                raise SourceFailed("ends before the last byte")
            for number, data in cutter.feed(position, piece):
                if not await in_thread(job.staged.write, number, data):
                    job.wrong(number, standing)
                    raise SourceFailed("sends wrong bytes")
                job.fetched(number, standing)
            position += len(piece)
            await self._throttle.take(len(piece))


class _Pace:
    """How fast a source sends while we wait for it."""

    def __init__(self, bytes_per_s_min: int, window_s: float) -> None:
        self._least = bytes_per_s_min * window_s
        self._window_ms = window_s * 1000
        self._bytes = 0
        self._waited_ms = 0.0

    def note(self, count: int, waited_ms: float) -> None:
        """Add bytes and how long they took.

        Raises:
            SourceFailed: too slow over a whole window.
        """
        self._bytes += count
        self._waited_ms += waited_ms
        if self._waited_ms < self._window_ms:
            return
        if self._bytes < self._least:
            raise SourceFailed(f"is slower than {self._least * 1000 / self._window_ms:.0f} bytes/s")
        self._bytes, self._waited_ms = 0, 0.0


async def _all_of(*calls: Coroutine[None, None, None]) -> None:
    """Await all at once. The first error cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except BaseExceptionGroup as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from errors


def _total(wanted: Sequence[Wanted]) -> int:
    blobs = {one.blob.sha256: one.blob.length for one in wanted}
    maps = {one.chunk_map.sha256: one.chunk_map.length for one in wanted if one.chunk_map}
    return sum((blobs | maps).values())


def _nobody(_: Progress) -> None:
    """Tell nobody."""
