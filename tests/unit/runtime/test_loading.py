"""Test how many KV cells a worker takes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.gguf import GgufFault, kv_cache_bytes, read_head
from appliance.runtime import wire
from appliance.runtime.loading import fit_cells
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

MIB = 1024 * 1024
OPTIONS = wire.EngineOptions(
    path="m.gguf",
    context_tokens=1024,
    cells_total=4096,
    cells_min=1024,
    sequences_max=4,
    batch_tokens=64,
    threads_decode=1,
    threads_prefill=1,
    gpu_layers=0,
    step_ms_while_streaming=300.0,
    step_ms_max=1000.0,
    queue_requests_max=4,
    output_reserve_tokens=16,
    ack_window_steps=4,
    memory_reserve_bytes=8 * MIB,
)


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    write_llama(path, SHAPES["small"], byte_vocabulary(), Quantisation.Q8_0, seed=1)
    return path


def _fixed_bytes(model: Path) -> int:
    return read_head(model).file_bytes + 64 * MIB + OPTIONS.memory_reserve_bytes


def test_all_cells_are_taken_where_memory_allows_or_is_unknown(model: Path) -> None:
    head = read_head(model)

    assert [fit_cells(head, OPTIONS, room) for room in (None, 2**40)] == [4096, 4096]


def test_fewer_cells_are_taken_where_memory_is_short(model: Path) -> None:
    head = read_head(model)
    room = _fixed_bytes(model) + kv_cache_bytes(head, "f16", "f16", 2000)

    assert fit_cells(head, OPTIONS, room) == 2000


def test_room_for_sequences_that_make_way_is_left_but_not_at_the_cost_of_the_least(
    model: Path,
) -> None:
    head = read_head(model)
    swapping = msgspec.structs.replace(OPTIONS, swap_bytes_max=4 * MIB)
    room = _fixed_bytes(model) + kv_cache_bytes(head, "f16", "f16", 2000)

    assert fit_cells(head, swapping, room + 4 * MIB) == 2000
    assert 1024 <= fit_cells(head, swapping, room) < 2000
    assert fit_cells(head, msgspec.structs.replace(OPTIONS, swap_bytes_max=2**40), room) == 1024


def test_a_model_for_which_not_even_one_context_fits_is_refused(model: Path) -> None:
    head = read_head(model)
    room = _fixed_bytes(model) + kv_cache_bytes(head, "f16", "f16", 1023)

    with pytest.raises(GgufFault, match="MiB are available"):
        fit_cells(head, OPTIONS, room)


def test_cells_that_the_operator_asked_for_are_never_reduced(model: Path) -> None:
    head = read_head(model)
    exact = msgspec.structs.replace(OPTIONS, cells_min=OPTIONS.cells_total)
    room = _fixed_bytes(model) + kv_cache_bytes(head, "f16", "f16", 2000)

    with pytest.raises(GgufFault):
        fit_cells(head, exact, room)


def test_the_cache_is_counted_in_the_bytes_of_its_types(model: Path) -> None:
    head = read_head(model)
    half, quarter = (kv_cache_bytes(head, name, name, 1000) for name in ("f16", "q8_0"))
    mixed = kv_cache_bytes(head, "f32", "q4_0", 1000)

    # ggml: 32 values take 64 bytes as f16, 34 as q8_0, 18 as q4_0 and 128 as f32.
    assert (quarter / half, mixed / half) == (34 / 64, (128 + 18) / (2 * 64))


def test_a_smaller_cache_lets_more_cells_fit(model: Path) -> None:
    head = read_head(model)
    small = msgspec.structs.replace(OPTIONS, cache_type_k="q8_0", cache_type_v="q8_0")
    room = _fixed_bytes(model) + kv_cache_bytes(head, "f16", "f16", 1500)

    assert fit_cells(head, OPTIONS, room) == 1500
    assert fit_cells(head, small, room) == 1500 * 64 // 34


def test_the_draft_model_and_its_cache_are_counted_too(model: Path) -> None:
    head = read_head(model)
    room = _fixed_bytes(model) + head.file_bytes + 64 * MIB  # the draft model: the same file
    room += 2 * kv_cache_bytes(head, "f16", "f16", 1500)

    assert fit_cells(head, OPTIONS, room, head) == 1500
    assert fit_cells(head, OPTIONS, room) == 4096
    with pytest.raises(GgufFault, match="MiB are available"):
        fit_cells(head, OPTIONS, _fixed_bytes(model) + head.file_bytes, head)
