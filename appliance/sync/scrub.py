"""Find bits that have flipped in files that are here, and have them put right.

What this room does: reads every file again, chunk by chunk, at a bounded rate, and compares; names
what is damaged to who can repair it.
What it knows: a file that is not in use is read from the disk itself, not from the page cache, and
leaves no trace there; of one in use the pages that its model works with are what is checked.
What it never does: write to a file: a repaired one takes the name of the damaged one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass

from appliance.errors import BlobCorrupt, DiskRefused, SyncError
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.space import disk
from appliance.sync.spans import Layout, layout_of
from appliance.sync.threads import in_thread
from appliance.sync.throttle import Throttle


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One file that was not what its name says. `failure`: why it still is not; None: repaired."""

    wanted: Wanted
    damaged_bytes: int
    failure: SyncError | None


async def scrub(
    store: BlobStore,
    files: Sequence[Wanted],
    *,
    throttle: Throttle,
    repair: Callable[[Wanted], Coroutine[None, None, None]],
    in_use: Collection[str] = (),
) -> tuple[Damage, ...]:
    """Read these files once and repair what is damaged or missing; takes as long as that takes.

    Args:
        store: where they are.
        files: those that should be here, with their maps.
        throttle: how fast they may be read.
        repair: puts a right file in the place of a damaged one: `Fetcher.repair`.
        in_use: digests of files whose pages stay in the cache.
    """
    found: list[Damage] = []
    for wanted in files:
        damaged_bytes = await _damaged_bytes(store, wanted, throttle, in_use)
        if not damaged_bytes:
            continue
        failure: SyncError | None = None
        try:
            await repair(wanted)
        except SyncError as error:
            failure = error
        found.append(Damage(wanted=wanted, damaged_bytes=damaged_bytes, failure=failure))
    return tuple(found)


async def _damaged_bytes(
    store: BlobStore, wanted: Wanted, throttle: Throttle, in_use: Collection[str]
) -> int:
    """Count the bytes of chunks that are not right; all of them where that can't be told."""
    try:
        layout = layout_of(wanted.blob, await in_thread(store.map_of, wanted))
        with disk(store.path_of(wanted.blob.sha256)):
            descriptor = os.open(store.path_of(wanted.blob.sha256), os.O_RDONLY | os.O_CLOEXEC)
    except (BlobCorrupt, DiskRefused):
        return wanted.blob.length
    try:
        if wanted.blob.sha256 not in in_use:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return await _read(descriptor, layout, throttle, uncache=wanted.blob.sha256 not in in_use)
    finally:
        os.close(descriptor)


async def _read(descriptor: int, layout: Layout, throttle: Throttle, *, uncache: bool) -> int:
    damaged, whole = 0, hashlib.sha256()

    def step(offset: int, length: int, sha256: bytes) -> bool:
        try:
            data = os.pread(descriptor, length, offset)
        except OSError:
            return False  # the disk can't read it: as good as damaged
        if uncache:
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
        if layout.is_hashed:
            return hashlib.sha256(data).digest() == sha256
        whole.update(data)
        return True

    for chunk in layout.chunks:
        if not await in_thread(step, chunk.offset, chunk.length, chunk.sha256):
            damaged += chunk.length
        await throttle.take(chunk.length)
    if not layout.is_hashed and whole.hexdigest() != layout.blob.sha256:
        return layout.blob.length
    return damaged
