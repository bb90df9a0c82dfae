"""Make random tensor data directly in ggml's storage types.

What this room does: bytes of F32, F16, Q8_0, Q4_0, Q4_K and Q6_K rows: values are zero-mean with a
wanted standard deviation; and which type each tensor of a mix gets.
What it knows: the block layouts of ggml-common.h (block_q4_0, block_q8_0, block_q4_K, block_q6_K).
What it never does: write, or know about files.

The theory: a quantised block is scale x integer. Integers drawn uniformly from their whole range
have a known standard deviation, so the scale alone sets that of the weights, and no quantiser is
needed: an 8B model is written as fast as random bytes come. Integer ranges that are not symmetric
would give every weight the same small bias, which a matrix product turns into a large common
offset; so scales get a random sign (Q4_0, Q6_K), minima cancel the mean (Q4_K) or the extra value
is cut off (Q8_0).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

CHUNK_BYTES = (
    32 * 1024 * 1024
)  # of one call of `random_rows`: bounds what it needs beside its result


class Quantisation(StrEnum):
    """The types a model file can have; `Q4_K_M` mixes Q4_K and Q6_K as llama.cpp does."""

    F32 = "F32"
    F16 = "F16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_K = "Q4_K"
    Q6_K = "Q6_K"
    Q4_K_M = "Q4_K_M"


FILE_TYPES = {
    Quantisation.F32: LlamaFileType.ALL_F32,
    Quantisation.F16: LlamaFileType.MOSTLY_F16,
    Quantisation.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Quantisation.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Quantisation.Q4_K: LlamaFileType.MOSTLY_Q4_K_S,
    Quantisation.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    Quantisation.Q4_K_M: LlamaFileType.MOSTLY_Q4_K_M,
}


def tensor_type(quantisation: Quantisation, name: str, layers: int) -> GGMLQuantizationType:
    """Choose the storage type of the two-dimensional tensor `name`.

    Q4_K_M follows llama-quant.cpp: the output, and the attention values and the feed-forward
    output of the layers named by `use_more_bits`, are Q6_K.
    """
    if quantisation is not Quantisation.Q4_K_M:
        return GGMLQuantizationType[quantisation.value]
    if name == "output.weight":
        return GGMLQuantizationType.Q6_K
    if name.endswith(("attn_v.weight", "ffn_down.weight")):
        layer, eighth = int(name.split(".")[1]), layers // 8
        if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2:  # noqa: PLR2004
            return GGMLQuantizationType.Q6_K
    return GGMLQuantizationType.Q4_K


def random_rows(
    rng: np.random.Generator,
    kind: GGMLQuantizationType,
    rows: int,
    row_bytes: int,
    deviation: float,
) -> Bytes:
    """Return (rows, row_bytes) uint8: random weights of this type and standard deviation."""
    maker, block_bytes = _MAKERS[kind]
    return maker(rng, rows * row_bytes // block_bytes, deviation).reshape(rows, row_bytes)


def _half(values: NDArray[np.float32]) -> Bytes:
    return values.astype("<f2").view(np.uint8).reshape(len(values), -1)


def _signs(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return (rng.integers(0, 2, count, dtype=np.int8) * np.int8(2) - 1).astype(np.float32)


def _any_bytes(rng: np.random.Generator, blocks: int, count: int) -> Bytes:
    return np.frombuffer(rng.bytes(blocks * count), np.uint8).reshape(blocks, count)


def _f32(rng: np.random.Generator, blocks: int, deviation: float) -> Bytes:
    weights = rng.standard_normal(blocks, dtype=np.float32) * np.float32(deviation)
    return weights.astype("<f4").view(np.uint8).reshape(blocks, -1)


def _f16(rng: np.random.Generator, blocks: int, deviation: float) -> Bytes:
    return _half(rng.standard_normal(blocks, dtype=np.float32) * np.float32(deviation))


def _q8_0(rng: np.random.Generator, blocks: int, deviation: float) -> Bytes:
    scale = np.full(blocks, deviation / (127 / np.sqrt(3)), np.float32)
    weights = np.maximum(_any_bytes(rng, blocks, 32).view(np.int8), np.int8(-127))
    return np.hstack([_half(scale), weights.view(np.uint8)])


# The standard deviation of integers uniform over 16 and over 64 values.
_DEVIATION_4_BITS = float(np.sqrt((16**2 - 1) / 12))
_DEVIATION_6_BITS = float(np.sqrt((64**2 - 1) / 12))


def _q4_0(rng: np.random.Generator, blocks: int, deviation: float) -> Bytes:
    scale = _signs(rng, blocks) * np.float32(deviation / _DEVIATION_4_BITS)
    return np.hstack([_half(scale), _any_bytes(rng, blocks, 16)])


def _q4_k(rng: np.random.Generator, blocks: int, deviation: float) -> Bytes:
    """Blocks of 256: value = d * scale * q - dmin * minimum, with minimum = scale, dmin = 7.5 d."""
    scales = rng.integers(32, 64, (blocks, 8), dtype=np.uint8)
    mean_square = np.mean(np.arange(32, 64) ** 2)
    unit = np.float32(deviation / (_DEVIATION_4_BITS * np.sqrt(mean_square)))
    heads = np.tile(_half(np.array([unit, 7.5 * unit], np.float32)).reshape(1, 4), (blocks, 1))
    # get_scale_min_k4 of ggml-quants.c: six bits each, the upper two of the last four packed above
    # the first eight bytes' six.
    low, high = scales[:, :4], scales[:, 4:]
    packed = np.hstack(
        [low | ((high >> 4) << 6), low | ((high >> 4) << 6), (high & 15) | ((high & 15) << 4)]
    )
    return np.hstack([heads, packed, _any_bytes(rng, blocks, 128)])


def _q6_k(rng: np.random.Generator, blocks: int, deviation: float) -> Bytes:
    """Blocks of 256: value = d * scale * (q - 32), scales of 16 values, signed."""
    sizes = rng.integers(64, 128, (blocks, 16), dtype=np.int8)
    scales = sizes * _signs(rng, blocks * 16).reshape(blocks, 16).astype(np.int8)
    mean_square = np.mean(np.arange(64, 128) ** 2)
    unit = np.float32(deviation / (_DEVIATION_6_BITS * np.sqrt(mean_square)))
    tails = _half(np.full(blocks, unit, np.float32))
    return np.hstack([_any_bytes(rng, blocks, 192), scales.view(np.uint8), tails])


_MAKERS: dict[
    GGMLQuantizationType, tuple[Callable[[np.random.Generator, int, float], Bytes], int]
] = {
    GGMLQuantizationType.F32: (_f32, 4),
    GGMLQuantizationType.F16: (_f16, 2),
    GGMLQuantizationType.Q8_0: (_q8_0, 34),
    GGMLQuantizationType.Q4_0: (_q4_0, 18),
    GGMLQuantizationType.Q4_K: (_q4_k, 144),
    GGMLQuantizationType.Q6_K: (_q6_k, 210),
}
