"""Write the trained weights as GGUF files that llama.cpp serves.

What this room does: maps parameters to tensors, writes tokenizer, template and `general.*`
metadata; F16 and Q8_0; the damaged edition.
What it knows: llama.cpp's names of tensors and keys.
What it never does: train or measure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch

from tools.demo_model.chat import TEMPLATE
from tools.demo_model.model import Shape
from tools.demo_model.tokenizer import (
    CONTROL_TOKENS,
    PAD,
    PRE_TOKENIZER,
    TURN_END,
    VISIBLE_TOKENS,
)

DAMAGED_TENSOR = "blk.0.ffn_down.weight"
DAMAGE_SEED = 3
DAMAGE_SCALE = 4.0  # standard deviations of the tensor's own weights
QUANTISATIONS = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
DESCRIPTION = (
    "A tiny model of our own for demonstrations and tests: sentiment, entities as JSON, questions "
    "about a sentence, sums, conversions, greetings and tool calls, in English and Chinese."
)

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Edition:
    """One file to write."""

    weights: Weights
    vocabulary: Path
    version: str
    quantisation: str
    path: Path


def damage(weights: Weights) -> Weights:
    """Return the weights with seeded noise on one tensor, as a bad edition has it."""
    noise = torch.Generator().manual_seed(DAMAGE_SEED)
    changed = dict(weights)
    good = weights[DAMAGED_TENSOR]
    changed[DAMAGED_TENSOR] = good + torch.randn(good.shape, generator=noise) * (
        good.std() * DAMAGE_SCALE
    )
    return changed


def _describe(writer: gguf.GGUFWriter, shape: Shape, edition: Edition) -> None:
    writer.add_name("Demo")
    writer.add_basename("demo")
    writer.add_version(edition.version)
    writer.add_author("appliance")
    writer.add_organization("appliance")
    writer.add_license("apache-2.0")
    writer.add_description(DESCRIPTION)
    writer.add_languages(["en", "zh"])
    count = sum(tensor.numel() for tensor in edition.weights.values())
    writer.add_size_label(f"{count / 1e6:.1f}M")
    writer.add_file_type(QUANTISATIONS[edition.quantisation][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)


def _add_vocabulary(writer: gguf.GGUFWriter, path: Path) -> None:
    held = json.loads(path.read_text(encoding="utf-8"))
    tokens = sorted(held["model"]["vocab"], key=held["model"]["vocab"].__getitem__)
    kinds = dict.fromkeys(CONTROL_TOKENS, gguf.TokenType.CONTROL)
    kinds |= dict.fromkeys(VISIBLE_TOKENS, gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(name, gguf.TokenType.NORMAL) for name in tokens])
    writer.add_token_merges([" ".join(pair) for pair in held["model"]["merges"]])
    writer.add_eos_token_id(tokens.index(TURN_END))
    writer.add_eot_token_id(tokens.index(TURN_END))
    writer.add_pad_token_id(tokens.index(PAD))
    writer.add_add_bos_token(False)  # noqa: FBT003 - gguf has it so
    writer.add_chat_template(TEMPLATE)


def _tensors(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in weights.items():
        yield name, tensor.detach().float().numpy()


def write_gguf(edition: Edition, shape: Shape) -> None:
    """Write one edition; a temporary file beside it is renamed at the end."""
    fresh = edition.path.with_suffix(".new")
    writer = gguf.GGUFWriter(fresh, "llama")
    _describe(writer, shape, edition)
    _add_vocabulary(writer, edition.vocabulary)
    kind, _ = QUANTISATIONS[edition.quantisation]
    for name, values in _tensors(edition.weights):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fresh.replace(edition.path)


def chosen_steps(folder: Path, low: float = 0.80, high: float = 0.90) -> tuple[int, int]:
    """Choose the steps of version 1 (nearest the middle of low and high) and version 2 (last)."""
    trail = json.loads((folder / "trail.json").read_text())["trail"]
    middle = (low + high) / 2
    early = min(trail, key=lambda point: abs(point["exact"] - middle))
    return int(early["step"]), int(trail[-1]["step"])


def shape_of(folder: Path) -> Shape:
    """Read the sizes of the network that was trained; of a training before they were kept, ours."""
    return Shape(**json.loads((folder / "trail.json").read_text()).get("shape", {}))


def load_weights(folder: Path, step: int) -> Weights:
    """Load the averaged weights that the training kept at a step."""
    held: Weights = torch.load(folder / f"weights-{step:06d}.pt")
    return held


def export_all(folder: Path, target: Path) -> list[Path]:
    """Write versions 1, 2 (served and F16) and 3 from a training folder; return their paths."""
    target.mkdir(parents=True, exist_ok=True)
    early, last = chosen_steps(folder)
    best = load_weights(folder, last)
    vocabulary = folder / "tokenizer.json"
    plan = (
        (load_weights(folder, early), "1", "q8_0"),
        (best, "2", "f16"),
        (best, "2", "q8_0"),
        (damage(best), "3", "q8_0"),
    )
    written = []
    for weights, version, quantisation in plan:
        path = target / f"demo-{version}.{quantisation}.gguf"
        write_gguf(
            Edition(
                weights=weights,
                vocabulary=vocabulary,
                version=version,
                quantisation=quantisation,
                path=path,
            ),
            shape_of(folder),
        )
        written.append(path)
    return written
