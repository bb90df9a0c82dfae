"""Read what a GGUF file says of itself, before anything that can crash on it does.

What this room does: the head of a file, its tensors and where each lies, and every check that can
be made without reading a weight.
What it knows: the GGUF format, versions 2 and 3, little-endian (ggml/docs/gguf.md).
What it never does: read weights, or believe a number before it is held against a bound.
"""

from __future__ import annotations

from appliance.gguf.facts import (
    head_sizes,
    kv_cache_bytes,
    parameters_count,
    quantisation,
    template_digest,
    tokenizer_digest,
)
from appliance.gguf.head import GgufFault, GgufHead, MetadataValue, TensorEntry, read_head
from appliance.gguf.tensor_types import ggml_type, row_bytes
from appliance.gguf.whole import check_file, check_split

__all__ = [
    "GgufFault",
    "GgufHead",
    "MetadataValue",
    "TensorEntry",
    "check_file",
    "check_split",
    "ggml_type",
    "head_sizes",
    "kv_cache_bytes",
    "parameters_count",
    "quantisation",
    "read_head",
    "row_bytes",
    "template_digest",
    "tokenizer_digest",
]
