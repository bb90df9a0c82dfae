"""What is no LoRA adapter for a model is refused for one clear reason, before llama.cpp sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.gguf import GgufFault, GgufHead, TensorEntry, read_head
from appliance.runtime.adapter_head import AdapterFacts, check_adapter
from tools.gguf_writer import (
    SHAPES,
    Lora,
    Quantisation,
    byte_vocabulary,
    write_llama,
    write_lora,
)

PAIR = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, one that is tied, and an adapter."""
    path = tmp_path_factory.mktemp("adapters")
    tied = dataclasses.replace(SHAPES["tiny"], tied=True)
    write_llama(path / "model", SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    write_llama(path / "tied", tied, byte_vocabulary(), Quantisation.Q8_0)
    write_lora(path / "ada", path / "model", Lora(rank=4, alpha=8.0))
    return path


def check(place: Path, head: GgufHead, **bounds: int) -> AdapterFacts:
    return check_adapter(
        head, read_head(place / "model"), **({"rank_max": 64, "bytes_max": 1 << 20} | bounds)
    )


def test_a_whole_adapter_says_its_rank_and_alpha(place: Path) -> None:
    size = (place / "ada").stat().st_size
    facts = check(place, read_head(place / "ada"))
    assert facts == AdapterFacts(rank=4, alpha=8.0, pairs_count=10, file_bytes=size)


def with_metadata(**values: str | float) -> Callable[[GgufHead], GgufHead]:
    named = {name.replace("__", "."): value for name, value in values.items()}

    def change(head: GgufHead) -> GgufHead:
        kinds = {name: 6 if isinstance(value, float) else 8 for name, value in named.items()}
        return dataclasses.replace(head, metadata=head.metadata | named, kinds=head.kinds | kinds)

    return change


def with_tensors(**shapes: tuple[int, ...] | None) -> Callable[[GgufHead], GgufHead]:
    def change(head: GgufHead) -> GgufHead:
        tensors = dict(head.tensors)
        for end, shape in shapes.items():
            name = f"{PAIR}.{end}"
            if shape is None:
                del tensors[name]
            else:
                tensors[name] = TensorEntry(shape=shape, kind=0)
        return dataclasses.replace(head, tensors=tensors)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_metadata(general__type="model"), "its general.type is 'model', not 'adapter'"),
        (with_metadata(adapter__type="vera"), "its adapter.type is 'vera', not 'lora'"),
        (with_metadata(general__architecture="qwen2"), "the architecture 'qwen2', and the model"),
        (with_metadata(adapter__lora__alpha="8"), "adapter.lora.alpha is not a number of type"),
        (with_metadata(adapter__lora__alpha=float("nan")), "adapter.lora.alpha is not a number"),
        (with_metadata(adapter__alora__invocation_tokens="1"), "an activated LoRA"),
        (lambda head: dataclasses.replace(head, data_bytes_missing=7), "cut off: 7 bytes"),
        (lambda head: dataclasses.replace(head, tensors={}), "it holds no tensors"),
        (with_tensors(lora_a=None), f"'{PAIR}.lora_b' without '{PAIR}.lora_a'"),
        (with_tensors(lora_b=None), f"'{PAIR}.lora_a' without '{PAIR}.lora_b'"),
        (with_tensors(lora_a=(32, 4)), f"'{PAIR}.lora_a' is 32 x 4; for this model it is 64 x 4"),
        (with_tensors(lora_a=(64, 2)), f"'{PAIR}.lora_a' is 64 x 2; for this model it is 64 x 4"),
        (with_tensors(lora_b=(4, 32)), f"'{PAIR}.lora_b' is 4 x 32; for this model it is 4 x 64"),
        (with_tensors(lora_b=(4, 64, 2)), f"'{PAIR}.lora_b' is 4 x 64 x 2; for this model"),
        (with_tensors(lora_b=(4,)), f"'{PAIR}.lora_b' is 4; for this model it is 4 x 64"),
        (with_tensors(norm=(64,)), f"'{PAIR}.norm', which is not a matrix of a LoRA"),
    ],
)
def test_what_is_wrong_is_named(
    place: Path, change: Callable[[GgufHead], GgufHead], reason: str
) -> None:
    with pytest.raises(GgufFault, match=reason):
        check(place, change(read_head(place / "ada")))


def test_an_alpha_of_another_type_is_refused_which_llama_cpp_would_end_the_process_for(
    place: Path,
) -> None:
    head = read_head(place / "ada")
    double = dataclasses.replace(head, kinds=head.kinds | {"adapter.lora.alpha": 12})
    with pytest.raises(GgufFault, match="not a number of type float32"):
        check(place, double)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("blk.9.attn_q.weight", 0, "the model has no tensor 'blk.9.attn_q.weight'"),
        ("blk.0.attn_norm.weight", 0, "'blk.0.attn_norm.weight' is a vector"),
        ("blk.0.attn_q.weight", 26, "the type of 'blk.0.attn_q.weight.lora_a' is not one of F32"),
    ],
)
def test_a_pair_that_can_not_be_applied_is_named(
    place: Path, name: str, kind: int, reason: str
) -> None:
    entry = TensorEntry(shape=(64, 4), kind=kind)
    tensors = {f"{name}.lora_a": entry, f"{name}.lora_b": TensorEntry(shape=(4, 64), kind=0)}
    head = dataclasses.replace(read_head(place / "ada"), tensors=tensors)
    with pytest.raises(GgufFault, match=reason):
        check(place, head)


def test_both_bounds_are_held(place: Path) -> None:
    head = read_head(place / "ada")
    with pytest.raises(GgufFault, match=r"its rank is 4; limits.adapter_rank allows 3"):
        check(place, head, rank_max=3)
    with pytest.raises(GgufFault, match=r"limits.adapter_bytes allows 1000"):
        check(place, head, bytes_max=1000)


def test_an_adapter_of_the_token_embedding_fits_unless_it_is_the_output_too(place: Path) -> None:
    for model in ("model", "tied"):
        write_lora(place / f"{model}-embedding", place / model, Lora(targets=("token_embd",)))
    assert check(place, read_head(place / "model-embedding")).rank == 4
    with pytest.raises(GgufFault, match="uses it as its output too"):
        check_adapter(
            read_head(place / "tied-embedding"),
            read_head(place / "tied"),
            rank_max=64,
            bytes_max=1 << 20,
        )


def test_half_precision_fits_too(place: Path) -> None:
    write_lora(place / "half", place / "model", Lora(dtype=np.float16))
    assert check(place, read_head(place / "half")).pairs_count == 10


def test_the_matrices_of_experts_have_one_dimension_more(place: Path) -> None:
    model = read_head(place / "model")
    experts = TensorEntry(shape=(64, 192, 8), kind=0)
    model = dataclasses.replace(model, tensors={PAIR: experts})
    head = read_head(place / "ada")
    for shape, fits in (((4, 192, 8), True), ((4, 192), False)):
        tensors = {
            f"{PAIR}.lora_a": TensorEntry(shape=(64, 4, 8), kind=1),
            f"{PAIR}.lora_b": TensorEntry(shape=shape, kind=1),
        }
        changed = dataclasses.replace(head, tensors=tensors)
        if fits:
            assert check_adapter(changed, model, rank_max=4, bytes_max=1 << 20).rank == 4
        else:
            with pytest.raises(GgufFault, match="4 x 192; for this model it is 4 x 192 x 8"):
                check_adapter(changed, model, rank_max=4, bytes_max=1 << 20)
