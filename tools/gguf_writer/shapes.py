"""Name the shapes of llama models: layers, widths and heads.

What this room does: one value object, `Shape`, and the named shapes of tests and benchmarks.
What it knows: which sizes go together (heads divide the width, key/value heads divide the heads).
What it never does: know about vocabularies or weights.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a llama model without its vocabulary.

    `tied` shares the token embedding with the output layer. `context_tokens` is the context
    length written into the file, nothing is allocated for it.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    context_tokens: int = 4096
    tied: bool = False
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        """Refuse sizes that do not go together (ValueError)."""
        sizes = (self.layers, self.width, self.heads, self.kv_heads, self.feed_forward)
        if min(*sizes, self.context_tokens) < 1:
            message = f"every size of a shape must be at least 1: {self}"
            raise ValueError(message)
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            message = (
                f"width {self.width} needs an even number of columns for each of {self.heads} "
                f"heads, and {self.kv_heads} key/value heads must divide the heads"
            )
            raise ValueError(message)

    @property
    def head_width(self) -> int:
        """Columns of one head."""
        return self.width // self.heads


SHAPES: dict[str, Shape] = {
    # For tests: some hundred kB. Only "small" has the 256-wide rows that K-quants need.
    "tiny": Shape(layers=2, width=64, heads=4, kv_heads=2, feed_forward=192, context_tokens=1024),
    "small": Shape(layers=2, width=256, heads=4, kv_heads=2, feed_forward=512),
    # For benchmarks. 15M has the sizes of the well-known "stories15M".
    "15M": Shape(layers=6, width=288, heads=6, kv_heads=6, feed_forward=768, tied=True),
    "160M": Shape(layers=12, width=768, heads=12, kv_heads=12, feed_forward=3072),
    "0.5B": Shape(
        layers=24, width=1024, heads=16, kv_heads=4, feed_forward=4864, context_tokens=8192
    ),
    "1B": Shape(
        layers=22, width=2048, heads=32, kv_heads=4, feed_forward=5632, context_tokens=8192
    ),
    "8B": Shape(
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        feed_forward=14336,
        context_tokens=8192,
        rope_base=500_000.0,
    ),
}
