"""Cut a model file into chunks, where its parts begin, so that what did not change is found again.

What this room does: where a file is cut; the digests of the chunks and of the whole, in one
reading and in constant memory.
What it knows: a chunk is found again by its content, wherever it lies. So cuts follow the parts of
the file and never its offsets: a longer chat template moves everything behind it and changes only
its own chunk and the padding.
What it never does: parse a file; its head has been checked before.

| part | cut |
|---|---|
| the counts and small metadata entries | together, between the large ones |
| a chat template; an entry of `ENTRY_BYTES_MIN` or more | on its own, every 4 MiB |
| the list of tensors; the padding behind it | each on its own |
| a tensor with the padding behind it | on its own, every 4 MiB from its beginning |
| tensors below `TENSOR_BYTES_MIN`, one after the other | together, up to `TENSOR_BYTES_MIN` |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.contract.chunk_map import CHUNK_BYTES_MAX, ChunkMap
from appliance.errors import PublishRefused
from appliance.gguf import GgufHead

ENTRY_BYTES_MIN = 16 * 1024
TENSOR_BYTES_MIN = 256 * 1024
_TEMPLATE = "tokenizer.chat_template"
_READ_BYTES = 1024 * 1024


def build(path: Path, head: GgufHead, sink: Callable[[bytes], object] | None = None) -> ChunkMap:
    """Read a file once and describe its chunks; blocks for as long as that takes.

    `sink` is handed every byte on the way, in order, a MiB at most at a time.

    Raises:
        PublishRefused: the file can't be read, or is no longer as long as `head` says.
    """
    whole = hashlib.sha256()
    hashes = bytearray()
    lengths = tuple(cuts(head))
    try:
        with path.open("rb") as file:
            for length in lengths:
                chunk, left = hashlib.sha256(), length
                while left:
                    data = file.read(min(_READ_BYTES, left))
                    if not data:
                        raise PublishRefused(what=str(path), reason="became shorter meanwhile")
                    chunk.update(data)
                    whole.update(data)
                    if sink is not None:
                        sink(data)
                    left -= len(data)
                hashes += chunk.digest()
            if file.read(1):
                raise PublishRefused(what=str(path), reason="became longer meanwhile")
    except OSError as error:
        raise PublishRefused(what=str(path), reason=error.strerror or str(error)) from error
    return ChunkMap(
        sha256=whole.hexdigest(), length=head.file_bytes, lengths=lengths, hashes=bytes(hashes)
    )


def cuts(head: GgufHead) -> Iterator[int]:
    """Say how long each chunk is, in order; together they are the file."""
    at = 0
    for end in _ends(head):
        while at < end:
            length = min(CHUNK_BYTES_MAX, end - at)
            yield length
            at += length


def new_bytes(known: ChunkMap, other: ChunkMap) -> int:
    """Count the bytes of `other` that whoever has `known` must still fetch."""
    have = {chunk.sha256 for chunk in known.chunks()}
    return sum(chunk.length for chunk in other.chunks() if chunk.sha256 not in have)


def _ends(head: GgufHead) -> Iterator[int]:
    """Say where the parts of a file end, in order; some may be of no length."""
    for key, (start, end) in head.ranges.items():
        if key.startswith(_TEMPLATE) or end - start >= ENTRY_BYTES_MIN:
            yield start  # the small ones before it
            yield end
    yield head.tensors_offset
    yield head.tensors_end
    yield head.data_offset
    starts = [head.data_offset + tensor.offset for tensor in head.tensors.values()]
    group_start = head.data_offset
    for start, end in zip(starts, [*starts[1:], head.file_bytes], strict=True):
        if end - start >= TENSOR_BYTES_MIN or end - group_start > TENSOR_BYTES_MIN:
            yield start
            group_start = start
        if end - start >= TENSOR_BYTES_MIN:
            yield end
            group_start = end
    yield head.file_bytes
