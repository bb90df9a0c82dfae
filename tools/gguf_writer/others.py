"""Write small random models of other architectures than llama, for tests of their memory.

What this room does: one model each whose attention has a sliding window, whose memory is a
recurrent state, and that has both an attention cache and a recurrent state.
What it knows: the keys and tensors that llama.cpp asks of these architectures
(src/models/cohere2.cpp, mamba.cpp, lfm2.cpp), at the smallest sizes that load and generate.
What it never does: quantise, or take sizes: these files are for tests, some hundred kB each.

Weights are scaled as in `writer`: activations keep their size, the last norm spreads the logits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, LlamaFileType

from tools.gguf_writer.writer import ATTENTION_GAIN, LOGIT_DEVIATION, add_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tools.gguf_writer.vocabulary import Vocabulary

    Dims = tuple[int, ...]

WINDOW_TOKENS = 16  # of the sliding-window model
_CONTEXT_TOKENS = 1024
_WIDTH = 64
_HIDDEN = 128
_HEADS, _KV_HEADS = 4, 2
_KV_WIDTH = _WIDTH // _HEADS * _KV_HEADS
_STATE, _KERNEL, _RANK = 16, 4, 4  # of the recurrent layers


class Architecture(StrEnum):
    """What can be written, by llama.cpp's name."""

    SLIDING_WINDOW = "cohere2"
    RECURRENT = "mamba"
    HYBRID = "lfm2"


def write_other(
    path: Path, architecture: Architecture, vocabulary: Vocabulary, *, seed: int = 0
) -> int:
    """Write a random model to `path`; return its size in bytes. Same arguments, same bytes."""
    writer = GGUFWriter(path, architecture.value)
    writer.add_type("model")
    writer.add_name(f"random-{architecture.value}")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_context_length(_CONTEXT_TOKENS)
    writer.add_embedding_length(_WIDTH)
    add_vocabulary(writer, vocabulary)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
    tensors = _Tensors(writer, seed)
    tensors.matrix("token_embd", vocabulary.size, _WIDTH)
    _WRITERS[architecture](writer, tensors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


class _Tensors:
    """Add tensors to a writer, each from the seed and its name."""

    def __init__(self, writer: GGUFWriter, seed: int) -> None:
        self._writer = writer
        self._seed = seed

    def matrix(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        values = self._random(name, (rows, columns)) * np.float32(gain / columns**0.5)
        self._writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def exact(self, name: str, values: NDArray[np.float32]) -> None:
        self._writer.add_tensor(name, np.ascontiguousarray(values, np.float32))

    def norm(self, name: str, value: float = 1.0, size: int = _WIDTH) -> None:
        self.exact(f"{name}.weight", np.full(size, value, np.float32))

    def kernel(self, name: str, channels: int, width: int) -> None:
        self.exact(f"{name}.weight", self._random(name, (channels, width)) / np.sqrt(width))

    def attention(self, block: str) -> None:
        self.matrix(f"{block}.attn_q", _WIDTH, _WIDTH, ATTENTION_GAIN)
        self.matrix(f"{block}.attn_k", _KV_WIDTH, _WIDTH, ATTENTION_GAIN)
        self.matrix(f"{block}.attn_v", _KV_WIDTH, _WIDTH)
        self.matrix(f"{block}.attn_output", _WIDTH, _WIDTH)

    def feed_forward(self, block: str) -> None:
        self.matrix(f"{block}.ffn_gate", _HIDDEN, _WIDTH)
        self.matrix(f"{block}.ffn_up", _HIDDEN, _WIDTH)
        self.matrix(f"{block}.ffn_down", _WIDTH, _HIDDEN)

    def _random(self, name: str, dims: Dims) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        return rng.standard_normal(dims, dtype=np.float32)


def _sliding_window(writer: GGUFWriter, tensors: _Tensors) -> None:
    """Four layers, of which llama.cpp gives every fourth the whole context."""
    writer.add_block_count(4)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_sliding_window(WINDOW_TOKENS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_logit_scale(1.0)
    writer.add_rope_freq_base(10_000.0)
    tensors.norm("output_norm", LOGIT_DEVIATION)
    for block in (f"blk.{layer}" for layer in range(4)):
        tensors.norm(f"{block}.attn_norm")
        tensors.attention(block)
        tensors.feed_forward(block)


def _recurrent(writer: GGUFWriter, tensors: _Tensors) -> None:
    inner = 2 * _WIDTH
    writer.add_block_count(2)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_time_step_rank(_RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    tensors.norm("output_norm", LOGIT_DEVIATION)
    for block in (f"blk.{layer}" for layer in range(2)):
        tensors.norm(f"{block}.attn_norm")
        tensors.matrix(f"{block}.ssm_in", 2 * inner, _WIDTH)
        tensors.kernel(f"{block}.ssm_conv1d", inner, _KERNEL)
        tensors.exact(f"{block}.ssm_conv1d.bias", np.zeros(inner, np.float32))
        tensors.matrix(f"{block}.ssm_x", _RANK + 2 * _STATE, inner)
        tensors.matrix(f"{block}.ssm_dt", inner, _RANK)
        tensors.exact(f"{block}.ssm_dt.bias", np.full(inner, -1.0, np.float32))
        decays = -np.arange(1, _STATE + 1, dtype=np.float32)  # as mamba begins its training
        tensors.exact(f"{block}.ssm_a", np.tile(decays, (inner, 1)))
        tensors.exact(f"{block}.ssm_d", np.ones(inner, np.float32))
        tensors.matrix(f"{block}.ssm_out", _WIDTH, inner)


def _hybrid(writer: GGUFWriter, tensors: _Tensors) -> None:
    """Two layers: a short convolution, whose memory is a state, then attention."""
    writer.add_block_count(2)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv([0, _KV_HEADS])  # no heads for keys: a layer with a state
    writer.add_shortconv_l_cache(_KERNEL)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    tensors.norm("token_embd_norm", LOGIT_DEVIATION)  # the last norm, in spite of its name
    for layer, block in enumerate(("blk.0", "blk.1")):
        tensors.norm(f"{block}.attn_norm")
        tensors.norm(f"{block}.ffn_norm")
        tensors.feed_forward(block)
        if layer:
            tensors.norm(f"{block}.attn_q_norm", ATTENTION_GAIN, _WIDTH // _HEADS)
            tensors.norm(f"{block}.attn_k_norm", ATTENTION_GAIN, _WIDTH // _HEADS)
            tensors.attention(block)
        else:
            tensors.kernel(f"{block}.shortconv.conv", _WIDTH, _KERNEL)
            tensors.matrix(f"{block}.shortconv.in_proj", 3 * _WIDTH, _WIDTH)
            tensors.matrix(f"{block}.shortconv.out_proj", _WIDTH, _WIDTH)


_WRITERS: dict[Architecture, Callable[[GGUFWriter, _Tensors], None]] = {
    Architecture.SLIDING_WINDOW: _sliding_window,
    Architecture.RECURRENT: _recurrent,
    Architecture.HYBRID: _hybrid,
}
