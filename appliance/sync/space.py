"""Take space on the disk before it is needed, and say in our words why a disk refuses.

What this room does: reserves a file's blocks while a floor of free space stays; translates what the
operating system says of a disk.
What it knows: space is taken by posix_fallocate, so that what is promised can't be used by others;
a quota and a file size limit are a full disk to who writes.
What it never does: free space.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import DiskFull, DiskRefused

BLOCK_BYTES = 512  # of st_blocks, whatever the disk's own are
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def free_bytes(path: Path) -> int:
    """Read how much we may still write where `path` is."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def reserve(descriptor: int, path: Path, length: int, *, floor_bytes: int) -> None:
    """Give the open file `length` bytes of its own; what it has stays. Blocks shortly.

    Raises:
        DiskFull: then less than `floor_bytes` would be free.
        DiskRefused: the disk does not want to.
    """
    with disk(path, needed_bytes=length):
        needed = length - os.fstat(descriptor).st_blocks * BLOCK_BYTES
        usable = free_bytes(path.parent) - floor_bytes
        if needed > max(0, usable):
            raise DiskFull(path=str(path), needed_bytes=needed, free_bytes=max(0, usable))
        os.posix_fallocate(descriptor, 0, length)


@contextlib.contextmanager
def disk(path: Path, *, needed_bytes: int = 0) -> Iterator[None]:
    """Translate what a disk says while the block runs.

    Raises:
        DiskFull: there is no room, also by quota or limit.
        DiskRefused: read-only, damaged, not ours, or another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                path=str(path), needed_bytes=needed_bytes, free_bytes=_usable(path)
            ) from error
        raise DiskRefused(path=str(path), reason=error.strerror or str(error)) from error


def _usable(path: Path) -> int:
    try:
        return free_bytes(path.parent)
    except OSError:
        return 0
