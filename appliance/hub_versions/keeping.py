"""Hold the files that deployments ask for, and choose which former versions keep theirs.

What this room does: what `sync.host.Blobs` asks, over `sync.holding`; former versions of each model
stay as far as their number and free space allow.
What it knows: a version that failed here is not worth its space.
What it never does: let go of what a deployment names as its root.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.config import Downloads
from appliance.contract.release import BlobRef, Release, ReleaseFile
from appliance.domain import Digest
from appliance.errors import StoreError
from appliance.sync.deployment import Deployment
from appliance.sync.holding import Holding
from appliance.sync.journal import Journal
from appliance.sync.remembered import Remembered
from appliance.sync.retention import Kept
from appliance.sync.states import State
from appliance.sync.threads import in_thread

HISTORY_LOOKED_AT = 100
_PREFIX = "sha256:"


class Keeping:
    """The files of versions: satisfies `Blobs`."""

    def __init__(
        self, holding: Holding, remembered: Remembered, journal: Journal, settings: Downloads
    ) -> None:
        """Keep what `journal` names, and what `settings` has room for."""
        self._holding = holding
        self._remembered = remembered
        self._journal = journal
        self._settings = settings

    async def fetch(self, files: tuple[ReleaseFile, ...], progress: Callable[[str], None]) -> None:
        """Make all files present and verified. Raises as `Holding.fetch`."""
        await self._holding.fetch(files, progress)

    def path_of(self, sha256: str) -> str:
        """Name the path of a blob that is present."""
        return self._holding.path_of(sha256)

    async def prune(self, roots: Callable[[], frozenset[str]]) -> None:
        """Let go of what neither a root names nor a former version that is kept.

        Raises:
            DiskRefused: the disk does not want to.
        """
        former = await self._former()
        dropped = {(one.model, one.version) for one in await self._holding.to_drop(former)}
        kept = [one for one in former if (one.model, one.version) not in dropped]
        blobs = {blob.sha256 for one in kept for blob in one.blobs}
        await self._holding.prune(lambda: roots() | blobs)

    async def _former(self) -> list[Kept]:
        """List the versions that served here, the newest of each model first."""
        try:
            history = await self._journal.history(HISTORY_LOOKED_AT)
            return await in_thread(self._read_former, history)
        except StoreError:
            return []  # what is named stays anyway

    def _read_former(self, history: tuple[Deployment, ...]) -> list[Kept]:
        memory, ages = self._journal.memory, dict[str, int]()
        named = memory.named()
        found: dict[Digest, Kept] = {}
        for one in history:
            served = one.state is State.COMMITTED or one.digest in named
            if not served or one.digest in memory.quarantine or one.digest in found:
                continue
            release = self._remembered.release(one.digest.removeprefix(_PREFIX))
            if release is None:
                continue
            ages[one.model] = age = ages.get(one.model, -1) + 1
            found[one.digest] = Kept(
                model=one.model,
                version=one.version,
                age=age,
                in_use=one.digest in named,
                blobs=_blobs(release, one.quantisation),
            )
        return list(found.values())


def _blobs(release: Release, quantisation: str) -> tuple[BlobRef, ...]:
    files = release.edition(quantisation or release.quantisations[0])
    return tuple(blob for file in files for blob in (file.blob, file.chunk_map))
