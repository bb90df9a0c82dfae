"""A real context changes its threads between steps, as a real busy machine demands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from appliance.clock import monotonic_ms
from appliance.runtime.contention import Contention
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.llama import Context, ContextOptions, DecodeCode, Model
from appliance.runtime.pool import Pool
from appliance.runtime.threads import Counts
from appliance.runtime.warm_up import warm_up
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

ALLOWED = frozenset(os.sched_getaffinity(0))
ROWS = 32


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    path = tmp_path_factory.mktemp("pool") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.F16)
    model = Model(path, gpu_layers=0, on_progress=lambda _ratio: None)
    options = ContextOptions(
        cells=256,
        batch_tokens=64,
        sequences_max=4,
        threads_decode=2,
        threads_prefill=2,
        embedding=False,
    )
    return model.open_context(options)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep cores busy, at most for a minute."""
    command = [sys.executable, "-c", "import time\nwhile time.process_time() < 60: pass"]
    children = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def step(context: Context, pool: Pool) -> None:
    shape = StepShape(decode=0, prefill=ROWS, kv_span=ROWS)
    began_ms = monotonic_ms()
    pool.prepare(shape)
    context.put(0, [5] * ROWS, 0, 0)
    context.want_row(ROWS - 1)
    assert context.decode(ROWS) is DecodeCode.OK
    context.clear()
    pool.observe(shape, monotonic_ms() - began_ms, monotonic_ms())


def test_a_core_that_others_take_is_given_up(context: Context) -> None:
    cost, contention = CostModel(), Contention(ALLOWED, monotonic_ms)
    warm_up(context, cost, monotonic_ms, Counts(decode=2, prefill=2), 2, contention)
    pool = Pool(context, cost, Counts(decode=2, prefill=2), contention)
    end_ms = monotonic_ms() + 20_000.0
    with busy(len(ALLOWED) + 1):
        while pool.counts.prefill == 2 and monotonic_ms() < end_ms:
            step(context, pool)
    assert pool.counts.prefill == 1
    assert pool.take_change() == "core_lost"
    assert pool.take_change() == ""
    step(context, pool)


def test_without_readings_the_counts_stay(context: Context) -> None:
    pool = Pool(context, CostModel(), Counts(decode=1, prefill=2))
    for _ in range(3):
        step(context, pool)
    assert pool.counts == Counts(decode=1, prefill=2)


def test_the_threads_chosen_for_a_calm_machine_are_at_most_those_allowed(context: Context) -> None:
    contention = Contention(ALLOWED, monotonic_ms)
    for allowed in (Counts(decode=1, prefill=1), Counts(decode=1, prefill=2)):
        chosen = warm_up(context, CostModel(), monotonic_ms, allowed, 2, contention)
        assert chosen.decode == 1
        assert chosen.prefill <= allowed.prefill
        assert warm_up(context, CostModel(), monotonic_ms, allowed) == allowed


def test_what_others_use_and_what_we_use_are_told_apart() -> None:
    contention = Contention(ALLOWED, monotonic_ms)
    _spin(300.0)
    alone = contention.read(300.0)
    assert alone.cores == len(ALLOWED)
    with busy(len(ALLOWED)):
        _spin(600.0)
        crowded = contention.read(600.0)
    contention.close()
    assert crowded.others > 0.3 * len(ALLOWED)
    assert crowded.denied > 0.1  # this very thread had to wait
    assert 0.0 <= alone.others <= len(ALLOWED)


def test_a_reading_is_due_only_now_and_then() -> None:
    contention = Contention(ALLOWED, monotonic_ms)
    now_ms = monotonic_ms()
    assert not contention.due(now_ms)
    assert contention.due(now_ms + 1000.0)
    contention.close()


def test_a_core_that_is_not_ours_is_not_counted() -> None:
    nobody = Contention(frozenset({100_000}), monotonic_ms)
    _spin(100.0)
    assert nobody.read(100.0).others == 0.0
    nobody.close()


def _spin(wall_ms: float) -> None:
    end_ms = monotonic_ms() + wall_ms
    while monotonic_ms() < end_ms:
        pass
