"""Check a whole model file before a native parser sees it.

What this room does: every check of a file's head that llama.cpp makes with an assert, with a crash
or not at all; the checks across the parts of a split model.
What it knows: llama.cpp wants tensors one after the other, in their order, each aligned
(gguf.cpp: gguf_init_from_file_impl), rows of whole blocks, and vocabularies of one length.
What it never does: read weights, or judge what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.gguf.head import GgufFault, GgufHead, read_head
from appliance.gguf.tensor_types import BLOCKS

TENSOR_NAME_BYTES_MAX = 63  # ggml.h: GGML_MAX_NAME, less the end mark
KEY_BYTES_MAX = 256
LAYERS_MAX = 512  # llama.cpp: LLAMA_MAX_LAYERS
EXPERTS_MAX = 512  # llama.cpp: LLAMA_MAX_EXPERTS
NUMBER_MAX = 2**31 - 1
TEMPLATE_BYTES_MAX = 1024 * 1024
SPLITS_MAX = 64
_UINT32 = 4
_STRING = 8
_TOKENS = "tokenizer.ggml.tokens"
_PER_TOKEN = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")
_TEMPLATE = "tokenizer.chat_template"
_SPLIT = ("split.no", "split.count", "split.tensors.count")
# Numbers of the architecture that llama.cpp sizes things by, and the most of each.
_NUMBERS = {
    "block_count": LAYERS_MAX,
    "expert_count": EXPERTS_MAX,
    "expert_used_count": EXPERTS_MAX,
    "context_length": NUMBER_MAX,
    "embedding_length": 2**20,
    "feed_forward_length": 2**24,
    "attention.head_count": 2**16,
    "attention.head_count_kv": 2**16,
    "attention.key_length": 2**16,
    "attention.value_length": 2**16,
    "vocab_size": 2**24,
}


def check_file(path: Path) -> GgufHead:
    """Read and check one file; blocks on the disk for some milliseconds, half a second at most.

    Raises:
        GgufFault: it is no whole GGUF file that a native parser may see.
    """
    head = read_head(path)
    _check_values(head)
    _check_tensors(head)
    return head


def check_split(heads: Sequence[GgufHead]) -> None:
    """Check that files, in their order, are the parts of one split model, or one file alone.

    Raises:
        GgufFault: a part is missing, twice, out of order, or of another model.
    """
    count = len(heads)
    if count == 1 and "split.count" not in heads[0].metadata:
        return
    if not 1 <= count <= SPLITS_MAX:
        raise GgufFault(f"{count} parts; at most {SPLITS_MAX} are possible", field="split.count")
    names: set[str] = set()
    for number, head in enumerate(heads):
        wanted = {"split.no": number, "split.count": count}
        for key, value in wanted.items():
            found = head.metadata.get(key)
            if found != value or isinstance(found, bool):
                reason = f"the {key} of part {number + 1} is {found}, not {value}"
                raise GgufFault(reason, field=key)
        for name in head.tensors:
            if name in names:
                raise GgufFault(f"two parts have the tensor '{name}'", field=name)
            names.add(name)
        total = head.metadata.get("split.tensors.count", -1)
        if total != heads[0].metadata.get("split.tensors.count", -1):
            raise GgufFault("its parts are of different models", field="split.tensors.count")
    if heads[0].metadata.get("split.tensors.count", len(names)) != len(names):
        reason = f"its parts have {len(names)} tensors together, and announce another number"
        raise GgufFault(reason, field="split.tensors.count")


def _check_values(head: GgufHead) -> None:
    for key in head.kinds:
        if not 0 < len(key.encode()) <= KEY_BYTES_MAX or not key.isprintable():
            reason = f"a key of its metadata is not 1 to {KEY_BYTES_MAX} printable bytes"
            raise GgufFault(reason, field=key)
    for key, kind in (
        ("general.architecture", _STRING),
        ("general.alignment", _UINT32),
        (_TEMPLATE, _STRING),
    ):
        if head.kinds.get(key, kind) != kind:
            raise GgufFault(f"its {key} is of the wrong type", field=key)
    if head.alignment & (head.alignment - 1):
        reason = f"its alignment is {head.alignment}, not a power of two"
        raise GgufFault(reason, field="general.alignment")
    if not head.architecture and "split.no" not in head.kinds:
        raise GgufFault("it names no architecture", field="general.architecture")
    if len(str(head.metadata.get(_TEMPLATE, "")).encode()) > TEMPLATE_BYTES_MAX:
        reason = f"its chat template is longer than {TEMPLATE_BYTES_MAX} bytes"
        raise GgufFault(reason, field=_TEMPLATE)
    _check_numbers(head)
    _check_vocabulary(head)


def _check_numbers(head: GgufHead) -> None:
    for name, limit in _NUMBERS.items():
        key = f"{head.architecture}.{name}"
        value = head.metadata.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise GgufFault(f"its {key} is {value}; it must be from 0 to {limit}", field=key)
    for key in _SPLIT:
        value = head.metadata.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise GgufFault(f"its {key} is {value}", field=key)


def _check_vocabulary(head: GgufHead) -> None:
    tokens = head.array_lengths.get(_TOKENS)
    if tokens is None:
        return
    for key in _PER_TOKEN:
        if head.array_lengths.get(key, tokens) != tokens:
            reason = f"its {key} has {head.array_lengths[key]} items for {tokens} tokens"
            raise GgufFault(reason, field=key)
    for key, value in head.metadata.items():
        if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
            continue
        if head.kinds[key] != _UINT32 or not 0 <= int(value) < tokens:
            raise GgufFault(f"its {key} is {value}; there are {tokens} tokens", field=key)


def _check_tensors(head: GgufHead) -> None:
    """Hold the tensors one after the other, aligned, of whole blocks, and to the file's end."""
    if not head.tensors and "split.no" not in head.kinds:
        raise GgufFault("it has no tensors")
    end = 0
    for name, tensor in head.tensors.items():
        size = len(name.encode())
        if not 0 < size <= TENSOR_NAME_BYTES_MAX or not name.isprintable():
            reason = f"a tensor's name is not 1 to {TENSOR_NAME_BYTES_MAX} printable bytes"
            raise GgufFault(reason, field=name)
        if tensor.shape[0] % BLOCKS[tensor.kind][0]:
            reason = f"the rows of '{name}' are not whole blocks of {BLOCKS[tensor.kind][0]}"
            raise GgufFault(reason, field=name)
        if tensor.offset % head.alignment:
            reason = f"'{name}' begins at {tensor.offset}, not aligned to {head.alignment}"
            raise GgufFault(reason, field=name)
        if tensor.offset < end:
            reason = f"'{name}' begins at {tensor.offset}, within the tensor before, to {end}"
            raise GgufFault(reason, field=name)
        if tensor.offset > end:
            reason = f"'{name}' begins at {tensor.offset}; what is before it ends at {end}"
            raise GgufFault(reason, field=name)
        end = _aligned(tensor.offset + tensor.length, head.alignment)
    if head.data_bytes_missing:
        reason = f"the file is cut off: {head.data_bytes_missing} bytes of its tensors are missing"
        raise GgufFault(reason)
    if head.file_bytes > max(head.data_offset + end, _aligned(head.data_offset, head.alignment)):
        extra = head.file_bytes - head.data_offset - end
        raise GgufFault(f"{extra} bytes follow its last tensor, which nothing describes")


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
