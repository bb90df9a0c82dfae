"""Hold one unfinished file: its bytes, which of its chunks are right, and the record of that.

What this room does: `HEX.part`, its space reserved, chunks written where they belong; `HEX.map`,
which says what is on the disk for certain; the way from there to a file that is whole.
What it knows: a chunk is recorded only after fdatasync, so what the record says holds after a power
cut; what was written and not recorded is hashed again where a hash is known. A record of another
layout says nothing. Methods block; `verify`, `write` and `read` may run in several threads at once,
the others in one at a time.
What it never does: hash the whole file (`WholeHash` does), or write to a file that is finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from appliance.contract.chunk_map import CHUNKS_MAX
from appliance.errors import DiskFull, DiskRefused
from appliance.store.files import make_directory, sync_directory, write_durably
from appliance.sync.space import disk, reserve
from appliance.sync.spans import Layout

_RECORD_BYTES_MAX = CHUNKS_MAX + 1024
_PIECE_BYTES = 1 << 20  # of a file that is read back
_PART_MODE, _FINISHED_MODE = 0o600, 0o444


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What `HEX.map` holds. `verified`: a byte of '0' or '1' for each chunk."""

    layout: bytes
    verified: bytes


class Staged:
    """One file on its way. Open until `close`; nobody else can open it meanwhile."""

    def __init__(self, part: Path, layout: Layout, *, floor_bytes: int) -> None:
        """Open or create it, take its space, and find out what is already right.

        Raises:
            DiskFull: it does not fit beside the floor of free space.
            DiskRefused: the disk does not want it, or another process is writing it.
        """
        self.layout = layout
        self.verified: set[int] = set()
        self._is_old = False
        self._part = part
        self._map = part.with_suffix(".map")
        with disk(part, needed_bytes=layout.blob.length):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(part, flags, _PART_MODE)
        try:
            self._begin(floor_bytes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; what is recorded stays for the next time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def missing(self) -> list[int]:
        """List the chunks that are not there, in order."""
        return [one for one in range(len(self.layout.chunks)) if one not in self.verified]

    def recheck(self) -> Iterator[int]:
        """Look at chunks that may be there although the record does not say so; one a step.

        Gives the number of each that is right. Raises as `read`.
        """
        if not self.layout.is_hashed or not self._is_old:
            return
        for number in self.missing():
            chunk = self.layout.chunks[number]
            if self._has_data(chunk.offset, chunk.length) and self.is_right(number):
                yield number

    def is_right(self, number: int) -> bool:
        """Read a chunk back and say whether it is right. Raises as `read`."""
        return self.verify(number, self.read(number))

    def verify(self, number: int, data: bytes | memoryview) -> bool:
        """Say whether these are the bytes of that chunk, as far as its layout knows."""
        chunk = self.layout.chunks[number]
        if len(data) != chunk.length:
            return False
        return not self.layout.is_hashed or hashlib.sha256(data).digest() == chunk.sha256

    def write(self, number: int, data: bytes | memoryview) -> bool:
        """Write a chunk if its bytes are right; says whether they were.

        Raises:
            DiskFull, DiskRefused: the chunk is not written.
        """
        if not self.verify(number, data):
            return False
        view, offset = memoryview(data), self.layout.chunks[number].offset
        with disk(self._part, needed_bytes=len(data)):
            while view:
                count = os.pwrite(self._descriptor, view, offset)
                view, offset = view[count:], offset + count
        return True

    def copy(self, number: int, source: int, offset: int) -> None:
        """Take a chunk from another open file, sharing its blocks where the disk can.

        Raises:
            OSError: it can't, or not from there; `write` can.
        """
        chunk = self.layout.chunks[number]
        done = 0
        while done < chunk.length:
            count = os.copy_file_range(
                source, self._descriptor, chunk.length - done, offset + done, chunk.offset + done
            )
            if not count:
                raise OSError(errno.EIO, "the source ended")
            done += count

    def read(self, number: int) -> bytes:
        """Read a chunk back from the file.

        Raises:
            DiskRefused: the disk does not give it.
        """
        chunk = self.layout.chunks[number]
        with disk(self._part):
            return os.pread(self._descriptor, chunk.length, chunk.offset)

    def pieces(self, number: int, room: bytearray) -> Iterator[memoryview]:
        """Read a chunk back into `room`, as often as that takes. Raises as `read`."""
        chunk, view, done = self.layout.chunks[number], memoryview(room), 0
        while done < chunk.length:
            with disk(self._part):
                asked = view[: chunk.length - done]
                count = os.preadv(self._descriptor, [asked], chunk.offset + done)
            if not count:
                return  # cut off by somebody else: the digest will say so
            yield view[:count]
            done += count

    def record(self, verified: frozenset[int]) -> None:
        """Make these chunks durable, then the record that says so. Blocks for three syncs.

        Raises:
            DiskFull, DiskRefused: the old record stands.
        """
        bits = bytes(b"01"[one in verified] for one in range(len(self.layout.chunks)))
        with disk(self._map, needed_bytes=len(bits)):
            os.fdatasync(self._descriptor)
            record = _Record(layout=self.layout.digest, verified=bits)
            write_durably(self._map, msgspec.msgpack.encode(record), mode=_PART_MODE)

    def forget(self, numbers: Iterable[int]) -> None:
        """Take chunks for missing again, also after a power cut. Raises as `record`."""
        self.verified.difference_update(numbers)
        self.record(frozenset(self.verified))

    def uncache(self, length: int) -> None:
        """Let the page cache drop the first `length` bytes: models in use need it more."""
        with disk(self._part):
            os.posix_fadvise(self._descriptor, 0, length, os.POSIX_FADV_DONTNEED)

    def finish(self, target: Path) -> None:
        """Give the file its name, read-only and durable, in place of any other of that name.

        Who has mapped the other keeps it as it was.

        Raises:
            DiskFull, DiskRefused: it is still unfinished.
        """
        with disk(target):
            os.fsync(self._descriptor)
            os.fchmod(self._descriptor, _FINISHED_MODE)
            make_directory(target.parent)
            self._part.rename(target)
            sync_directory(target.parent)
            self._map.unlink(missing_ok=True)
            sync_directory(self._part.parent)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _begin(self, floor_bytes: int) -> None:
        length = self.layout.blob.length
        with disk(self._part):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                reason = "another process is writing it"
                raise DiskRefused(path=str(self._part), reason=reason) from error
            for leftover in self._part.parent.glob(f".{self._map.name}.*"):
                leftover.unlink(missing_ok=True)  # a kill came while a record was written
            before = os.fstat(self._descriptor).st_size
            if before > length:
                os.ftruncate(self._descriptor, length)
        try:
            reserve(self._descriptor, self._part, length, floor_bytes=floor_bytes)
        except DiskFull:
            if not before:  # what a failed reservation took is given back
                with contextlib.suppress(OSError):
                    self._part.unlink()
            raise
        self._is_old = before > 0
        self.verified = self._recorded()

    def _recorded(self) -> set[int]:
        try:
            with self._map.open("rb") as file:
                data = file.read(_RECORD_BYTES_MAX)
            record = msgspec.msgpack.decode(data, type=_Record)
        except (OSError, msgspec.DecodeError):
            return set()  # then everything is looked at again
        count = len(self.layout.chunks)
        if record.layout != self.layout.digest or len(record.verified) != count:
            return set()
        return {number for number in range(count) if record.verified[number] == ord("1")}

    def _has_data(self, offset: int, length: int) -> bool:
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA) < offset + length
        except OSError:
            return False  # only reserved space from there on


class WholeHash:
    """The SHA-256 of the whole file, read back from it as far as it is there without a gap."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._hash = hashlib.sha256()
        self._room = bytearray(_PIECE_BYTES)
        self._next = 0

    @property
    def is_whole(self) -> bool:
        """Say whether the last byte is in it."""
        return self._next == len(self._staged.layout.chunks)

    @property
    def length(self) -> int:
        """Say how many bytes are in it."""
        chunks = self._staged.layout.chunks
        return self._staged.layout.blob.length if self.is_whole else chunks[self._next].offset

    @property
    def reaches(self) -> bool:
        """Say whether the next chunk is there."""
        return self._next in self._staged.verified

    def step(self) -> None:
        """Take the next chunk in; blocks until it is read.

        Raises:
            DiskRefused: the disk does not give it.
        """
        for piece in self._staged.pieces(self._next, self._room):
            self._hash.update(piece)
        self._next += 1

    @property
    def is_right(self) -> bool:
        """Say whether the whole file is what its name says."""
        return self.is_whole and self._hash.hexdigest() == self._staged.layout.blob.sha256
