"""Tell from a file's head what a model is and what it will need.

What this room does: parameters, quantisation, licence, bytes of a KV cache; the digests of the
tokenizer and of the chat template, which tell whether two versions speak alike.
What it knows: the keys of ggml/docs/gguf.md.
What it never does: read weights.

The tokenizer's digest is SHA-256 over its entries in the order of their keys, each as the file has
it (key, type and value), all but the chat templates, which may change without the tokens doing so.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from appliance.gguf.head import GgufFault, GgufHead
from appliance.gguf.tensor_types import NAMES, row_bytes

_TOKENIZER = "tokenizer."
_TEMPLATE = "tokenizer.chat_template"
_READ_BYTES = 1024 * 1024
# llama.h: enum llama_ftype; the names that people give files.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip


def parameters_count(head: GgufHead) -> int:
    """Count the weights of one file."""
    return sum(math.prod(tensor.shape) for tensor in head.tensors.values())


def quantisation(head: GgufHead) -> str:
    """Name the quantisation: what the file says, else the type that most bytes have."""
    said = head.metadata.get("general.file_type")
    if isinstance(said, int) and said in _FILE_TYPES:
        return _FILE_TYPES[said]
    sizes: dict[int, int] = {}
    for tensor in head.tensors.values():
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.length
    kind = max(sizes, key=lambda one: sizes[one], default=0)
    return NAMES.get(kind, f"TYPE_{kind}")


def kv_cache_bytes(head: GgufHead, type_k: str, type_v: str, cells: int) -> int:
    """Compute the size of a KV cache from the head's own numbers; an upper bound if per layer."""
    kv_heads = head.number("attention.head_count_kv", head.number("attention.head_count", 1))
    size_k, size_v = head_sizes(head)
    row = (row_bytes(type_k, size_k) or 0) + (row_bytes(type_v, size_v) or 0)
    return head.number("block_count") * kv_heads * row * cells


def head_sizes(head: GgufHead) -> tuple[int, int]:
    """Read how many values of a key and of a value one attention head has."""
    heads = head.number("attention.head_count", 1)
    size = head.number("embedding_length") // max(1, heads)
    return (
        head.number("attention.key_length", size),
        head.number("attention.value_length", size),
    )


def template_digest(head: GgufHead) -> str:
    """Compute the SHA-256 of the chat template's text, in hex; "" where there is none."""
    template = head.metadata.get(_TEMPLATE)
    return hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else ""


def tokenizer_digest(path: Path, head: GgufHead) -> str:
    """Compute the digest of the tokenizer, in hex; blocks for as long as reading it takes.

    Raises:
        GgufFault: the file can't be read, or has been cut off.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for key in sorted(head.ranges):
                if key.startswith(_TOKENIZER) and not key.startswith(_TEMPLATE):
                    start, end = head.ranges[key]
                    file.seek(start)
                    while start < end:
                        data = file.read(min(_READ_BYTES, end - start))
                        if not data:
                            raise GgufFault("the file was cut off while it was read", field=key)
                        digest.update(data)
                        start += len(data)
    except OSError as error:
        raise GgufFault(f"the file can't be read: {error.strerror}") from error
    return digest.hexdigest()
