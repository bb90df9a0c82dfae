"""Models with a sliding window or a recurrent state are served, and never wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.domain import MemoryKind, StopOptions
from appliance.runtime import wire
from tests.integration.test_worker import assert_same
from tests.integration.worker_process import Worker, start
from tools.gguf_writer import WINDOW_TOKENS, Architecture, byte_vocabulary, write_other

__all__ = ["start"]  # a fixture

SHARED = tuple(range(40, 40 + 3 * WINDOW_TOKENS))
STOP = StopOptions(max_tokens=2 * WINDOW_TOKENS, ignore_eos=True)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_requests_with_a_common_prefix_get_what_each_gets_alone(
    tmp_path: Path, start: Callable[..., Worker], architecture: Architecture
) -> None:
    path = tmp_path / "model.gguf"
    write_other(path, architecture, byte_vocabulary(), seed=2)
    worker = start(path, batch_tokens=32)  # a prompt takes several steps
    ready = worker.ready()
    assert isinstance(ready, wire.Ready)
    assert ready.facts.memory_kind is MemoryKind.WHOLE
    assert ready.facts.architecture == architecture.value

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
