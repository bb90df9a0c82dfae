"""Every kind of memory in every layout is served, and never wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.domain import CacheLayout, MemoryKind, StopOptions
from appliance.runtime import wire
from tests.integration.test_worker import assert_same
from tests.integration.worker_process import Worker, start
from tools.gguf_writer import (
    SHAPES,
    WINDOW_TOKENS,
    Architecture,
    Quantisation,
    byte_vocabulary,
    write_llama,
    write_other,
)

__all__ = ["start"]  # a fixture

SHARED = tuple(range(40, 40 + 3 * WINDOW_TOKENS))
STOP = StopOptions(max_tokens=2 * WINDOW_TOKENS, ignore_eos=True)


@pytest.mark.parametrize("layout", list(CacheLayout))
@pytest.mark.parametrize("name", ["llama", *Architecture])
def test_requests_with_a_common_prefix_get_what_each_gets_alone(
    tmp_path: Path, start: Callable[..., Worker], name: str, layout: CacheLayout
) -> None:
    path = tmp_path / "model.gguf"
    if name == "llama":
        # In F32: the rounding of Q8_0 moved a log-probability by 0.11 in one batch of many.
        write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.F32, seed=2)
    else:
        write_other(path, Architecture(name), byte_vocabulary(), seed=2)
    # A prompt takes several steps.
    worker = start(path, batch_tokens=32, sequences_max=8, cache_layout=layout.value)
    ready = worker.ready()
    assert isinstance(ready, wire.Ready)
    kind = MemoryKind.CUTTABLE if name == "llama" else MemoryKind.WHOLE
    facts = ready.facts
    assert (facts.architecture, facts.memory_kind, facts.cache_layout) == (name, kind, layout)

    prompts = [(*SHARED, *tail) for tail in ((), (9,), (7, 8, 9), (7, 8, 10))]
    alone = [worker.run(prompt, stop=STOP, top_logprobs=2).only for prompt in prompts]
    tickets = [worker.submit(prompt, stop=STOP, top_logprobs=2) for prompt in prompts]
    together = worker.collect(*tickets)
    several = worker.run(prompts[2], n=3, stop=STOP, top_logprobs=2)

    assert len({tuple(answer.token_ids) for answer in alone}) == len(prompts)
    for expected, ticket in zip(alone, tickets, strict=True):
        assert_same(together[ticket].only, expected)
    for answer in several.choices.values():
        assert_same(answer, alone[2])
    assert worker.idle().gauges.cells_used == 0
    assert worker.close()[0] == 0
