"""A file is cut where its parts begin, so that little is fetched for what changed little."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from gguf import GGUFValueType

from appliance.contract.chunk_map import CHUNK_BYTES_MAX, ChunkMap
from appliance.errors import PublishRefused
from appliance.gguf import check_file
from appliance.hub.chunks import build, cuts, new_bytes
from appliance.local_versions import embedded_models
from tools.gguf_writer import SHAPES, Quantisation, Shape, Vocabulary, byte_vocabulary, write_llama

# The proportions of a small model: 24 layers, and an embedding that is not most of it.
SHAPE = Shape(layers=24, width=256, heads=4, kv_heads=2, feed_forward=1024)
LARGE = 150_000


def large_vocabulary() -> Vocabulary:
    """Make a vocabulary of 150k tokens, as many models have."""
    plain = byte_vocabulary()
    more: dict[str, list[Any]] = {
        "tokenizer.ggml.tokens": [f"token-{n}" for n in range(LARGE - plain.size)],
        "tokenizer.ggml.token_type": [1] * (LARGE - plain.size),
        "tokenizer.ggml.scores": [0.0] * (LARGE - plain.size),
    }
    fields = tuple(
        replace(one, value=[*cast("list[str]", one.value), *more[one.key]])
        if one.key in more and one.value_type is GGUFValueType.ARRAY
        else one
        for one in plain.fields
    )
    return replace(plain, fields=fields, size=LARGE)


def mapped(path: Path) -> ChunkMap:
    return build(path, check_file(path))


def model(path: Path, template: str, vocabulary: Vocabulary | None = None) -> Path:
    write_llama(
        path, SHAPE, vocabulary or byte_vocabulary(), Quantisation.Q8_0, chat_template=template
    )
    return path


@pytest.mark.parametrize("path", sorted((embedded_models() / "demo").glob("*.gguf")), ids=str)
def test_the_chunks_are_the_file(path: Path) -> None:
    taken = hashlib.sha256()
    chunk_map = build(path, check_file(path), taken.update)
    content = path.read_bytes()
    assert chunk_map.sha256 == hashlib.sha256(content).hexdigest() == taken.hexdigest()
    assert chunk_map.length == len(content)
    for chunk in chunk_map.chunks():
        part = content[chunk.offset : chunk.offset + chunk.length]
        assert hashlib.sha256(part).digest() == chunk.sha256


@pytest.mark.parametrize("vocabulary", [byte_vocabulary(), large_vocabulary()], ids=["256", "150k"])
def test_a_new_template_costs_a_hundredth_at_most(tmp_path: Path, vocabulary: Vocabulary) -> None:
    one = mapped(model(tmp_path / "1", "{{ messages }}" * 99, vocabulary))
    two = mapped(model(tmp_path / "2", "{{ other }} and longer" * 150, vocabulary))
    assert 0 < new_bytes(one, two) <= two.length * 0.01
    assert len(two) < 400


def test_the_last_layers_cost_what_they_are(tmp_path: Path) -> None:
    path = model(tmp_path / "1", "{{ messages }}")
    before, head = mapped(path), check_file(path)
    content = bytearray(path.read_bytes())
    changed = 0
    for name, tensor in head.tensors.items():
        if name.startswith("blk.") and int(name.split(".")[1]) >= 20:
            at = head.data_offset + tensor.offset
            content[at : at + tensor.length] = bytes(tensor.length)
            changed += tensor.length
    (tmp_path / "2").write_bytes(content)
    fetched = new_bytes(before, mapped(tmp_path / "2"))
    assert changed * 0.5 < fetched <= min(changed * 1.05, len(content) * 0.2)


def test_one_kind_of_tensor_costs_what_it_is(tmp_path: Path) -> None:
    path = model(tmp_path / "1", "{{ messages }}")
    before, head = mapped(path), check_file(path)
    content = bytearray(path.read_bytes())
    changed = 0
    for name, tensor in head.tensors.items():
        if "ffn_down" in name:
            at = head.data_offset + tensor.offset
            content[at : at + tensor.length] = bytes(n % 251 for n in range(tensor.length))
            changed += tensor.length
    (tmp_path / "2").write_bytes(content)
    # Twins are one chunk: the zeros of the test are fetched once, so the bound is from above only.
    assert 0 < new_bytes(before, mapped(tmp_path / "2")) <= changed * 1.05


def test_a_chunk_has_a_size_and_follows_no_offset(tmp_path: Path) -> None:
    path = tmp_path / "1"
    write_llama(path, SHAPES["15M"], large_vocabulary(), Quantisation.F16)
    head = check_file(path)
    lengths = list(cuts(head))
    assert sum(lengths) == head.file_bytes
    assert max(lengths) == CHUNK_BYTES_MAX
    assert min(lengths) > 0


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "1"
    write_llama(path, SHAPES["15M"], large_vocabulary(), Quantisation.F16)
    head = check_file(path)
    assert head.file_bytes > 90 << 20
    tracemalloc.start()
    try:
        build(path, head)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_file_that_changes_under_our_hands_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path / "1", "")
    head = check_file(path)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(PublishRefused, match="became longer"):
        build(path, head)
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(PublishRefused, match="became shorter"):
        build(path, head)
    path.unlink()
    with pytest.raises(PublishRefused, match="No such file"):
        build(path, head)
