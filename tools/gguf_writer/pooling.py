"""Write a random-weight BERT that pools: a reranker, or a model of embeddings.

What this room does: sizes, the byte tokenizer and F32 tensors become one GGUF of some 100 kB.
What it knows: llama.cpp's names of BERT's tensors and of the head of a reranker (cls, cls.output).
What it never does: train, so that its scores mean nothing but are the same for the same input.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, Keys, LlamaFileType, PoolingType

from tools.gguf_writer.vocabulary import END, byte_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tools.gguf_writer.vocabulary import Field

LAYERS, WIDTH, HEADS, HIDDEN = 2, 64, 4, 128
CONTEXT_TOKENS = 256


def write_bert(
    path: Path,
    *,
    pooling: PoolingType = PoolingType.RANK,
    head: bool = True,
    template: str = "",
    seed: int = 0,
) -> None:
    """Write the model; `head`: that of a reranker; `template`: how it wants query and document."""
    writer = GGUFWriter(path, "bert")
    writer.add_type("model")
    writer.add_name(path.stem)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)  # noqa: FBT003 - the library's signature
    writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    vocabulary = byte_vocabulary()
    for field in map(_with_ends, vocabulary.fields):
        writer.add_key_value(field.key, field.value, field.value_type, field.item_type)
    writer.add_sep_token_id(next(_ids_of(vocabulary.fields, END)))
    writer.add_add_sep_token(True)  # noqa: FBT003 - the library's signature
    if template:
        writer.add_string("tokenizer.chat_template.rerank", template)
    for name, shape in _tensors(vocabulary.size, head=head):
        writer.add_tensor(name, _values(name, shape, seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _with_ends(field: Field) -> Field:
    return replace(field, value=True) if field.key == Keys.Tokenizer.ADD_EOS else field


def _ids_of(fields: tuple[Field, ...], text: str) -> Iterator[int]:
    for field in fields:
        if field.key == Keys.Tokenizer.LIST and isinstance(field.value, list):
            yield field.value.index(text)  # type: ignore[arg-type]  # it is a list of texts


def _tensors(tokens: int, *, head: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List names and shapes (LLM_ARCH_BERT in llama.cpp)."""
    yield "token_embd.weight", (tokens, WIDTH)
    yield "position_embd.weight", (CONTEXT_TOKENS, WIDTH)
    yield "token_types.weight", (2, WIDTH)
    layers = [("token_embd_norm", 0, WIDTH)]
    for layer in range(LAYERS):
        sizes = {
            **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH)),
            "attn_output_norm": (0, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
            "layer_output_norm": (0, WIDTH),
        }
        layers += [(f"blk.{layer}.{name}", *size) for name, size in sizes.items()]
    if head:
        layers += [("cls", WIDTH, WIDTH), ("cls.output", 1, WIDTH)]
    for name, rows, columns in layers:
        yield f"{name}.weight", (rows, columns) if rows else (columns,)
        yield f"{name}.bias", (rows or columns,)


def _values(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Make a tensor from the seed and its name: norms of 1, small biases, the rest random."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("_norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith(".bias"):
        return values * np.float32(0.1)
    if name.startswith(("token", "position")):
        return values
    # A small last step keeps f16's rounding inside flash attention well below a score's 1e-3.
    gain = 0.3 if name == "cls.output.weight" else 1.0
    return values * np.float32(gain / shape[-1] ** 0.5)
