"""What llama_decode returns fails one job at most, unless the context itself is lost."""

# ruff: noqa: SLF001 - the faults are made behind the engine's back

from __future__ import annotations

from pathlib import Path

import llama_cpp.llama_cpp as lib
import pytest

from appliance.clock import monotonic_ms
from appliance.domain import FinishReason, SamplingOptions, StopOptions
from appliance.runtime import wire
from appliance.runtime.engine import GeneratingEngine
from appliance.runtime.llama import Context, DecodeCode, EngineLost
from appliance.runtime.loading import load
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

TOKENS = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    write_llama(made, SHAPES["tiny"], byte_vocabulary(), Quantisation.F16)
    return made


@pytest.fixture
def engine(path: Path) -> GeneratingEngine:
    options = wire.EngineOptions(
        path=str(path),
        context_tokens=256,
        cells_total=512,
        sequences_max=4,
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
    loaded = load(options, monotonic_ms, lambda _ratio: None).engine
    assert isinstance(loaded, GeneratingEngine)
    return loaded


def submit(engine: GeneratingEngine, *tickets: int) -> None:
    for ticket in tickets:
        engine.submit(
            wire.Submit(
                ticket=ticket,
                prompt_ids=(5, 6, 7, 8 + ticket),
                n=1,
                seed=1,
                sampling=SamplingOptions(temperature=0.0),
                stop=StopOptions(max_tokens=TOKENS, ignore_eos=True),
            )
        )


def step(engine: GeneratingEngine) -> wire.Step:
    (frame,) = engine.step()
    assert isinstance(frame, wire.Step)
    return frame


def run(engine: GeneratingEngine) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Step until idle; returns the tokens of tickets that ended well, and the codes of others."""
    tokens: dict[int, list[int]] = {}
    ended: set[int] = set()
    failed: dict[int, str] = {}
    while engine.has_work:
        frame = step(engine)
        for news in frame.news:
            tokens.setdefault(news.ticket, []).extend(news.token_ids)
            if news.finish is FinishReason.LENGTH:
                ended.add(news.ticket)
        failed |= {failure.ticket: failure.code for failure in frame.failures}
    return {ticket: tokens[ticket] for ticket in ended}, failed


class Codes:
    """Return these codes of llama_decode instead of decoding, then decode again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *codes: DecodeCode) -> None:
        self._left = list(codes)
        self._decode = Context.decode
        ours = self

        def decode(context: Context, count: int) -> DecodeCode:
            return ours._next(context, count)

        monkeypatch.setattr(Context, "decode", decode)

    def _next(self, context: Context, count: int) -> DecodeCode:
        return self._left.pop(0) if self._left else self._decode(context, count)


def test_only_the_job_whose_rows_are_refused_fails(engine: GeneratingEngine) -> None:
    submit(engine, 1, 2, 3)
    step(engine)
    broken = engine._scheduler.job(2)
    assert broken is not None
    # A gap in its positions, behind the scheduler's back: llama_decode itself says INVALID.
    lib.llama_memory_seq_rm(engine._context._memory, broken.choices[0].seq_id, 2, -1)
    tokens, failed = run(engine)
    assert failed == {2: "DECODE_FAILED"}
    # The first token of each came with the step before.
    assert {ticket: len(ids) for ticket, ids in tokens.items()} == {1: TOKENS - 1, 3: TOKENS - 1}


@pytest.mark.parametrize(
    "codes",
    [
        (DecodeCode.NO_ROOM,),
        (DecodeCode.NO_ROOM, DecodeCode.NO_ROOM),
        (DecodeCode.ABORTED,),
        (DecodeCode.ABORTED, DecodeCode.ABORTED),
    ],
)
def test_a_step_that_did_not_happen_changes_no_text(
    engine: GeneratingEngine, monkeypatch: pytest.MonkeyPatch, codes: tuple[DecodeCode, ...]
) -> None:
    submit(engine, 1, 2, 3)
    expected, _ = run(engine)
    submit(engine, 1, 2, 3)
    step(engine)
    first = {ticket: ids[:1] for ticket, ids in expected.items()}
    Codes(monkeypatch, *codes)
    tokens, failed = run(engine)
    assert failed == {}
    assert {ticket: first[ticket] + ids for ticket, ids in tokens.items()} == expected


def test_a_fatal_code_and_endless_aborts_end_the_engine(
    engine: GeneratingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(engine, 1)
    Codes(monkeypatch, *[DecodeCode.ABORTED] * 3)
    with pytest.raises(EngineLost):
        run(engine)
    Codes(monkeypatch, DecodeCode.FATAL)
    with pytest.raises(EngineLost):
        run(engine)


def test_cells_held_while_idle_are_noticed(engine: GeneratingEngine) -> None:
    submit(engine, 1)
    step(engine)
    engine._context.put(0, [5], 3, 0)
    engine._context.want_row(0)
    assert engine._context.decode(1) is DecodeCode.OK
    with pytest.raises(AssertionError, match="sequence 3 holds 1 cells, not 0"):
        run(engine)
