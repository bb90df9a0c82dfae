"""Look at a file's pages in memory, bring missing ones in, and lock them there.

What this room does: maps one file read-only; counts what is resident; reads what is missing; locks
and unlocks.
What it knows: mincore(2) and mlock(2), which Python does not offer; that pages which are only
looked at, and read through the file, can't end this process when the file is cut short.
What it never does: read through the mapping, write, or decide how much is locked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from pathlib import Path
from typing import Self

_PIECE_BYTES = 1024 * 1024
_LOCK_BYTES = 64 * 1024 * 1024  # at a time, so that another thread of ours never waits long
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class MappedFile:
    """One file. Every method blocks; for one thread at a time. A context manager."""

    def __init__(self, path: Path) -> None:
        """Map it.

        Raises:
            OSError: it can't be opened or mapped.
        """
        self.locked_bytes = 0
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._bytes = os.fstat(self._fd).st_size
        kind = (mmap.PROT_READ, mmap.MAP_SHARED, self._fd)
        self._address = _libc.mmap(None, max(1, self._bytes), *kind, 0)
        if self._address == _FAILED:
            os.close(self._fd)
            raise _error()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it, and of every lock. Idempotent."""
        if self._fd >= 0:
            _libc.munmap(self._address, max(1, self._bytes))
            os.close(self._fd)
            self._fd, self.locked_bytes = -1, 0

    def resident_ratio(self) -> float:
        """Tell how much of it is in memory, 0 to 1."""
        here = self._resident()
        return here.count(b"\x01") / len(here) if here else 1.0

    def touch(self) -> int:
        """Read what is not in memory; return how many bytes that were."""
        here, per_piece = self._resident(), _PIECE_BYTES // mmap.PAGESIZE
        buffer, read = bytearray(_PIECE_BYTES), 0
        for first in range(0, len(here), per_piece):
            if b"\x00" in here[first : first + per_piece]:
                read += os.preadv(self._fd, [buffer], first * mmap.PAGESIZE)
        return read

    def lock(self, bytes_max: int) -> bool:
        """Lock all of it in memory, bringing it in; False where that is more than is allowed."""
        if self._bytes > bytes_max:
            return False
        while self.locked_bytes < self._bytes:
            count = min(_LOCK_BYTES, self._bytes - self.locked_bytes)
            if _libc.mlock(self._address + self.locked_bytes, count):
                self.unlock()
                return False
            self.locked_bytes += count
        return True

    def unlock(self) -> None:
        """Let the kernel take the pages again. Idempotent."""
        _libc.munlock(self._address, max(1, self._bytes))
        self.locked_bytes = 0

    def _resident(self) -> bytes:
        """Read one byte a page: 1 where it is in memory.

        Raises:
            OSError: the kernel does not tell.
        """
        pages = -(-self._bytes // mmap.PAGESIZE)
        vector = ctypes.create_string_buffer(pages)
        if pages and _libc.mincore(self._address, self._bytes, vector):
            raise _error()
        return vector.raw[:pages]


def lockable_bytes() -> int:
    """Tell how much memory this process may lock, as its limit says."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return 2**63 - 1 if soft == resource.RLIM_INFINITY else soft


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
