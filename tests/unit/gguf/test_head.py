"""The head of a GGUF is read within bounds, and anything broken in it has one clear reason."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from appliance.gguf import GgufFault, read_head
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, name="tiny")
    return path


def test_the_head_of_a_whole_file_says_what_was_written(whole: Path) -> None:
    head = read_head(whole)
    shape = SHAPES["tiny"]
    assert head.architecture == "llama"
    assert head.metadata["general.name"] == "tiny"
    assert head.number("block_count") == shape.layers
    assert head.number("embedding_length") == shape.width
    assert head.number("no_such_key", 7) == 7
    assert head.array_lengths["tokenizer.ggml.tokens"] == byte_vocabulary().size
    assert head.data_bytes_missing == 0
    assert head.file_bytes == whole.stat().st_size


@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_a_file_that_ends_early_misses_that_many_bytes(
    whole: Path, tmp_path: Path, missing: int
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole.read_bytes()[:-missing])
    assert read_head(path).data_bytes_missing == missing


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04", "not a GGUF file"),
        (b"GGUF", "cut off within its header"),
        (b"GGUF\x01\0\0\0" + bytes(16), "version is 1"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 8 + bytes(8), "tensors; the limit is"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\xff" * 8, "metadata entries; the limit is"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\xff" * 8, "a string of"),
        (
            b"GGUF\x03\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\1" + bytes(7) + b"k\x63\0\0\0",
            "unknown type 99",
        ),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufFault, match=reason):
        read_head(path)


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GgufFault, match="does not exist"):
        read_head(tmp_path / "none.gguf")
    with pytest.raises(GgufFault, match="a directory"):
        read_head(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_never_does_more_than_raise(whole: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = whole.read_bytes()
    path = tmp_path / "damaged.gguf"
    for _ in range(20):
        damaged = bytearray(content[: rng.randrange(len(content))])
        for _ in range(rng.randint(1, 8)):
            if damaged:
                damaged[rng.randrange(min(len(damaged), 4000))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(GgufFault):
            assert read_head(path).data_bytes_missing >= 0
