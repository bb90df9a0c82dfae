"""Read the head of a GGUF file, before anything that can crash on it does.

What this room does: metadata and where each entry lies, the list of tensors and where each lies,
and whether the file is as long as they say.
What it knows: the GGUF format, versions 2 and 3, little-endian (ggml/docs/gguf.md).
What it never does: read weights, allocate what a file announces before checking it against the
bounds and the file's size, or raise anything but `GgufFault`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from appliance.gguf.tensor_types import BLOCKS

MetadataValue: TypeAlias = int | float | bool | str

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_METADATA_MAX = 65_536
_TENSORS_MAX = 65_536
_STRING_BYTES_MAX = 16 * 1024 * 1024
_NAME_BYTES_MAX = 128  # of a tensor; ggml takes 64
_ARRAY_ITEMS_MAX = 16 * 1024 * 1024
_DIMENSIONS_MAX = 4
_ELEMENTS_MAX = 2**62
_ALIGNMENT = 32
_ALIGNMENT_MAX = 2**20
HEAD_BYTES_MAX = 256 * 1024 * 1024
KEPT_BYTES_MAX = 32 * 1024 * 1024  # of all texts outside arrays, which are kept in memory
STRINGS_MAX = 4 * 1024 * 1024  # in all arrays: each is stepped over by itself
_SHOWN_CHARS = 64
_STRING_TYPE = 8
_ARRAY_TYPE = 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_POOLING_RANK = 4


class GgufFault(Exception):
    """The file is not a whole GGUF; the text is one reason for a person, `field` what it is about.

    `field`: "file", a metadata key, or a tensor's name.
    """

    def __init__(self, reason: str, *, field: str = "file") -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of the list. `shape` has the row length first, as ggml counts.

    `offset` and `length` are bytes; the offset counts from `GgufHead.data_offset`.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHead:
    """What a file says of itself. Of arrays only the length is kept.

    `kinds` are GGUF's numbers of the values' types. `ranges`: where each entry begins and ends,
    name and type included, as offsets in the file. `tensors_offset`, `tensors_end`: where the list
    of tensors is; `data_offset`: where their bytes begin. `data_bytes_missing` is how much shorter
    the file is than its tensors need, 0 if whole.
    """

    version: int
    metadata: dict[str, MetadataValue]
    kinds: dict[str, int]
    array_lengths: dict[str, int]
    tensors: dict[str, TensorEntry]
    file_bytes: int
    data_bytes_missing: int
    ranges: dict[str, tuple[int, int]]
    tensors_offset: int
    tensors_end: int
    data_offset: int
    alignment: int

    @property
    def tensors_count(self) -> int:
        """Count the tensors."""
        return len(self.tensors)

    @property
    def architecture(self) -> str:
        """Read general.architecture, "" if absent."""
        return str(self.metadata.get("general.architecture", ""))

    def number(self, name: str, default: int = 0) -> int:
        """Read an integer of the architecture's own: `number("block_count")`."""
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        return int(value) if isinstance(value, int) else default

    @property
    def ranks(self) -> bool:
        """Tell whether the file says that it is a reranker (llama.h: LLAMA_POOLING_TYPE_RANK)."""
        return self.number("pooling_type") == _POOLING_RANK


def read_head(path: Path) -> GgufHead:
    """Read and check the head; blocks on the disk for some milliseconds.

    Raises:
        GgufFault: missing, unreadable, not a GGUF, cut off within the head, or out of bounds.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).head()
    except FileNotFoundError as error:
        raise GgufFault("the file does not exist") from error
    except IsADirectoryError as error:
        raise GgufFault("this is a directory, not a file") from error
    except OSError as error:
        raise GgufFault(f"the file can't be read: {error.strerror}") from error


class _Reader:
    """A cursor over the head, which never asks for more than the file holds."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._kept_bytes = 0
        self._strings_count = 0

    def head(self) -> GgufHead:
        magic = self._file.read(len(_MAGIC))
        if magic != _MAGIC:
            raise GgufFault("this is not a GGUF file (its first bytes are not 'GGUF')")
        version = self._unpack("<I")
        if version not in _VERSIONS:
            raise GgufFault(f"its GGUF version is {version}; versions 2 and 3 are known")
        tensors_count = self._count("tensors", _TENSORS_MAX)
        metadata_count = self._count("metadata entries", _METADATA_MAX)
        metadata: dict[str, MetadataValue] = {}
        kinds: dict[str, int] = {}
        array_lengths: dict[str, int] = {}
        ranges: dict[str, tuple[int, int]] = {}
        for _ in range(metadata_count):
            start = self._file.tell()
            name = self._text()
            if name in kinds:
                raise GgufFault(f"it has the metadata '{_shown(name)}' twice", field=name)
            kinds[name] = kind = int(self._unpack("<I"))
            if kind == _ARRAY_TYPE:
                array_lengths[name] = self._skip_array(name)
            else:
                metadata[name] = self._value(kind, name)
            ranges[name] = (start, self._file.tell())
        tensors_offset = self._file.tell()
        tensors: dict[str, TensorEntry] = {}
        data_bytes = max((self._tensor_end(tensors) for _ in range(tensors_count)), default=0)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _ALIGNMENT_MAX:
            raise GgufFault(f"its alignment is {alignment}", field="general.alignment")
        tensors_end = self._file.tell()
        start = -(-tensors_end // alignment) * alignment
        return GgufHead(
            version=version,
            metadata=metadata,
            kinds=kinds,
            array_lengths=array_lengths,
            tensors=tensors,
            file_bytes=self._size,
            data_bytes_missing=max(0, start + data_bytes - self._size),
            ranges=ranges,
            tensors_offset=tensors_offset,
            tensors_end=tensors_end,
            data_offset=start,
            alignment=alignment,
        )

    def _take(self, size: int) -> bytes:
        self._check_room(size)
        return self._file.read(size)

    def _unpack(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _count(self, what: str, limit: int) -> int:
        count = self._unpack("<Q")
        if count > limit:
            raise GgufFault(f"it announces {count} {what}; the limit is {limit}")
        return count

    def _text(self, bytes_max: int = _STRING_BYTES_MAX) -> str:
        size = self._unpack("<Q")
        if size > bytes_max:
            raise GgufFault(f"it announces a string of {size} bytes")
        self._kept_bytes += size
        if self._kept_bytes > KEPT_BYTES_MAX:
            raise GgufFault(f"its texts are longer than {KEPT_BYTES_MAX} bytes together")
        return self._take(size).decode("utf-8", errors="replace")

    def _value(self, kind: int, name: str) -> MetadataValue:
        if kind == _STRING_TYPE:
            return self._text()
        if kind not in _SCALARS:
            raise GgufFault(f"it has a metadata value of the unknown type {kind}", field=name)
        return self._unpack(_SCALARS[kind])

    def _skip_array(self, name: str) -> int:
        kind = self._unpack("<I")
        count = self._count("items in an array", _ARRAY_ITEMS_MAX)
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING_TYPE:
            self._strings_count += count
            if self._strings_count > STRINGS_MAX:
                reason = f"its arrays have more than {STRINGS_MAX} strings together"
                raise GgufFault(reason, field=name)
            for _ in range(count):
                self._skip(self._unpack("<Q"))
        else:
            raise GgufFault(f"it has an array of the unknown type {kind}", field=name)
        return count

    def _skip(self, size: int) -> None:
        self._check_room(size)
        self._file.seek(size, 1)

    def _check_room(self, size: int) -> None:
        if size > self._size - self._file.tell():
            raise GgufFault(f"the file is cut off within its header, at {self._size} bytes")
        if self._file.tell() + size > HEAD_BYTES_MAX:
            raise GgufFault(f"its header is longer than {HEAD_BYTES_MAX} bytes")

    def _tensor_end(self, tensors: dict[str, TensorEntry]) -> int:
        """Read one tensor's entry; returns where its bytes end, from the start of the data."""
        name = self._text(_NAME_BYTES_MAX)
        if name in tensors:
            raise GgufFault(f"it has the tensor '{_shown(name)}' twice", field=name)
        dimensions = self._unpack("<I")
        if not 0 < dimensions <= _DIMENSIONS_MAX:
            raise GgufFault(f"it has a tensor of {dimensions} dimensions", field=name)
        shape = tuple(self._unpack("<Q") for _ in range(dimensions))
        elements = math.prod(shape)
        kind = self._unpack("<I")
        offset = self._unpack("<Q")
        if not 0 < elements <= _ELEMENTS_MAX or offset > _ELEMENTS_MAX:
            raise GgufFault("it has a tensor of an impossible size", field=name)
        if kind not in BLOCKS:
            raise GgufFault(f"it has a tensor of the unknown type {kind}", field=name)
        block, block_bytes = BLOCKS[kind]
        length = -(-elements // block) * block_bytes
        tensors[name] = TensorEntry(shape=shape, kind=kind, offset=offset, length=length)
        return offset + length


def _shown(name: str) -> str:
    return name[:_SHOWN_CHARS]
