"""Cut a file into chunks, choose what to ask for next, and cut what comes back into chunks. Pure.

What this room does: the layout of a file (its chunk map's, or pieces of one size without hashes
where it has none); which missing chunks one request asks for; chunks out of a stream of bytes.
What it knows: a stream may begin before what was asked for (a server that ignores Range sends
all): bytes that nobody needs are passed over.
What it never does: hash, or trust: what comes out is as the source sent it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import msgspec

from appliance.contract.chunk_map import Chunk, ChunkMap
from appliance.contract.release import BlobRef

PIECE_BYTES = 4 << 20  # of a file without a map


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The chunks of one file, in order. `is_hashed`: each can be verified on its own."""

    blob: BlobRef
    chunks: tuple[Chunk, ...]
    is_hashed: bool

    @property
    def chunk_bytes_max(self) -> int:
        """Name the length of the largest chunk."""
        return max(chunk.length for chunk in self.chunks)

    @property
    def digest(self) -> bytes:
        """Tell layouts apart: what was recorded of one says nothing of another."""
        cuts = b"".join(chunk.length.to_bytes(8) + chunk.sha256 for chunk in self.chunks)
        return hashlib.sha256(cuts).digest()


def layout_of(blob: BlobRef, chunk_map: ChunkMap | None) -> Layout:
    """Lay a file out by its map, which must be of it, or in pieces of one size without hashes."""
    if chunk_map is not None:
        assert (chunk_map.sha256, chunk_map.length) == (blob.sha256, blob.length)
        return Layout(blob=blob, chunks=tuple(chunk_map.chunks()), is_hashed=True)
    starts = range(0, blob.length, PIECE_BYTES)
    pieces = tuple(
        Chunk(offset=start, length=min(PIECE_BYTES, blob.length - start), sha256=b"")
        for start in starts
    )
    return Layout(blob=blob, chunks=pieces, is_hashed=False)


class Plan:
    """Which chunks are missing, and which of those somebody has asked for."""

    def __init__(self, layout: Layout, missing: Sequence[int]) -> None:
        self._chunks = layout.chunks
        self._free = sorted(missing)
        self._free_bytes = sum(self._chunks[number].length for number in missing)
        self._claimed: set[int] = set()

    @property
    def is_complete(self) -> bool:
        """Say whether nothing is missing."""
        return not self._free and not self._claimed

    def claim(self, bytes_max: int, sharers: int) -> list[int]:
        """Take the first missing chunks that lie together, to be given back or marked as done.

        At most `bytes_max`, and near the end a fair part among `sharers`; at least one chunk
        where any is free.
        """
        allowed = min(bytes_max, max(PIECE_BYTES, self._free_bytes // sharers))
        taken: list[int] = []
        for number in self._free:
            length = self._chunks[number].length
            follows = not taken or number == taken[-1] + 1
            if taken and (not follows or length > allowed):
                break
            taken.append(number)
            allowed -= length
        return self._take(taken)

    def claim_all(self) -> list[int]:
        """Take everything that is free: for a source that can only send the whole."""
        return self._take(list(self._free))

    def done(self, number: int) -> None:
        """Note that a claimed chunk is verified and written."""
        self._claimed.remove(number)

    def give_back(self, numbers: Sequence[int]) -> None:
        """Free the claimed chunks among `numbers` that are not done."""
        back = [number for number in numbers if number in self._claimed]
        self._claimed.difference_update(back)
        self._free = sorted([*self._free, *back])
        self._free_bytes += sum(self._chunks[number].length for number in back)

    def _take(self, taken: list[int]) -> list[int]:
        self._free = self._free[len(taken) :]
        self._free_bytes -= sum(self._chunks[number].length for number in taken)
        self._claimed.update(taken)
        return taken


class Cutter:
    """Chunks out of the bytes of one source; what is incomplete survives a broken connection."""

    def __init__(self, chunks: Sequence[Chunk], numbers: Sequence[int], room: bytearray) -> None:
        """Wait for these chunks, in this order, which is that of the file.

        room: where a chunk is put together; as large as the largest, and nobody else's meanwhile.
        """
        self._chunks = chunks
        self._numbers = list(numbers)
        self._room = memoryview(room)
        self._filled = 0

    @property
    def waits_for(self) -> list[int]:
        """Name the chunks that have not come out."""
        return self._numbers

    @property
    def part_bytes(self) -> int:
        """Say how much of the next chunk is there."""
        return self._filled

    @property
    def span(self) -> tuple[int, int]:
        """Name the bytes that are needed: from the first, up to before the last."""
        last = self._chunks[self._numbers[-1]]
        return self._needs_at, last.offset + last.length

    def give_up_half(self) -> list[int]:
        """Leave the last half of what is waited for to somebody else; nothing of a single chunk."""
        kept = (len(self._numbers) + 1) // 2
        left = self._numbers[kept:]
        del self._numbers[kept:]
        return left

    def feed(self, position: int, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Take bytes that lie at `position`; gives (number, bytes) of each chunk that is whole.

        Bytes before what is needed are passed over; there must be no gap after it. What is given
        holds until the next step.
        """
        view = memoryview(data)
        while self._numbers:
            view = view[max(0, self._needs_at - position) :]
            position = max(position, self._needs_at)
            if not view:
                return
            chunk = self._chunks[self._numbers[0]]
            taken = view[: chunk.length - self._filled]
            self._room[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            if self._filled == chunk.length:
                self._filled = 0
                yield self._numbers.pop(0), self._room[: chunk.length]

    @property
    def _needs_at(self) -> int:
        return self._chunks[self._numbers[0]].offset + self._filled
