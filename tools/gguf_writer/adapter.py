"""Write random LoRA adapters for the models of this writer, or for any other GGUF.

What this room does: a pair of random matrices for each chosen tensor of a model becomes an adapter
that llama.cpp loads. The same arguments give the same bytes.
What it knows: the keys and names of llama.cpp's adapters (convert_lora_to_gguf.py).
What it never does: train.

The scale: with the weights of a model at 1/sqrt(columns), a matrix product keeps the size of what
goes in. `strength` is how large the adapter's part is beside that, at scale 1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFReader, GGUFWriter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

TARGETS = ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down")
_EMBEDDING = "token_embd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What an adapter is like. `targets` are the middle words of tensor names, e.g. attn_q."""

    rank: int = 4
    alpha: float = 8.0
    strength: float = 0.5
    targets: tuple[str, ...] = TARGETS
    dtype: DTypeLike = np.float32


def write_lora(path: Path, model: Path, lora: Lora | None = None, *, seed: int = 0) -> int:
    """Write a random adapter for the GGUF `model` to `path`; return its size in bytes.

    Raises:
        ValueError: the model has none of the targets.
    """
    lora = lora or Lora()
    reader = GGUFReader(model)
    shapes = {
        tensor.name: (int(tensor.shape[0]), int(tensor.shape[1]))
        for tensor in reader.tensors
        if tensor.name.endswith(".weight")
        and tensor.name.split(".")[-2] in lora.targets
        and len(tensor.shape) == 2  # noqa: PLR2004 - a matrix
    }
    if not shapes:
        message = f"{model} has no matrix among {', '.join(lora.targets)}"
        raise ValueError(message)
    architecture = str(reader.fields["general.architecture"].contents())
    partial = path.with_name(path.name + ".part")
    writer = GGUFWriter(partial, architecture)
    writer.add_type("adapter")
    writer.add_name(f"random-{path.stem}")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", lora.alpha)
    for name, (columns, rows) in shapes.items():
        for end, matrix in zip("ab", _pair(name, columns, rows, lora, seed), strict=True):
            writer.add_tensor(f"{name}.lora_{end}", matrix.astype(lora.dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path.stat().st_size


def _pair(
    name: str, columns: int, rows: int, lora: Lora, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make (rank, columns) and (rows, rank); for the token embedding (rows, rank), (columns, rank).

    From the seed and the name, so that no pair depends on another.
    """
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    first = (lora.rank, columns)
    second = (rows, lora.rank)
    if name.startswith(_EMBEDDING):
        first, second = (rows, lora.rank), (columns, lora.rank)
    a = rng.standard_normal(first, dtype=np.float32) / np.float32(columns**0.5)
    b = rng.standard_normal(second, dtype=np.float32)
    size = lora.strength * lora.rank**0.5 / (lora.alpha or lora.rank)
    return a, b * np.float32(size)
