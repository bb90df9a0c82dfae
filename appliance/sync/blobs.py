"""Keep files by what is in them: a file's name is its SHA-256, and it is never written again.

What this room does: says where a file lies and whether it is there, opens unfinished ones, and
takes away those that nothing refers to.
What it knows: under one directory, `blobs/sha256/HH/HEX` (read-only, whole), `staging/` (not
whole) and `trash/` (going). A file moves between them by rename, so that each is either or. Every
name is checked against the grammar of digests before it becomes a path. Methods block.
What it never does: know what a version is: who calls names the files that stay.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from appliance.contract.chunk_map import MAP_BYTES_MAX, ChunkMap, decode
from appliance.contract.document import DIGEST
from appliance.contract.names import blob_path
from appliance.contract.release import BlobRef
from appliance.errors import BlobCorrupt, DocumentRefused, SyncError
from appliance.store.files import make_directory, sync_directory
from appliance.sync.space import BLOCK_BYTES, disk, free_bytes
from appliance.sync.spans import Layout
from appliance.sync.staging import Staged


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A file to have, and the file that holds the map of its chunks, if it has one."""

    blob: BlobRef
    chunk_map: BlobRef | None = None


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What `prune` took away."""

    digests: tuple[str, ...]
    freed_bytes: int


class BlobStore:
    """The files under one directory."""

    def __init__(self, root: Path) -> None:
        """Use `root`, made where it is not. Call while nothing is fetched into it.

        Raises:
            DiskFull, DiskRefused: it can't be made.
        """
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._staging = root / "staging"
        self._trash = root / "trash"
        with disk(root):
            for directory in (self._blobs, self._staging, self._trash):
                make_directory(directory)
            self._drop_second_names()

    def path_of(self, sha256: str) -> Path:
        """Name the place of a file, whether or not it is there.

        Raises:
            DocumentRefused: that is no digest.
        """
        return self._root / blob_path(sha256)

    def has(self, blob: BlobRef) -> bool:
        """Say whether the file is here, by name and length; `scrub` looks inside."""
        try:
            return self.path_of(blob.sha256).stat().st_size == blob.length
        except OSError:
            return False

    def stored(self) -> Iterator[BlobRef]:
        """Go through the files that are here."""
        for path in sorted(self._blobs.glob("??/*")):
            if not DIGEST.fullmatch(path.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                if length := path.stat().st_size:
                    yield BlobRef(sha256=path.name, length=length)

    def free_bytes(self) -> int:
        """Read how much may still be written here.

        Raises:
            DiskRefused: the disk does not say.
        """
        with disk(self._root):
            return free_bytes(self._root)

    def map_of(self, wanted: Wanted) -> ChunkMap | None:
        """Read the map of a file from here; None where it has none.

        Raises:
            BlobCorrupt: the file of the map is damaged.
            DiskRefused: it can't be read.
            DocumentRefused: it is no map, or not of that file.
        """
        if wanted.chunk_map is None:
            return None
        found = self._map_in(wanted.chunk_map)
        for field in ("sha256", "length"):
            if getattr(found, field) != getattr(wanted.blob, field):
                reason = f"is of another file than {wanted.blob.sha256}"
                raise DocumentRefused(document="chunk map", field=field, reason=reason)
        return found

    def mapped(self) -> tuple[Wanted, ...]:
        """Find the files that are here with a map that is here; reads every small file.

        A map says of which file it is, so nobody has to remember. What it says is still checked.
        """
        found: list[Wanted] = []
        for small in self.stored():
            if small.length > MAP_BYTES_MAX:
                continue
            with contextlib.suppress(SyncError):
                chunk_map = self._map_in(small)
                blob = BlobRef(sha256=chunk_map.sha256, length=chunk_map.length)
                if self.has(blob):
                    found.append(Wanted(blob=blob, chunk_map=small))
        return tuple(found)

    def stage(self, layout: Layout, *, floor_bytes: int) -> Staged:
        """Open an unfinished file. Raises as `Staged`."""
        return Staged(self._part_of(layout.blob.sha256), layout, floor_bytes=floor_bytes)

    def finish(self, staged: Staged) -> None:
        """Let a file in whose whole digest is right, in place of what was there.

        Raises:
            DiskFull, DiskRefused: it is still unfinished.
        """
        staged.finish(self.path_of(staged.layout.blob.sha256))

    def drop_unfinished(self, sha256: str) -> None:
        """Delete what there is of an unfinished file that nobody has open.

        Raises:
            DiskRefused: the disk does not want to.
        """
        part = self._part_of(sha256)
        with disk(part):
            part.unlink(missing_ok=True)
            part.with_suffix(".map").unlink(missing_ok=True)

    def prune(self, roots: Collection[str]) -> Pruned:
        """Take away every file, finished or not, whose digest is not among `roots`.

        The caller names all that anything refers to, also what is being fetched. A file is moved
        to the trash first, so that a name in `blobs` is always a whole file; who has mapped it
        keeps it. What an earlier run left in the trash goes too.

        Raises:
            DiskRefused: the disk does not want to; some may be gone.
        """
        gone, freed = [], 0
        with disk(self._root):
            for path in (*self._blobs.glob("??/*"), *self._staging.iterdir()):
                if self._is_needed(path, roots):
                    continue
                with contextlib.suppress(FileNotFoundError):  # a record that was being written
                    freed += path.stat().st_blocks * BLOCK_BYTES
                    path.rename(self._trash / path.name)
                    sync_directory(path.parent)
                    if path.parent != self._staging:
                        gone.append(path.name)
            for path in self._trash.iterdir():
                path.unlink(missing_ok=True)
            sync_directory(self._trash)
        return Pruned(digests=tuple(sorted(gone)), freed_bytes=freed)

    def _map_in(self, reference: BlobRef) -> ChunkMap:
        path = self.path_of(reference.sha256)
        with disk(path), path.open("rb") as file:
            data = file.read(MAP_BYTES_MAX + 1)
        if hashlib.sha256(data).hexdigest() != reference.sha256:
            raise BlobCorrupt(digest=reference.sha256, reason="the chunk map is damaged")
        return decode(data)

    def _drop_second_names(self) -> None:
        """Delete what is unfinished of files that are here; a rename may end half done, as both."""
        for part in self._staging.glob("*.part"):
            if DIGEST.fullmatch(part.stem) and self.path_of(part.stem).exists():
                part.unlink()
                part.with_suffix(".map").unlink(missing_ok=True)

    def _is_needed(self, path: Path, roots: Collection[str]) -> bool:
        found = DIGEST.search(path.name)  # also in the name of a temporary file
        if found is None or found.group() not in roots:
            return False
        return path.parent != self._staging or self._part_of(found.group()).exists()

    def _part_of(self, sha256: str) -> Path:
        return self._staging / f"{self.path_of(sha256).name}.part"
