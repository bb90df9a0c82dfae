"""Fetch files from a bundle as from any other source.

What this room does: finds a file in a bundle by its digest and reads what was asked for of it.
What it knows: in a tar a file is a stretch of the tar.
What it never does: trust a length: it must be the signed one, and each chunk is hashed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from appliance.contract.release import BlobRef
from appliance.sync.bundle import Bundle
from appliance.sync.folder_source import pieces_of
from appliance.sync.sources import Body, SourceFailed


class BundleSource:
    """The blobs of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Read from `bundle`."""
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
        place = await asyncio.to_thread(self._bundle.blob, blob.sha256)
        if place is None or place.length != blob.length:
            raise SourceFailed(f"has no file of {blob.length} bytes under that name")
        try:
            descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise SourceFailed(error.strerror or "can't be read") from error
        try:
            pieces = pieces_of(descriptor, place.offset + start, place.offset + stop)
            yield Body(start=start, pieces=pieces)
        finally:
            os.close(descriptor)
