"""Write a whole model file: metadata, tokenizer, random tensors.

What this room does: lists the tensors of a llama model, gives each its scale, streams them out.
What it knows: llama.cpp's tensor names, and how large weights must be for sane logits.
What it never does: keep more than one tensor in memory.

The scales: every matrix has standard deviation 1/sqrt(columns), so activations keep their size
through the layers. Queries and keys get twice that, which makes attention choose instead of
average, so that the next token depends on the context and greedy output does not fall into a short
loop at once. Embeddings are small beside what the layers add, so that a tied output does not just
repeat its input. The last norm multiplies by `LOGIT_DEVIATION`: that is the spread of the logits.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from tools.gguf_writer.blocks import (
    CHUNK_BYTES,
    FILE_TYPES,
    Quantisation,
    random_rows,
    tensor_type,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tools.gguf_writer.shapes import Shape
    from tools.gguf_writer.vocabulary import Vocabulary

EDITION = 1  # of what is written for the same arguments; part of the names of cached files
LOGIT_DEVIATION = 3.0
ATTENTION_GAIN = 2.0
_RESULTS = re.compile(r"blk\.(\d+)\.(?:attn_output|ffn_down)\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor to be written: (rows, columns), or (columns,) F32 constants where rows is 0."""

    name: str
    rows: int
    columns: int
    kind: GGMLQuantizationType
    deviation: float
    seed: int = 0  # beside that of the file

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row."""
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return self.columns // block * block_bytes


def write_llama(
    path: Path,
    shape: Shape,
    vocabulary: Vocabulary,
    quantisation: Quantisation,
    *,
    seed: int = 0,
    name: str = "",
    chat_template: str | None = None,
    alter: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """Write a random model to `path`, through a temporary file beside it; return its size in bytes.

    Blocks while writing (about a second for each GB). The same arguments give the same bytes.
    `chat_template` None takes the vocabulary's own; "" writes none. `alter` may give any
    tensor another type, seed or deviation; the others stay what they are.

    Raises:
        ValueError: the rows of the shape do not hold whole blocks of the quantisation.
    """
    tensors = tuple(map(alter or _as_it_is, _tensors(shape, vocabulary.size, quantisation)))
    for tensor in tensors:
        block = GGML_QUANT_SIZES[tensor.kind][0]
        if tensor.columns % block:
            message = f"{tensor.name}: {tensor.columns} columns are not blocks of {block}"
            raise ValueError(message)
    partial = path.with_name(path.name + ".part")
    writer = GGUFWriter(partial, "llama")
    _add_metadata(writer, shape, vocabulary, quantisation, name or f"random-{path.stem}")
    template = vocabulary.chat_template if chat_template is None else chat_template
    if template:
        writer.add_chat_template(template)
    _write_tensors(writer, tensors, seed)
    writer.close()
    partial.replace(path)
    return path.stat().st_size


def silent_layers(first: int) -> Callable[[Tensor], Tensor]:
    """Let layers from `first` on cost what others do and change nothing, by weights of 0.

    The model then says what one of so many layers says.
    """

    def silenced(tensor: Tensor) -> Tensor:
        where = _RESULTS.fullmatch(tensor.name)
        return replace(tensor, deviation=0.0) if where and int(where[1]) >= first else tensor

    return silenced


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _tensors(shape: Shape, tokens: int, quantisation: Quantisation) -> Iterator[Tensor]:
    """List the tensors as llama.cpp names them (LLM_ARCH_LLAMA in llama-arch.cpp)."""
    width, kv_width, hidden = shape.width, shape.kv_heads * shape.head_width, shape.feed_forward

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return Tensor(
            name=f"{name}.weight",
            rows=rows,
            columns=columns,
            kind=tensor_type(quantisation, f"{name}.weight", shape.layers),
            deviation=gain / columns**0.5,
        )

    def norm(name: str, value: float = 1.0) -> Tensor:
        kind = GGMLQuantizationType.F32
        return Tensor(name=f"{name}.weight", rows=0, columns=width, kind=kind, deviation=value)

    yield matrix("token_embd", tokens, width)
    yield norm("output_norm", LOGIT_DEVIATION)
    if not shape.tied:
        yield matrix("output", tokens, width)
    for layer in range(shape.layers):
        yield norm(f"blk.{layer}.attn_norm")
        yield matrix(f"blk.{layer}.attn_q", width, width, ATTENTION_GAIN)
        yield matrix(f"blk.{layer}.attn_k", kv_width, width, ATTENTION_GAIN)
        yield matrix(f"blk.{layer}.attn_v", kv_width, width)
        yield matrix(f"blk.{layer}.attn_output", width, width)
        yield norm(f"blk.{layer}.ffn_norm")
        yield matrix(f"blk.{layer}.ffn_gate", hidden, width)
        yield matrix(f"blk.{layer}.ffn_up", hidden, width)
        yield matrix(f"blk.{layer}.ffn_down", width, hidden)


def _add_metadata(
    writer: GGUFWriter,
    shape: Shape,
    vocabulary: Vocabulary,
    quantisation: Quantisation,
    name: str,
) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description("Random weights, for tests and benchmarks")
    writer.add_license("apache-2.0")
    writer.add_file_type(FILE_TYPES[quantisation])
    writer.add_quantization_version(2)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer, vocabulary)


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add a tokenizer's fields without its chat template."""
    writer.add_vocab_size(vocabulary.size)
    for field in vocabulary.fields:
        writer.add_key_value(field.key, field.value, field.value_type, field.item_type)


def _write_tensors(writer: GGUFWriter, tensors: tuple[Tensor, ...], seed: int) -> None:
    for tensor in tensors:
        size = tensor.row_bytes * max(tensor.rows, 1)
        dims = (tensor.rows, tensor.columns) if tensor.rows else (tensor.columns,)
        # A float dtype, so that the writer takes the dimensions as they are.
        writer.add_tensor_info(tensor.name, dims, np.dtype(np.float16), size, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_whole(tensor, seed))


def _whole(tensor: Tensor, seed: int) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Make a tensor's data: from the seed and the name, so that no tensor depends on another."""
    if not tensor.rows:
        return np.full(tensor.columns, tensor.deviation, np.float32)
    seeds = [seed, zlib.crc32(tensor.name.encode()), *([tensor.seed] if tensor.seed else [])]
    rng = np.random.Generator(np.random.SFC64(seeds))
    step = max(1, CHUNK_BYTES // tensor.row_bytes)
    data = np.empty((tensor.rows, tensor.row_bytes), np.uint8)
    for row in range(0, tensor.rows, step):
        rows = min(step, tensor.rows - row)
        data[row : row + rows] = random_rows(
            rng, tensor.kind, rows, tensor.row_bytes, tensor.deviation
        )
    return data
