"""Read files from a bundle, a share or a mirror on this machine: wherever a path leads to them.

What this room does: the stretch of a file that was asked for, in pieces.
What it knows: a stick may be pulled out while it is read; that is a source that failed.
What it never does: trust a file for where it lies.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator

from appliance.contract.release import BlobRef
from appliance.sync.bundle import Bundle, Place
from appliance.sync.sources import Body, SourceFailed
from appliance.sync.threads import in_thread

_PIECE_BYTES = 1 << 20


class BundleSource:
    """The files of one bundle, a directory or a tar."""

    def __init__(self, bundle: Bundle) -> None:
        self.name = bundle.name
        self._bundle = bundle

    async def close(self) -> None:
        """Hold nothing."""

    @contextlib.asynccontextmanager
    async def open(self, blob: BlobRef, start: int, stop: int) -> AsyncIterator[Body]:
        """Open the file at bytes `start` up to before `stop`.

        Raises:
            SourceFailed: it is not there, not of that length, or can't be read.
        """
        descriptor, offset = await in_thread(
            self._opened, blob, undo=lambda opened: os.close(opened[0])
        )
        try:
            yield Body(start=start, pieces=_pieces(descriptor, offset, start, stop))
        finally:
            os.close(descriptor)

    def _opened(self, blob: BlobRef) -> tuple[int, int]:
        place: Place | None = self._bundle.blob(blob.sha256)
        if place is None or place.length != blob.length:
            raise SourceFailed(f"has no file of {blob.length} bytes under that name")
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(place.path, flags)
        except OSError as error:
            raise SourceFailed(error.strerror or "can't be read") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise SourceFailed("is no file any more")
        return descriptor, place.offset


async def _pieces(descriptor: int, offset: int, start: int, stop: int) -> AsyncIterator[bytes]:
    while start < stop:
        count = min(_PIECE_BYTES, stop - start)
        try:
            piece = await in_thread(os.pread, descriptor, count, offset + start)
        except OSError as error:
            raise SourceFailed(error.strerror or "can't be read") from error
        if not piece:
            return
        yield piece
        start += len(piece)
