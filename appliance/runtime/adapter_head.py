"""Hold the head of a LoRA adapter against the model it is for, before llama.cpp parses it.

What this room does: what kind of file it is, for which architecture, its rank, and whether every
pair of matrices fits the model's own tensor.
What it knows: what llama.cpp takes on trust (llama-adapter.cpp, llama-graph.cpp). It asserts, and
so ends the process, where a value has another type than it expects or a matrix product can't be;
it leaves out, without a word, what it can't apply. Here both are refused.
What it never does: read weights, or look at what an adapter does to a model's answers.

A pair is two matrices, NAME.lora_a and NAME.lora_b, for the model's tensor NAME of shape
(row length, rows), and of one more dimension for experts:

    lora_a (row length, rank)    lora_b (rank, rows)    what is added: scale x alpha / rank x b a
    lora_a (rank, rows)          lora_b (rank, row length)         for the token embedding
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from appliance.gguf import GgufFault, GgufHead

_FLOAT32 = 6  # GGUF's number of the type of a value
_ENDS = (".lora_a", ".lora_b")
_KINDS = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"
_INVOCATION = "adapter.alora.invocation_tokens"
_ALPHA = "adapter.lora.alpha"
_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """What the head of an adapter says. `rank` is the largest; alpha 0: not scaled by rank."""

    rank: int
    alpha: float
    pairs_count: int
    file_bytes: int


def check_adapter(
    head: GgufHead, model: GgufHead, *, rank_max: int, bytes_max: int
) -> AdapterFacts:
    """Read what an adapter is, or refuse it; does not block.

    Raises:
        GgufFault: it is no whole LoRA adapter for this model, or is over a bound.
    """
    _check_kind(head, model)
    alpha = head.metadata.get(_ALPHA, 0.0)
    if head.kinds.get(_ALPHA, _FLOAT32) != _FLOAT32 or not math.isfinite(float(alpha)):
        raise GgufFault(f"its {_ALPHA} is not a number of type float32")
    if head.data_bytes_missing:
        raise GgufFault(
            f"the file is cut off: {head.data_bytes_missing} bytes of its tensors are missing"
        )
    if head.file_bytes > bytes_max:
        raise GgufFault(f"it has {head.file_bytes} bytes; limits.adapter_bytes allows {bytes_max}")
    ranks = [_pair_rank(head, model, name) for name in _pair_names(head)]
    if not ranks:
        raise GgufFault("it holds no tensors")
    if max(ranks) > rank_max:
        raise GgufFault(f"its rank is {max(ranks)}; limits.adapter_rank allows {rank_max}")
    return AdapterFacts(
        rank=max(ranks), alpha=float(alpha), pairs_count=len(ranks), file_bytes=head.file_bytes
    )


def _check_kind(head: GgufHead, model: GgufHead) -> None:
    kind = head.metadata.get("general.type")
    if kind != "adapter":
        raise GgufFault(f"it is no adapter: its general.type is {_shown(kind)}, not 'adapter'")
    kind = head.metadata.get("adapter.type")
    if kind != "lora":
        raise GgufFault(f"it is no LoRA adapter: its adapter.type is {_shown(kind)}, not 'lora'")
    made_for = head.metadata.get("general.architecture")
    if made_for != model.architecture:
        raise GgufFault(
            f"it is for the architecture {_shown(made_for)}, "
            f"and the model's is {_shown(model.architecture)}"
        )
    if _INVOCATION in head.kinds:
        raise GgufFault("it is an activated LoRA (aLoRA), which this engine does not serve")


def _pair_names(head: GgufHead) -> list[str]:
    """List the tensors of the model that the adapter changes; every tensor belongs to a pair."""
    names = []
    for tensor in head.tensors:
        name, end = tensor[: -len(_ENDS[0])], tensor[-len(_ENDS[0]) :]
        if end not in _ENDS or any(other in name for other in _ENDS):
            raise GgufFault(f"it holds {_shown(tensor)}, which is not a matrix of a LoRA")
        other = name + _ENDS[1 - _ENDS.index(end)]
        if other not in head.tensors:
            raise GgufFault(f"it holds {_shown(tensor)} without {_shown(other)}")
        if end == _ENDS[0]:
            names.append(name)
    return names


def _pair_rank(head: GgufHead, model: GgufHead, name: str) -> int:
    """Check one pair against the model's tensor; returns its rank."""
    own = model.tensors.get(name)
    if own is None:
        raise GgufFault(f"the model has no tensor {_shown(name)}")
    if name == _EMBEDDING and _OUTPUT not in model.tensors:
        raise GgufFault(
            "it changes the token embedding of a model that uses it as its output too, which "
            "llama.cpp can't do"
        )
    a, b = (head.tensors[name + end] for end in _ENDS)
    for end, tensor in zip(_ENDS, (a, b), strict=True):
        if tensor.kind not in _KINDS:
            allowed = ", ".join(_KINDS.values())
            raise GgufFault(f"the type of {_shown(name + end)} is not one of {allowed}")
    row, rows, *experts = _dimensions(own.shape)
    rank = _dimensions(b.shape)[0]
    if not experts and rows == 1:
        raise GgufFault(f"{_shown(name)} is a vector, to which llama.cpp applies no LoRA")
    expected = ((row, rank, *experts), (rank, rows, *experts))
    if name == _EMBEDDING:
        expected = ((rank, rows), (rank, row))
    for end, tensor, shape in zip(_ENDS, (a, b), expected, strict=True):
        if _dimensions(tensor.shape) != _dimensions(shape):
            wanted = " x ".join(map(str, shape))
            found = " x ".join(map(str, tensor.shape))
            raise GgufFault(f"{_shown(name + end)} is {found}; for this model it is {wanted}")
    return rank


def _dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Leave out trailing dimensions of 1, which say nothing; at least two are kept."""
    kept = [*shape, 1][: max(2, len(shape))]
    while len(kept) > 2 and kept[-1] == 1:  # noqa: PLR2004 - a matrix has two
        kept.pop()
    return tuple(kept)


def _shown(value: object) -> str:
    return "missing" if value is None else repr(str(value)[:_SHOWN_CHARS])
