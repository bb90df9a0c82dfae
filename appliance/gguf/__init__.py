"""Read what a GGUF file says of itself, before anything that can crash on it does.

What this room does: the head of a file, its tensors and where each lies, and every check that can
be made without reading a weight.
What it knows: the GGUF format, versions 2 and 3, little-endian (ggml/docs/gguf.md).
What it never does: read weights, or believe a number before it is held against a bound.
"""

from __future__ import annotations

from appliance.gguf.head import (
    GgufFault,
    GgufHead,
    MetadataValue,
    TensorEntry,
    ggml_type,
    read_head,
    row_bytes,
)

__all__ = [
    "GgufFault",
    "GgufHead",
    "MetadataValue",
    "TensorEntry",
    "ggml_type",
    "read_head",
    "row_bytes",
]
