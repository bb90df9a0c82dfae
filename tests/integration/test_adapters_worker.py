"""A worker with LoRA adapters: everybody gets what it would get alone, and its turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.domain import StopOptions
from appliance.runtime import wire
from tests.integration.worker_process import Outcome, Worker
from tests.integration.worker_process import start as start  # noqa: PLC0414 - a fixture
from tests.integration.worker_process import tiny as tiny  # noqa: PLC0414 - a fixture
from tools.gguf_writer import write_lora

Start = Callable[..., Worker]
PROMPTS = (tuple(range(40, 60)), tuple(range(70, 75)))
STOP = StopOptions(max_tokens=48, ignore_eos=True)
TURN_STEPS = 8
OTHERS = 2  # groups of requests beside one's own


@pytest.fixture(scope="module")
def adapters(tiny: Path) -> dict[str, Path]:
    """Write two adapters; the key "" is none."""
    paths = {}
    for seed, name in enumerate(("ada", "bob")):
        paths[name] = tiny.with_name(f"{name}.gguf")
        write_lora(paths[name], tiny, seed=seed)
    return paths


def loaded(start: Start, tiny: Path, adapters: dict[str, Path]) -> Worker:
    worker = start(tiny)
    assert isinstance(worker.ready(), wire.Ready)
    for key, path in adapters.items():
        worker.load_adapter(key, path)
    for key in adapters:
        answer = worker.adapter(key)
        assert isinstance(answer, wire.AdapterLoaded)
        assert 0 < answer.blocked_ms < 1000
    return worker


def alone(worker: Worker) -> dict[tuple[str, tuple[int, ...]], list[int]]:
    """Run each adapter, and none, with each prompt, one after the other."""
    return {
        (key, prompt): worker.run(prompt, adapter=key, stop=STOP).only.token_ids
        for key in ("", "ada", "bob")
        for prompt in PROMPTS
    }


def together(worker: Worker) -> dict[tuple[str, tuple[int, ...]], int]:
    return {
        (key, prompt): worker.submit(prompt, adapter=key, stop=STOP)
        for prompt in PROMPTS
        for key in ("", "ada", "bob")
    }


def tokens(
    tickets: dict[tuple[str, tuple[int, ...]], int], outcomes: dict[int, Outcome]
) -> dict[tuple[str, tuple[int, ...]], list[int]]:
    return {which: outcomes[ticket].only.token_ids for which, ticket in tickets.items()}


def test_streams_of_several_adapters_get_what_each_would_get_alone_and_none_starves(
    start: Start, tiny: Path, adapters: dict[str, Path]
) -> None:
    worker = loaded(start, tiny, adapters)
    expected = alone(worker)
    assert len({tuple(ids) for ids in expected.values()}) == len(expected)
    first = len(worker.steps)
    tickets = together(worker)
    assert tokens(tickets, worker.collect(*tickets.values())) == expected
    news = {
        ticket: [
            index
            for index, step in enumerate(worker.steps[first:])
            if any(one.ticket == ticket for one in step.news)
        ]
        for ticket in tickets.values()
    }
    # Nobody waits longer than the turns of the others, from its first token to its last.
    gaps = [max(b - a for a, b in itertools.pairwise(at)) for at in news.values()]
    assert max(gaps) <= OTHERS * TURN_STEPS + 2
    # And they did run at the same time: each was given tokens while every other one was.
    assert max(at[0] for at in news.values()) < min(at[-1] for at in news.values())


def test_adapters_come_and_go_while_streams_run(
    start: Start, tiny: Path, adapters: dict[str, Path]
) -> None:
    worker = loaded(start, tiny, adapters)
    expected = alone(worker)
    worker.idle()
    for round_index in range(3):
        tickets = together(worker)
        key = f"ada{round_index}"
        worker.load_adapter(key, adapters["ada"], scale=0.5)
        more = worker.submit(PROMPTS[0], adapter=key, stop=STOP)
        outcomes = worker.collect(more, *tickets.values())
        assert isinstance(worker.adapter(key), wire.AdapterLoaded)
        assert tokens(tickets, outcomes) == expected
        assert outcomes[more].only.token_ids not in (
            expected["ada", PROMPTS[0]],
            expected["", PROMPTS[0]],
        )
        worker.send(wire.UnloadAdapter(key=key))
        refused = worker.run(PROMPTS[0], adapter=key)
        assert refused.failure is not None
        assert refused.failure.fields["field"] == "adapter"


def test_a_scale_of_zero_is_no_adapter(start: Start, tiny: Path, adapters: dict[str, Path]) -> None:
    worker = loaded(start, tiny, {})
    plain = worker.run(PROMPTS[0], stop=STOP).only.token_ids
    for key, scale in (("none", 0.0), ("more", 1.0)):
        worker.load_adapter(key, adapters["ada"], scale=scale)
        assert isinstance(worker.adapter(key), wire.AdapterLoaded)
        said = worker.run(PROMPTS[0], adapter=key, stop=STOP).only.token_ids
        assert (said == plain) is (scale == 0.0)


def test_a_prompt_computed_with_one_adapter_is_never_taken_for_that_of_another(
    start: Start, tiny: Path, adapters: dict[str, Path]
) -> None:
    worker = loaded(start, tiny, adapters)
    prompt = tuple(range(20, 120))
    once = {key: worker.run(prompt, adapter=key).only.token_ids for key in ("ada", "bob", "")}
    again = {key: worker.run(prompt, adapter=key).only.token_ids for key in ("", "ada", "bob")}
    assert once == again
    assert len({tuple(ids) for ids in once.values()}) == len(once)


def test_a_file_that_llama_cpp_refuses_or_that_has_changed_leaves_the_worker_as_it_was(
    start: Start, tiny: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    worker = loaded(start, tiny, adapters)
    expected = worker.run(PROMPTS[0], adapter="ada").only.token_ids
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(adapters["ada"].read_bytes()[:-200])
    for number, (path, reason) in enumerate(
        ((cut, "can't load it"), (tiny, "general.type"), (tmp_path / "gone", "No such file"))
    ):
        key = str(number)
        expected_key = file_key_of(path)
        worker.send(wire.LoadAdapter(key=key, path=str(path), scale=1.0, file_key=expected_key))
        answer = worker.adapter(key)
        assert isinstance(answer, wire.AdapterFailed)
        assert reason in answer.reason
    worker.send(
        wire.LoadAdapter(key="x", path=str(adapters["bob"]), scale=1.0, file_key=(1, 2, 3, 4))
    )
    answer = worker.adapter("x")
    assert isinstance(answer, wire.AdapterFailed)
    assert answer.reason == "the file has changed since it was signed"
    assert worker.run(PROMPTS[0], adapter="ada").only.token_ids == expected


def file_key_of(path: Path) -> tuple[int, ...]:
    if not path.exists():
        return (0, 0, 0, 0)
    stat = path.stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
