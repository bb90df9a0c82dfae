"""A cache is partitioned where that was asked for, or measured to be worth what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec
import pytest

from appliance.clock import monotonic_ms
from appliance.domain import CacheLayout, MemoryKind, SamplingOptions, StopOptions
from appliance.errors import ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.cache_layout import (
    SPEEDUP_MIN,
    LayoutChoice,
    Speedup,
    choose_layout,
    measure_speedup,
    part_cells,
)
from appliance.runtime.llama import ContextOptions, Model
from appliance.runtime.loading import Loaded, load
from tools.gguf_writer import (
    SHAPES,
    Architecture,
    Quantisation,
    byte_vocabulary,
    write_llama,
    write_other,
)

OPTIONS = wire.EngineOptions(
    path="",
    context_tokens=256,
    cells_total=4096,
    sequences_max=8,
    batch_tokens=64,
    threads_decode=1,
    threads_prefill=1,
    gpu_layers=0,
    step_ms_while_streaming=300.0,
    step_ms_max=1000.0,
    queue_requests_max=8,
    output_reserve_tokens=16,
    ack_window_steps=16,
)
SIZES = ContextOptions(
    cells=4096,
    batch_tokens=64,
    sequences_max=8,
    threads_decode=1,
    threads_prefill=1,
    embedding=False,
)


@pytest.fixture(name="tiny", scope="module")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, seed=1)
    return path


@pytest.fixture(name="model", scope="module")
def _model(tiny: Path) -> Model:
    return Model(tiny, gpu_layers=0, on_progress=lambda _ratio: None)


def patient_ms() -> float:
    """Tell a time that passes slowly, so that a busy machine is measured nevertheless."""
    return monotonic_ms() / 100


def loaded(path: Path, **fields: object) -> Loaded:
    options = msgspec.structs.replace(OPTIONS, path=str(path), **fields)
    return load(options, patient_ms, lambda _ratio: None)


def never() -> Speedup:
    raise AssertionError


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", list(CacheLayout))
def test_what_the_configuration_asks_for_is_done_without_measuring(layout: CacheLayout) -> None:
    choice = choose_layout(layout.value, MemoryKind.CUTTABLE, 512, 8192, never)
    assert (choice.layout, choice.speedup) == (layout, 0.0)


def test_a_part_smaller_than_a_context_is_not_taken_without_being_asked_for() -> None:
    choice = choose_layout("auto", MemoryKind.WHOLE, 512, 8192, never)
    reason = "a part would hold 512 of the 8192 tokens of a context"
    assert choice == LayoutChoice(layout=CacheLayout.UNIFIED, reason=reason)


@pytest.mark.parametrize("kind", list(MemoryKind))
def test_partitions_must_be_faster_by_what_they_cost(kind: MemoryKind) -> None:
    def chosen(ratio: float) -> CacheLayout:
        choice = choose_layout(
            "auto", kind, 256, 256, lambda: Speedup(ratio=ratio, full=1.5, gaps=0.7)
        )
        assert choice.speedup == ratio
        assert f"{ratio:.2f} times as fast (1.50 with all sequences, 0.70 with" in choice.reason
        return choice.layout

    least = SPEEDUP_MIN[kind]
    found = [chosen(ratio) for ratio in (0.8, least, least + 0.01)]
    assert found == [CacheLayout.UNIFIED, CacheLayout.UNIFIED, CacheLayout.PARTITIONED]


def test_what_can_share_needs_more_to_give_it_up() -> None:
    assert SPEEDUP_MIN[MemoryKind.CUTTABLE] > SPEEDUP_MIN[MemoryKind.WHOLE] > 1.0


def test_without_a_measurement_the_cache_stays_unified() -> None:
    choice = choose_layout(
        "auto", MemoryKind.WHOLE, 256, 256, lambda: Speedup(missing="it is Monday")
    )
    assert choice == LayoutChoice(layout=CacheLayout.UNIFIED, reason="not measured: it is Monday")


def test_parts_are_whole_blocks_within_the_cells_and_no_more_than_a_context() -> None:
    found = [
        part_cells(cells, sequences, context)
        for cells, sequences, context in (
            (32768, 64, 8192),
            (4096, 5, 8192),
            (4096, 4, 300),
            (1000, 4, 300),
        )
    ]
    assert found == [512, 768, 512, 0]


# --- the measurement -----------------------------------------------------------------------------


def test_both_layouts_are_timed(model: Model) -> None:
    speedup = measure_speedup(model, SIZES, patient_ms)
    assert 0.01 < min(speedup.full, speedup.gaps) <= speedup.ratio
    assert speedup.ratio <= max(speedup.full, speedup.gaps) < 100
    assert not speedup.missing


@pytest.mark.parametrize("architecture", list(Architecture))
def test_models_that_cannot_be_cut_are_timed_too(
    tmp_path: Path, architecture: Architecture
) -> None:
    write_other(tmp_path / "model.gguf", architecture, byte_vocabulary(), seed=1)
    model = Model(tmp_path / "model.gguf", gpu_layers=0, on_progress=lambda _ratio: None)
    assert measure_speedup(model, SIZES, patient_ms).ratio > 0.01


def ticking(first: int, step_ms: float, then_ms: float) -> Callable[[], float]:
    """Make a clock that goes on by one step for the first readings, and by another after them."""

    def times() -> Iterator[float]:
        now_ms = 0.0
        for number in count():
            now_ms += step_ms if number < first else then_ms
            yield now_ms

    readings = times()
    return lambda: next(readings)


def test_a_machine_too_slow_for_the_prompts_is_not_measured(model: Model) -> None:
    speedup = measure_speedup(model, SIZES, ticking(0, 0.0, 200.0))
    assert speedup == Speedup(missing="32 tokens of a prompt take 200 ms")


def test_a_machine_too_slow_for_the_steps_is_not_measured(model: Model) -> None:
    # One reading for the deadline, and two for each of the four chunks of both prompts.
    speedup = measure_speedup(model, SIZES, ticking(17, 1.0, 900.0))
    assert speedup == Speedup(missing="no step of 8 rows ended within 2500 ms")


def test_too_few_cells_or_sequences_are_not_measured(model: Model) -> None:
    for sizes in (replace(SIZES, cells=2047), replace(SIZES, sequences_max=3)):
        speedup = measure_speedup(model, sizes, patient_ms)
        assert speedup == Speedup(missing="needs 4 sequences and 512 cells each")


# --- what is loaded ------------------------------------------------------------------------------


def test_the_facts_say_what_the_cache_is_and_what_that_allows(tiny: Path) -> None:
    unified = loaded(tiny, cache_layout="unified")
    parts = loaded(tiny, cache_layout="partitioned", context_tokens=1024)
    assert unified.facts.cache_layout is CacheLayout.UNIFIED
    assert unified.facts.context_tokens == 256
    assert parts.facts.cache_layout is CacheLayout.PARTITIONED
    assert parts.facts.context_tokens == 512, "a part, which is less than the context asked for"
    assert parts.facts.cache_layout_reason == "asked for in the configuration"


def test_a_request_ends_where_its_part_ends(tiny: Path) -> None:
    engine = loaded(tiny, cache_layout="partitioned", cells_total=2048, context_tokens=1024).engine
    for ticket in (1, 2):
        engine.submit(
            wire.Submit(
                ticket=ticket,
                prompt_ids=tuple(range(200)),
                n=1,
                seed=1,
                sampling=SamplingOptions(temperature=0.0),
                stop=StopOptions(max_tokens=500, ignore_eos=True),
            )
        )
    drawn = dict.fromkeys((1, 2), 0)
    while engine.has_work:
        for frame in engine.step():
            assert isinstance(frame, wire.Step)
            assert not frame.failures
            for news in frame.news:
                drawn[news.ticket] += len(news.token_ids)
    # The last token needs no cell: it is never evaluated.
    assert drawn == {1: 256 - 200, 2: 256 - 200}


def test_auto_measures_where_parts_hold_a_context(tiny: Path) -> None:
    facts = loaded(tiny).facts
    assert facts.partitioned_speedup > 0
    expected = facts.partitioned_speedup > SPEEDUP_MIN[MemoryKind.CUTTABLE]
    assert (facts.cache_layout is CacheLayout.PARTITIONED) == expected
    assert f"{facts.partitioned_speedup:.2f} times" in facts.cache_layout_reason
    longer = loaded(tiny, context_tokens=1024).facts
    assert (longer.cache_layout, longer.partitioned_speedup) == (CacheLayout.UNIFIED, 0.0)
    assert longer.context_tokens == 1024


def test_parts_for_which_there_are_too_few_cells_are_refused(tiny: Path) -> None:
    with pytest.raises(ModelUnloadable, match="2000 cells are less than 256 for each of 8"):
        loaded(tiny, cache_layout="partitioned", cells_total=2000)
