"""Write a small file so that it is there whole after a power cut, or not at all.

What this room does: temp file in the same directory, fsync, rename, fsync of the directory; takes
away what a killed process left of that.
What it knows: POSIX rename replaces a name at once, and is durable when the directory is synced.
What it never does: append, or leave a temp file behind on an error it can see.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from pathlib import Path

_MARK_BYTES = 8


def write_durably(path: Path, data: bytes, *, mode: int) -> None:
    """Put `data` at `path` with the permission bits `mode`, replacing what was there.

    Blocks for two fsyncs. The data is never readable by more than `mode` allows, not for a moment.
    An OSError leaves the old file as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_MARK_BYTES)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask took away
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def remove_unfinished(path: Path) -> None:
    """Remove what writes of `path` left that were cut short. Call while nobody writes it.

    Blocks; raises OSError. What comes back after a power cut is removed the next time.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * _MARK_BYTES}"):
        left.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make `path` and what is missing above it, durably; blocks for an fsync a level."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        sync_directory(one.parent)


def sync_directory(directory: Path) -> None:
    """Make renames and unlinks in `directory` durable; blocks for one fsync."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
