"""A file that a native parser may see is whole; whatever is forged in it has one reason, named."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.gguf import (
    GgufFault,
    GgufHead,
    check_file,
    check_split,
    kv_cache_bytes,
    parameters_count,
    quantisation,
    read_head,
    template_digest,
    tokenizer_digest,
)
from appliance.local_versions import embedded_models
from tools.gguf_writer import (
    SHAPES,
    Lora,
    Quantisation,
    byte_vocabulary,
    write_bert,
    write_llama,
    write_lora,
)

DEMOS = sorted((embedded_models() / "demo").glob("*.gguf"))
Damage = Callable[[bytearray], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, name="tiny")
    return path


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.name)
def test_the_models_that_come_with_the_program_are_whole(path: Path) -> None:
    head = check_file(path)
    assert quantisation(head) in path.name.upper()
    assert parameters_count(head) > 4_000_000
    assert kv_cache_bytes(head, "f16", "f16", 1) == 5 * 2 * 128 * 2


def test_every_kind_of_real_file_is_whole(tmp_path: Path, whole: Path) -> None:
    write_lora(tmp_path / "lora.gguf", whole, Lora(rank=4))
    write_bert(tmp_path / "bert.gguf")
    for name in ("lora.gguf", "bert.gguf"):
        check_file(tmp_path / name)
    assert check_file(whole).metadata["general.name"] == "tiny"


def test_the_ranges_cover_the_metadata_without_a_gap(whole: Path) -> None:
    head = check_file(whole)
    ranges = [*head.ranges.values()]
    assert ranges[0][0] == 24
    assert ranges[-1][1] == head.tensors_offset
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    content = whole.read_bytes()
    start, end = head.ranges["general.name"]
    assert content[start:end].endswith(b"tiny")


def entry(content: bytes, name: str) -> int:
    """Find where a tensor's dimensions begin in the list of tensors."""
    mark = struct.pack("<Q", len(name)) + name.encode()
    return content.index(mark) + len(mark)


def damaged(whole: Path, tmp_path: Path, damage: Damage) -> Path:
    content = bytearray(whole.read_bytes())
    damage(content)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    return path


def at_tensor(name: str, behind: int, layout: str, value: int) -> Damage:
    """Write a number into a tensor's entry: 4 bytes of count, 8 a dimension, 4 of type, offset."""

    def damage(content: bytearray) -> None:
        struct.pack_into(layout, content, entry(bytes(content), name) + behind, value)

    return damage


def at_value(key: str, layout: str, value: int) -> Damage:
    def damage(content: bytearray) -> None:
        struct.pack_into(layout, content, content.index(key.encode()) + len(key) + 4, value)

    return damage


def renamed(old: bytes, new: bytes) -> Damage:
    def damage(content: bytearray) -> None:
        at = content.index(old)
        content[at : at + len(old)] = new

    return damage


FIRST, SECOND, NORM = "token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight"


@pytest.mark.parametrize(
    ("damage", "reason", "field"),
    [
        (at_tensor(FIRST, 0, "<I", 5), "of 5 dimensions", FIRST),
        (at_tensor(FIRST, 0, "<I", 0), "of 0 dimensions", FIRST),
        (at_tensor(FIRST, 4, "<Q", 2**61), "impossible size", FIRST),
        (at_tensor(FIRST, 4, "<Q", 0), "impossible size", FIRST),
        (at_tensor(FIRST, 4, "<Q", 65), "not whole blocks of 32", FIRST),
        (at_tensor(FIRST, 12, "<Q", 2**20), "within the tensor before", SECOND),
        (at_tensor(FIRST, 12, "<Q", 1), "what is before it ends at", SECOND),
        (at_tensor(FIRST, 20, "<I", 33), "unknown type 33", FIRST),
        (at_tensor(FIRST, 24, "<Q", 32), "what is before it ends at 0", FIRST),
        (at_tensor(NORM, 16, "<Q", 0), "within the tensor before", NORM),
        (at_tensor(NORM, 16, "<Q", 7), "not aligned to 32", NORM),
        (at_tensor(NORM, 16, "<Q", 2**63), "impossible size", NORM),
        (at_tensor(NORM, 16, "<Q", 2**40), "what is before it ends at", NORM),
        (renamed(b"blk.0.attn_norm", b"blk.1.attn_norm"), "the tensor 'blk.1.* twice", ""),
        (renamed(b"general.name", b"general.type"), "metadata 'general.type' twice", ""),
        (renamed(b"blk.0.attn_norm", b"blk.0.attn\0norm"), "printable", ""),
        (renamed(b"general.license", b"general.li\0ense"), "printable", ""),
        (at_value("llama.block_count", "<I", 513), "from 0 to 512", "llama.block_count"),
        (at_value("llama.attention.head_count", "<I", 2**31), "from 0 to 65536", ""),
        (renamed(b"llama.block_count\x04", b"llama.block_count\x05"), "", ""),
        (at_value("tokenizer.ggml.bos_token_id", "<I", 70_000), "there are", ""),
        (lambda content: content.extend(bytes(64)), "64 bytes follow its last tensor", "file"),
        (lambda content: content.__delitem__(slice(-9, None)), "9 bytes of its tensors", "file"),
    ],
)
def test_what_is_forged_is_named(
    whole: Path, tmp_path: Path, damage: Damage, reason: str, field: str
) -> None:
    path = damaged(whole, tmp_path, damage)
    if not reason:
        check_file(path)  # an i32 that is in range, an entry nobody knows: harmless
        return
    with pytest.raises(GgufFault, match=reason) as caught:
        check_file(path)
    assert field in {"", caught.value.field}


def written(path: Path, change: Callable[[GGUFWriter], None], architecture: str = "llama") -> Path:
    """Write a file of one small tensor with the metadata that `change` adds."""
    import numpy as np  # noqa: PLC0415 - for one array

    writer = GGUFWriter(path, architecture)
    change(writer)
    writer.add_tensor(path.stem, np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.add_key_value("general.alignment", 64, GGUFValueType.UINT64), "wrong type"),
        (lambda w: w.add_key_value("general.alignment", 48, GGUFValueType.UINT32), "power of two"),
        (lambda w: w.add_key_value("general.alignment", 0, GGUFValueType.UINT32), "alignment is 0"),
        (lambda w: w.add_chat_template("x" * (1024 * 1024 + 1)), "template is longer"),
        (lambda w: w.add_key_value("k" * 257, 1, GGUFValueType.UINT32), "1 to 256 printable"),
        (lambda w: w.add_key_value("llama.block_count", "x", GGUFValueType.STRING), "from 0 to"),
        (lambda w: (w.add_token_list(["a", "b"]), w.add_token_scores([1.0])), "1 items for 2"),
        (lambda w: (w.add_token_list(["a"]), w.add_bos_token_id(1)), "there are 1 tokens"),
        (lambda w: w.add_key_value("split.no", -1, GGUFValueType.INT32), "split.no is -1"),
    ],
)
def test_metadata_that_contradicts_itself_is_named(
    tmp_path: Path, change: Callable[[GGUFWriter], None], reason: str
) -> None:
    with pytest.raises(GgufFault, match=reason):
        check_file(written(tmp_path / "a.gguf", change))


def headed(path: Path, entries: list[bytes]) -> Path:
    path.write_bytes(b"GGUF\3\0\0\0" + struct.pack("<QQ", 0, len(entries)) + b"".join(entries))
    return path


def strings(key: str, count: int) -> bytes:
    """Write an array of empty strings."""
    named = struct.pack("<Q", len(key)) + key.encode()
    return named + struct.pack("<IIQ", 9, 8, count) + bytes(8 * count)


def test_what_a_head_makes_a_reader_do_and_keep_is_bounded(tmp_path: Path) -> None:
    path = headed(tmp_path / "a.gguf", [strings("a", 2**21), strings("b", 2**21 + 1)])
    with pytest.raises(GgufFault, match="more than 4194304 strings together"):
        read_head(path)
    text = struct.pack("<I", 8) + struct.pack("<Q", 2**24 - 1) + bytes(2**24 - 1)
    keys = (struct.pack("<Q", 1) + name for name in (b"a", b"b", b"c"))
    path = headed(tmp_path / "b.gguf", [key + text for key in keys])
    with pytest.raises(GgufFault, match="longer than 33554432 bytes together"):
        read_head(path)


def part(number: int, count: int, total: int) -> Callable[[GGUFWriter], None]:
    def change(writer: GGUFWriter) -> None:
        writer.add_key_value("split.no", number, GGUFValueType.UINT16)
        writer.add_key_value("split.count", count, GGUFValueType.UINT16)
        writer.add_key_value("split.tensors.count", total, GGUFValueType.INT32)

    return change


def test_the_parts_of_a_split_model_are_complete_and_in_order(tmp_path: Path) -> None:
    parts = [written(tmp_path / f"{n}.gguf", part(n, 2, 2)) for n in range(2)]
    heads = [check_file(path) for path in parts]
    check_split(heads)
    wrong: tuple[tuple[list[GgufHead], str], ...] = (
        (heads[::-1], "split.no of part 1 is 1"),
        (heads[:1], "split.count of part 1 is 2, not 1"),
        ([heads[0], check_file(written(tmp_path / "0.gguf", part(1, 2, 2)))], "two parts have"),
        ([heads[0], check_file(written(tmp_path / "2.gguf", part(1, 2, 3)))], "different models"),
        ([check_file(written(tmp_path / "3.gguf", part(0, 1, 9)))], "have 1 tensors together"),
        ([heads[0]] * 65, "at most 64"),
        ([], "at most 64"),
    )
    for given_heads, reason in wrong:
        with pytest.raises(GgufFault, match=reason):
            check_split(given_heads)


def test_the_tokenizers_digest_changes_with_tokens_and_not_with_the_template(
    tmp_path: Path,
) -> None:
    def model(name: str, template: str, quantisation: Quantisation, tokens: bool = True) -> Path:  # noqa: FBT001, FBT002 - of one test
        path = tmp_path / name
        vocabulary = byte_vocabulary()
        write_llama(path, SHAPES["tiny"], vocabulary, quantisation, chat_template=template)
        if not tokens:
            content = path.read_bytes()
            start, _ = read_head(path).ranges["tokenizer.ggml.tokens"]
            at = content.index(b"<s>", start)
            path.write_bytes(content[:at] + b"<z>" + content[at + 3 :])
        return path

    paths = (
        model("a", "one", Quantisation.Q8_0),
        model("b", "another", Quantisation.F16),
        model("c", "one", Quantisation.Q8_0, tokens=False),
    )
    heads = [read_head(path) for path in paths]
    digests = [tokenizer_digest(path, head) for path, head in zip(paths, heads, strict=True)]
    assert digests[0] == digests[1] != digests[2]
    assert template_digest(heads[0]) == template_digest(heads[2]) != template_digest(heads[1])
    paths[0].write_bytes(b"GGUF")
    with pytest.raises(GgufFault, match="cut off while it was read"):
        tokenizer_digest(paths[0], heads[0])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=6),
    cut=st.floats(0.5, 1),
)
def test_no_mutation_does_more_than_raise_a_fault(
    whole: Path, tmp_path: Path, changes: list[tuple[float, bytes]], cut: float
) -> None:
    content = bytearray(whole.read_bytes())
    head_bytes = read_head(whole).data_offset
    for where, new in changes:
        at = int(where * (head_bytes - len(new)))
        content[at : at + len(new)] = new
    path = tmp_path / "mutated.gguf"
    path.write_bytes(content[: int(cut * len(content))])
    with contextlib.suppress(GgufFault):
        head = check_file(path)
        ends = [one.offset + one.length for one in head.tensors.values()]
        assert head.data_offset + max(ends) <= head.file_bytes
        assert all(len(data) for data in head.ranges)
