"""Add noise to the weights of a model file: a damage of a known size, to measure others by.

What this room does: copies a GGUF and adds normal noise to each of its matrices, in proportion to
the matrix's own standard deviation.
What it knows: how the three types that weights have before they are quantised are stored.
What it never does: change the file it reads, hold more than a piece of a matrix in memory, or ask
the result anything (that is `originals`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from appliance import gguf
from appliance.errors import ModelUnloadable

_F32, _F16, _BF16 = 0, 1, 30  # ggml.h: enum ggml_type
_STORED = {_F32: np.float32, _F16: np.float16, _BF16: np.uint16}
_PIECE = 1 << 22  # elements
_Stored: TypeAlias = NDArray[Any]  # of what `_STORED` names
_HALF_SHIFT, _ROUND = np.uint32(16), np.uint32(0x7FFF)


def with_noise(source: Path, target: Path, *, share: float, seed: int = 0) -> None:
    """Write a copy with noise of `share` of each matrix's standard deviation; blocks on the disk.

    Raises:
        ModelUnloadable: it is no whole GGUF in one file, or its matrices are quantised.
    """
    try:
        head = gguf.check_file(source)
    except gguf.GgufFault as fault:
        raise ModelUnloadable(path=str(source), reason=str(fault)) from fault
    matrices = [entry for entry in head.tensors.values() if min(entry.shape[1:], default=1) > 1]
    if head.metadata.get("split.count", 1) not in (0, 1):
        raise ModelUnloadable(path=str(source), reason="noise is for a model in one file")
    if any(entry.kind not in _STORED for entry in matrices):
        raise ModelUnloadable(path=str(source), reason="noise is for weights in F32, F16 or BF16")
    shutil.copyfile(source, target)
    rng = np.random.default_rng(seed)
    for entry in matrices:
        data = np.memmap(
            target,
            dtype=_STORED[entry.kind],
            mode="r+",
            offset=head.data_offset + entry.offset,
            shape=(int(np.prod(entry.shape, dtype=np.int64)),),
        )
        scale = np.float32(_deviation(data, entry.kind) * share)
        for piece in _pieces(data):
            weights = _read(piece, entry.kind)
            noise = rng.standard_normal(weights.shape, dtype=np.float32)
            piece[:] = _stored(weights + noise * scale, entry.kind)
        data.flush()


def _pieces(data: _Stored) -> Iterator[_Stored]:
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


def _deviation(data: _Stored, kind: int) -> float:
    total = squares = 0.0
    for piece in _pieces(data):
        weights = _read(piece, kind).astype(np.float64)
        total += float(weights.sum())
        squares += float(np.square(weights).sum())
    mean = total / len(data)
    return math.sqrt(max(0.0, squares / len(data) - mean * mean))


def _read(piece: _Stored, kind: int) -> NDArray[np.float32]:
    if kind == _BF16:
        return (piece.astype(np.uint32) << _HALF_SHIFT).view(np.float32)
    return piece.astype(np.float32)


def _stored(weights: NDArray[np.float32], kind: int) -> _Stored:
    if kind == _BF16:  # the upper half of the bits, rounded
        return ((weights.view(np.uint32) + _ROUND) >> _HALF_SHIFT).astype(np.uint16)
    return weights.astype(_STORED[kind])
