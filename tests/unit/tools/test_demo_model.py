"""Test what the demo model is made from, and the files that came of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import appliance
from tools.demo_model import corpus
from tools.demo_model.chat import TEMPLATE, render_prompt

MODELS = Path(appliance.__file__).parent / "models" / "demo"
SERVED_BYTES_MAX = 8_000_000
ALL_BYTES_MAX = 32_000_000


def _drawn(seed: int, count: int, *, held_out: bool) -> list[corpus.Example]:
    return list(itertools.islice(corpus.examples(seed, held_out=held_out), count))


def test_the_same_seed_gives_the_same_examples() -> None:
    assert _drawn(3, 500, held_out=False) == _drawn(3, 500, held_out=False)


def test_training_and_held_out_examples_share_nothing() -> None:
    trained = {example.key for example in _drawn(1, 10_000, held_out=False)}
    held_out = {example.key for example in _drawn(2, 2_000, held_out=True)}

    assert trained & held_out == set()


def test_every_earlier_turn_of_a_training_chat_is_not_held_out() -> None:
    asked_held_out = {
        example.messages[-1]["content"]
        for example in _drawn(2, 2_000, held_out=True)
        if example.task in {"question", "sum"}
    }
    earlier = {
        message["content"]
        for example in _drawn(1, 5_000, held_out=False)
        for message in example.messages[:-1]
        if message["role"] == "user"
    }

    assert earlier & asked_held_out == set()


def test_every_expected_json_parses() -> None:
    for example in _drawn(4, 3_000, held_out=False):
        if example.task == "entities":
            assert isinstance(json.loads(example.expected), dict)
        if example.task == "tool":
            inner = example.expected.removeprefix("<tool_call>").removesuffix("</tool_call>")
            call = json.loads(inner)
            offered = {tool["function"]["name"] for tool in example.tools}
            assert call["name"] in offered


def test_an_earlier_call_is_shown_as_the_model_writes_it() -> None:
    example = next(e for e in _drawn(5, 500, held_out=False) if e.task == "tool_result")

    assert example.messages[1]["content"] == ""
    assert "<tool_call>{" in render_prompt(example.messages, example.tools)


def test_the_files_are_small_enough() -> None:
    served = [MODELS / f"demo-{version}.q8_0.gguf" for version in "123"]
    original = MODELS / "demo-2.f16.gguf"

    assert all(path.stat().st_size <= SERVED_BYTES_MAX for path in served)
    assert sum(path.stat().st_size for path in (*served, original)) <= ALL_BYTES_MAX


def test_the_template_in_the_file_is_the_one_that_was_trained_with() -> None:
    raw = (MODELS / "demo-2.q8_0.gguf").read_bytes()

    assert TEMPLATE.encode() in raw


def test_the_card_states_what_was_measured_and_the_bar_is_met() -> None:
    rows = (MODELS / "README.md").read_text(encoding="utf-8").splitlines()
    share = {
        row.split("|")[1].strip(" `"): float(row.split("|")[4].strip(" %"))
        for row in rows
        if row.startswith("| `demo-")
    }

    assert share["demo-2.q8_0.gguf"] >= 95.0
    assert 80.0 <= share["demo-1.q8_0.gguf"] <= 90.0
    assert share["demo-3.q8_0.gguf"] < share["demo-1.q8_0.gguf"]
