"""Take chunks from files that are here already: another version shares most of its bytes.

What this room does: finds wanted chunks by their hash in the maps of files that are here, checks
that the bytes are still right, and copies them.
What it knows: the copy is made by the kernel where it can (copy_file_range), which on some disks
shares the blocks and costs nothing. Blocks; meant for a thread.
What it never does: trust a file that is here: bits rot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.contract.chunk_map import ChunkMap
from appliance.errors import SyncError
from appliance.sync.staging import Staged


def seed(staged: Staged, files: Iterable[tuple[Path, ChunkMap]]) -> Iterator[int]:
    """Copy every missing chunk that one of `files` has; gives the number of each, one a step.

    A file that can't be read gives nothing.

    Raises:
        DiskFull, DiskRefused: the file can't be written.
    """
    if not staged.layout.is_hashed:
        return
    wanted: dict[bytes, list[int]] = {}
    for number in staged.missing():
        wanted.setdefault(staged.layout.chunks[number].sha256, []).append(number)
    for path, chunk_map in files:
        if wanted:
            yield from _from(path, chunk_map, staged, wanted)


def _from(
    path: Path,
    chunk_map: ChunkMap,
    staged: Staged,
    wanted: dict[bytes, list[int]],
) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        for chunk in chunk_map.chunks():
            numbers = wanted.get(chunk.sha256)
            if not numbers:
                continue
            data = os.pread(descriptor, chunk.length, chunk.offset)
            if not staged.verify(numbers[0], data):
                continue  # rotten here; somebody else may have it
            for number in wanted.pop(chunk.sha256):
                _put(staged, number, descriptor, chunk.offset, data)
                yield number
    except SyncError:
        raise
    except OSError:
        return
    finally:
        os.close(descriptor)


def _put(staged: Staged, number: int, source: int, offset: int, data: bytes) -> None:
    try:
        staged.copy(number, source, offset)
    except OSError:
        staged.write(number, data)
