"""Hold the files of versions for deployments: fetch them, check them again, let go of them.

What this room does: what `host.Blobs` asks for, over the store and its fetcher; the numbers of the
download that runs; a round of scrubbing; which files stay because their version does.
What it knows: whatever is here with a map is a seed for what comes; a map names its file. Between
asking what must stay and taking the rest away, no fetch may begin: it would find a file that goes.
What it never does: choose a version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from appliance.config import Downloads
from appliance.contract.release import ReleaseFile
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.download import Fetcher
from appliance.sync.progress import Progress
from appliance.sync.retention import Kept, to_drop
from appliance.sync.scrub import Damage, scrub
from appliance.sync.threads import in_thread
from appliance.sync.throttle import Throttle

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024


class Holding:
    """The files of versions on this appliance."""

    def __init__(
        self,
        store: BlobStore,
        fetcher: Fetcher,
        settings: Downloads,
        *,
        pause: Callable[[], str] = lambda: "",
    ) -> None:
        """Hold what is in `store`; `pause` says why downloads pause now, "" where they don't."""
        self._seen: Progress | None = None
        self._store = store
        self._fetcher = fetcher
        self._settings = settings
        self._pause = pause
        self._fetching: list[frozenset[str]] = []
        self._pruning = asyncio.Lock()
        self._scrubbing = Throttle(lambda: settings.scrub_bytes_per_s)

    @property
    def progress(self) -> Progress | None:
        """Say where the download is that runs."""
        seen, pause = self._seen, self._pause()
        if seen is None or not pause or seen.stopped_by is not None:
            return seen
        return replace(seen, bytes_per_s=0.0, seconds_left=None, pause=pause)

    async def fetch(
        self, files: Sequence[ReleaseFile], progress: Callable[[str], None] | None = None
    ) -> None:
        """Make all files present and verified; goes on for as long as the world is unkind.

        Cancelling keeps what was verified. `progress` is told in words; `Holding.progress` has the
        numbers.

        Raises:
            BlobCorrupt: no source has the right bytes.
            DocumentRefused: a chunk map contradicts its file.
        """

        def told(seen: Progress) -> None:
            self._seen = seen
            if progress is not None:
                progress(in_words(self.progress or seen))

        wanted = [Wanted(blob=file.blob, chunk_map=file.chunk_map) for file in files]
        digests = frozenset(ref.sha256 for file in files for ref in (file.blob, file.chunk_map))
        async with self._pruning:
            self._fetching.append(digests)
        try:
            seeds = await in_thread(self._store.mapped)
            await self._fetcher.fetch(wanted, seeds=seeds, told=told)
        finally:
            self._fetching.remove(digests)
            self._seen = None

    def path_of(self, sha256: str) -> str:
        """Name the path of a file that is present. Raises DocumentRefused: that is no digest."""
        return str(self._store.path_of(sha256))

    async def prune(self, roots: Callable[[], Collection[str]]) -> None:
        """Let go of every file that no root names; who has mapped one keeps it.

        The map of a file stays with it, and so does what is being fetched. Who fetches must have
        its files among the roots before it is done.

        Raises:
            DiskRefused: the disk does not want to; some may be gone.
        """
        async with self._pruning:
            stay = {*roots(), *(digest for one in self._fetching for digest in one)}
            for one in await in_thread(self._store.mapped):
                if one.blob.sha256 in stay and one.chunk_map:
                    stay.add(one.chunk_map.sha256)
            await in_thread(self._store.prune, stay)

    async def to_drop(self, kept: Sequence[Kept]) -> list[Kept]:
        """Name the versions that are too many, or whose space is needed; none in use.

        Raises:
            DiskRefused: the disk does not say how much is free.
        """
        free = await in_thread(self._store.free_bytes)
        return to_drop(
            kept,
            versions_max=self._settings.versions_kept,
            free_bytes=free,
            floor_bytes=self._settings.free_bytes_min,
        )

    async def scrub(self, in_use: Collection[str]) -> tuple[Damage, ...]:
        """Read every file again and repair what is damaged; takes as long as its rate says.

        in_use: digests of files whose pages stay in the cache.
        """
        mapped = await in_thread(self._store.mapped)
        known = {blob.sha256 for one in mapped for blob in (one.blob, one.chunk_map) if blob}
        alone = await in_thread(lambda: list(self._store.stored()))
        files = [*mapped, *(Wanted(blob=one) for one in alone if one.sha256 not in known)]
        return await scrub(
            self._store,
            files,
            throttle=self._scrubbing,
            repair=self._fetcher.repair,
            in_use=in_use,
        )


def in_words(progress: Progress) -> str:
    """Say where a download is: verified bytes, rate, time left, or what it waits for."""
    said = f"{_size(progress.verified_bytes)} of {_size(progress.total_bytes)} verified"
    if progress.waits_for:
        return f"{said}; waiting: {progress.waits_for}"
    if progress.seconds_left is None:
        return said
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return f"{said}, {_size(progress.bytes_per_s)}/s, {minutes}:{seconds:02} left"


def _size(count: float) -> str:
    unit = 0
    while count >= _STEP and unit < len(_UNITS) - 1:
        count, unit = count / _STEP, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} {_UNITS[0]}"
