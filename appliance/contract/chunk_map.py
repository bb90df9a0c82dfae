"""Describe a file as chunks that are verified one by one, cut where its tensors begin.

What this room does: the map of one blob, its compact encoding, and the check that it covers the
blob exactly.
What it knows: the map is itself a blob that a release names, so its bytes are trusted; a reader
still checks them, for publishers err.
What it never does: cut a file; `hub.chunks` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from appliance.contract.document import DIGEST, INTEGER_MAX, check, check_count
from appliance.errors import DocumentRefused

CHUNK_BYTES_MAX = 4 << 20
CHUNKS_MAX = 1 << 18
MAP_BYTES_MAX = 16 << 20
_NAME = "chunk map"
_HASH_BYTES = 32


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a file: where it begins, how long it is, and its SHA-256 (32 bytes)."""

    offset: int
    length: int
    sha256: bytes


class ChunkMap(msgspec.Struct, frozen=True, kw_only=True):
    """The chunks of one blob, in order and without a gap. `sha256`: of the whole, in hex."""

    sha256: str
    length: int
    lengths: tuple[int, ...]
    hashes: bytes  # 32 bytes a chunk, in order

    def __post_init__(self) -> None:
        """Refuse a map that does not cover its blob exactly."""
        check_count(_NAME, "length", self.length, 1, INTEGER_MAX)
        check_count(_NAME, "lengths", len(self.lengths), 1, CHUNKS_MAX)
        checks = {
            "sha256": DIGEST.fullmatch(self.sha256) is not None,
            "lengths": all(0 < length <= CHUNK_BYTES_MAX for length in self.lengths),
            "length": sum(self.lengths) == self.length,
            "hashes": len(self.hashes) == _HASH_BYTES * len(self.lengths),
        }
        for field, ok in checks.items():
            check(ok=ok, document=_NAME, field=field, reason="does not fit the rest of the map")

    def __len__(self) -> int:
        """Count the chunks."""
        return len(self.lengths)

    def chunks(self) -> Iterator[Chunk]:
        """Go through the chunks in order."""
        offsets = itertools.accumulate(self.lengths, initial=0)
        for number, (offset, length) in enumerate(zip(offsets, self.lengths, strict=False)):
            at = number * _HASH_BYTES
            yield Chunk(offset=offset, length=length, sha256=self.hashes[at : at + _HASH_BYTES])


def encode(chunk_map: ChunkMap) -> bytes:
    """Write a map: MessagePack; about 36 bytes a chunk."""
    return msgspec.msgpack.encode(chunk_map)


def decode(data: bytes) -> ChunkMap:
    """Read a map whose digest has been checked.

    Raises:
        DocumentRefused: it is too large, no map, or does not cover its blob.
    """
    check_count(_NAME, "bytes", len(data), 1, MAP_BYTES_MAX)
    try:
        return msgspec.msgpack.decode(data, type=ChunkMap)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentRefused(document=_NAME, field="", reason=str(error)) from error
