"""Read files from a directory: a bundle on a stick, a share, a mirror on this machine.

What this room does: the stretch of a file that was asked for, in pieces.
What it knows: a stick may be pulled out while it is read; that is a source that failed.
What it never does: trust a file for where it lies, or follow a link as the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from appliance.contract.names import blob_path
from appliance.contract.release import BlobRef
from appliance.sync.sources import Body, SourceFailed

_PIECE_BYTES = 1 << 20


class FolderSource:
    """One directory that has `blobs/sha256/HH/HEX` below it."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._root = root

    async def close(self) -> None:
        """Hold nothing."""

    @contextlib.asynccontextmanager
    async def open(self, blob: BlobRef, start: int, stop: int) -> AsyncIterator[Body]:
        """Open the file at bytes `start` up to before `stop`.

        Raises:
            SourceFailed: it is not there, not of that length, or can't be read.
        """
        descriptor = await asyncio.to_thread(self._opened, blob)
        try:
            yield Body(start=start, pieces=pieces_of(descriptor, start, stop))
        finally:
            os.close(descriptor)

    def _opened(self, blob: BlobRef) -> int:
        path = self._root / blob_path(blob.sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise SourceFailed(error.strerror or "can't be read") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != blob.length:
            os.close(descriptor)
            raise SourceFailed(f"has no file of {blob.length} bytes under that name")
        return descriptor


async def pieces_of(descriptor: int, start: int, stop: int) -> AsyncIterator[bytes]:
    """Read an open file from byte `start` up to before `stop`; raises SourceFailed."""
    while start < stop:
        try:
            piece = await asyncio.to_thread(
                os.pread, descriptor, min(_PIECE_BYTES, stop - start), start
            )
        except OSError as error:
            raise SourceFailed(error.strerror or "can't be read") from error
        if not piece:
            return
        yield piece
        start += len(piece)
