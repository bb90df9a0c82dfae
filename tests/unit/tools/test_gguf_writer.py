"""The rules of the writer of random models: real llama.cpp loads them; same seed, same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from tools.gguf_writer import (
    SHAPES,
    Architecture,
    Lora,
    Quantisation,
    Shape,
    Tensor,
    byte_vocabulary,
    read_vocabulary,
    write_llama,
    write_lora,
    write_other,
)
from tools.gguf_writer.__main__ import main


def greedy(path: Path, count: int = 32, *more: object) -> dict[str, Any]:
    """Run the child that decodes with llama.cpp and return what it printed."""
    child = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("greedy.py")),
            *map(str, (path, count, *more)),
        ],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    said: dict[str, Any] = json.loads(child.stdout)
    return said


@pytest.mark.parametrize("quantisation", list(Quantisation))
def test_llama_cpp_decodes_every_type_with_sane_logits(
    tmp_path: Path, quantisation: Quantisation
) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, SHAPES["small"], byte_vocabulary(), quantisation, seed=1)
    said = greedy(path)
    assert said["finite"]
    assert said["deviation"] == pytest.approx(3.0, rel=0.3)
    assert len(set(said["ids"])) >= 8, "greedy output collapsed"


@pytest.mark.parametrize("architecture", list(Architecture))
def test_llama_cpp_decodes_other_architectures_with_sane_logits(
    tmp_path: Path, architecture: Architecture
) -> None:
    written = []
    for name in ("one.gguf", "two.gguf"):
        size = write_other(tmp_path / name, architecture, byte_vocabulary(), seed=1)
        written.append((tmp_path / name).read_bytes())
        assert len(written[-1]) == size < 400_000
    assert written[0] == written[1]
    said = greedy(tmp_path / "one.gguf")
    assert said["finite"]
    assert said["deviation"] == pytest.approx(3.0, rel=0.3)
    assert len(set(said["ids"])) >= 8, "greedy output collapsed"
    assert said["template"]


@pytest.mark.parametrize("quantisation", list(Quantisation))
def test_stored_weights_have_the_wanted_spread_and_no_offset(
    tmp_path: Path, quantisation: Quantisation
) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, SHAPES["small"], byte_vocabulary(), quantisation, seed=2)
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) == 2:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            wanted = (2.0 if "attn_q" in tensor.name or "attn_k" in tensor.name else 1.0) / np.sqrt(
                tensor.shape[0]
            )
            assert weights.std() == pytest.approx(wanted, rel=0.05), tensor.name
            assert abs(weights.mean()) < 0.03 * wanted, tensor.name


def test_the_mix_stores_the_output_and_some_layers_in_six_bits(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = replace(SHAPES["small"], layers=8)
    write_llama(path, shape, byte_vocabulary(), Quantisation.Q4_K_M)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    six = {name for name, kind in kinds.items() if kind == "Q6_K"}
    layers = (0, 3, 6, 7)  # the first eighth, the last eighth, every third between
    assert six == {"output.weight"} | {
        f"blk.{layer}.{part}.weight" for layer in layers for part in ("attn_v", "ffn_down")
    }


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    written = []
    for number, seed in enumerate((7, 7, 8)):
        path = tmp_path / str(number) / "model.gguf"
        path.parent.mkdir()
        size = write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, seed=seed)
        written.append(path.read_bytes())
        assert len(written[-1]) == size < 400_000
    assert written[0] == written[1]
    assert written[0] != written[2]
    assert not list(tmp_path.rglob("*.part"))


def test_an_adapter_changes_what_llama_cpp_says_as_much_as_its_scale(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_llama(model, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    for seed, name in ((1, "ada"), (1, "again"), (2, "bob")):
        size = write_lora(tmp_path / name, model, seed=seed)
        assert size == (tmp_path / name).stat().st_size < 40_000
    assert (tmp_path / "ada").read_bytes()[-9000:] == (tmp_path / "again").read_bytes()[-9000:]
    said = [
        greedy(model, 16, *more)
        for more in ((), (tmp_path / "ada", 0), (tmp_path / "ada", 1), (tmp_path / "bob", 1))
    ]
    ids = [one["ids"] for one in said]
    assert ids[0] == ids[1]
    assert len({tuple(one) for one in ids[1:]}) == 3
    assert all(one["finite"] and 1 < one["deviation"] < 20 for one in said)


def test_an_adapter_of_a_model_without_its_targets_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_llama(model, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    with pytest.raises(ValueError, match="has no matrix among nothing"):
        write_lora(tmp_path / "ada", model, Lora(targets=("nothing",)))


def test_a_tied_model_does_not_repeat_its_input(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = replace(SHAPES["tiny"], tied=True)
    write_llama(path, shape, byte_vocabulary(), Quantisation.F16, seed=3)
    said = greedy(path)
    assert len(set(said["ids"])) >= 8, "greedy output collapsed"


def test_the_byte_tokenizer_keeps_any_text_and_knows_its_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    said = greedy(path, 1)
    assert said["prompt"] == "<s><|im_start|>user\nhow are you, 你好?"
    # BOS, one special token, and bytes, some of which are merged: fewer tokens than bytes.
    assert said["prompt_tokens"] < len("user\nhow are you, 你好?".encode())
    assert said["template"]


def test_a_vocabulary_read_back_from_a_file_is_the_one_written(tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    write_llama(first, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, name="same")
    vocabulary = read_vocabulary(first)
    assert vocabulary == byte_vocabulary()
    write_llama(second, SHAPES["tiny"], vocabulary, Quantisation.Q8_0, name="same")
    assert first.read_bytes() == second.read_bytes()


def test_rows_that_hold_no_whole_block_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64 columns are not blocks of 256"):
        write_llama(tmp_path / "m.gguf", SHAPES["tiny"], byte_vocabulary(), Quantisation.Q4_K)
    assert not list(tmp_path.iterdir())


def test_a_shape_whose_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of columns"):
        Shape(layers=1, width=64, heads=3, kv_heads=1, feed_forward=64)
    with pytest.raises(ValueError, match="at least 1"):
        Shape(layers=0, width=64, heads=4, kv_heads=2, feed_forward=64)


def test_the_command_writes_a_named_shape_and_names_what_is_wrong(tmp_path: Path) -> None:
    out, template = tmp_path / "model.gguf", tmp_path / "template.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    options = ["--shape", "tiny", "--layers", "1", "--name", "mine", "--seed", "4"]
    done = CliRunner().invoke(main, [*options, "--chat-template", str(template), str(out)])
    assert done.exit_code == 0, done.output
    fields = gguf.GGUFReader(out).fields
    assert fields["general.name"].contents() == "mine"
    assert fields["llama.block_count"].contents() == 1
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    refused = CliRunner().invoke(main, [*options, "--quantisation", "Q4_K", str(out)])
    assert refused.exit_code == 2
    assert "not blocks of 256" in refused.output


def test_tensors_that_are_altered_leave_the_others_as_they_are(tmp_path: Path) -> None:
    usual, other = tmp_path / "usual.gguf", tmp_path / "other.gguf"
    one = "blk.1.ffn_down.weight"

    def altered(tensor: Tensor) -> Tensor:
        return replace(tensor, seed=1) if tensor.name == one else tensor

    for path, alter in ((usual, None), (other, altered)):
        write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, alter=alter)
    same = [
        bool(np.array_equal(ours.data, theirs.data))
        for ours, theirs in zip(
            gguf.GGUFReader(usual).tensors, gguf.GGUFReader(other).tensors, strict=True
        )
    ]
    names = [tensor.name for tensor in gguf.GGUFReader(usual).tensors]
    assert same == [name != one for name in names]
