"""Define the network: the Llama architecture, as llama.cpp evaluates it.

What this room does: the modules, named so that `export` can map them to GGUF tensors one to one.
What it knows: rotary embedding over interleaved pairs (llama.cpp's NORM type), so that query and
key weights need no permutation; every row length is a multiple of 256, so that K-quants apply.
What it never does: read data or optimise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of the network."""

    layers: int = 5
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 768
    vocabulary: int = 2048
    context: int = 1024
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.width // self.heads


def rope_table(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each (length, head_width / 2) float32."""
    half = shape.head_width // 2
    rates = shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), rates)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of x (batch, heads, length, head_width)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class Block(nn.Module):
    """One layer: attention with grouped keys and values, then a gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, heads, self.shape.head_width).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x (batch, length, width) to the same shape."""
        shape = self.shape
        normed = self.attn_norm(x)
        query = _rotate(self._split(self.attn_q(normed), shape.heads), cos, sin)
        key = _rotate(self._split(self.attn_k(normed), shape.kv_heads), cos, sin)
        value = self._split(self.attn_v(normed), shape.kv_heads)
        groups = shape.heads // shape.kv_heads
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            is_causal=True,
        )
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(-2))
        normed = self.ffn_norm(x)
        gated = functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed)
        return x + self.ffn_down(gated)  # type: ignore[no-any-return]


class Llama(nn.Module):
    """The whole network; input and output embeddings are one matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        cos, sin = rope_table(shape, shape.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def hidden(self, token_ids: Tensor) -> Tensor:
        """Map ids (batch, length) to the last hidden states (batch, length, width)."""
        length = token_ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.token_embd(token_ids)
        for block in self.blk:
            x = block(x, cos, sin)
        return self.output_norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (…, width) to logits (…, vocabulary) in float32."""
        return functional.linear(hidden, self.token_embd.weight).float()
