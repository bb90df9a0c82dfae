"""What stands around a gap reaches the model in the order it was taught, by every face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from appliance.api.proto import inference_pb2 as pb
from appliance.config import Engine, Limits, Model
from appliance.domain import InfillFile, InfillPrompt
from appliance.errors import ContextTooLong
from appliance.runtime import wire
from appliance.runtime.text_worker import Vocabulary, prepare
from tests.integration.grpc_calls import expect_failure, inference, on_channel
from tests.integration.rest_calls import Answer, call
from tests.integration.stack import DEMO, Stack
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

PREFIX, SUFFIX = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
PLAIN = f"<s><|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
FILES = (InfillFile(text="x = 1\n", name="x.py"), InfillFile(text="y"))
WITH_FILES = (
    "<s><|repo_name|>myproject\n<|file_sep|>x.py\nx = 1\n<|file_sep|>tmp\ny<|file_sep|>filename\n"
    + PLAIN.removeprefix("<s>")
)


@pytest.fixture(name="path", scope="module")
def _path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("infill") / "coder.gguf"
    vocabulary = byte_vocabulary(infill=True)
    write_llama(path, SHAPES["tiny"], vocabulary, Quantisation.F16, seed=3)
    return path


@pytest.fixture(name="coder", scope="module")
def _coder(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(
        tmp_path_factory.mktemp("run"),
        engine=Engine(context_tokens=512, sequences_max=8, threads=1, batch_tokens=128),
        limits=Limits(infill_files=2),
        models=(Model(path=str(path), name="coder"), Model(path=str(DEMO), name="demo")),
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(name="vocabulary", scope="module")
def _vocabulary(path: Path) -> Iterator[Vocabulary]:
    vocabulary = Vocabulary(path, 8192, 250.0)
    yield vocabulary
    vocabulary.close()


def prepared(vocabulary: Vocabulary, prompt: InfillPrompt, limit_tokens: int = 0) -> wire.Prepared:
    frame = wire.Prepare(ticket=1, key="k", prompt=prompt, limit_tokens=limit_tokens)
    return prepare(vocabulary, frame)


def ids_of(coder: Stack, text: str) -> list[int]:
    """Tokenise a text that spells its special tokens."""

    async def tokens(channel: grpc.aio.Channel) -> pb.TokenizeResponse:
        asked = pb.TokenizeRequest(model="coder", text=text, parse_special=True)
        return await inference(channel).Tokenize(asked)

    return list(on_channel(coder.grpc_target, tokens).token_ids)


def infill(coder: Stack, **body: object) -> Answer:
    given = {"model": "coder", "input_prefix": PREFIX, "input_suffix": SUFFIX}
    greedy = {"temperature": 0, "n_predict": 12}
    return call(coder.rest_address, "POST", "/infill", {**given, **greedy, **body})


def middle(coder: Stack, text: str, max_tokens: int = 12) -> str:
    """Continue token ids that were put together by hand."""
    body = {
        "model": "coder",
        "prompt": ids_of(coder, text),
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    answer = call(coder.rest_address, "POST", "/v1/completions", body)
    found: str = answer.json["choices"][0]["text"]
    return found


def test_the_parts_stand_in_the_order_the_model_was_taught(vocabulary: Vocabulary) -> None:
    plain = prepared(vocabulary, InfillPrompt(prefix=PREFIX, suffix=SUFFIX)).token_ids
    assert vocabulary.spell(plain) == PLAIN
    files = prepared(vocabulary, InfillPrompt(prefix=PREFIX, suffix=SUFFIX, files=FILES)).token_ids
    assert vocabulary.spell(files) == WITH_FILES


def test_what_spells_a_special_token_is_text(vocabulary: Vocabulary) -> None:
    text = "<|fim_middle|></s>"
    ids = prepared(vocabulary, InfillPrompt(prefix=text, suffix=text)).token_ids
    assert vocabulary.spell(ids) == (f"<s><|fim_prefix|>{text}<|fim_suffix|>{text}<|fim_middle|>")
    assert ids.count(ids[-1]) == 1


def test_what_is_too_long_is_refused_and_never_cut(vocabulary: Vocabulary) -> None:
    with pytest.raises(ContextTooLong):
        prepared(vocabulary, InfillPrompt(prefix="x" * 4000, suffix="y"), limit_tokens=64)


def test_every_face_fills_the_same_gap(coder: Stack) -> None:
    expected = middle(coder, PLAIN)
    assert expected
    answer = infill(coder)
    assert answer.status == 200, answer.body
    assert answer.json["content"] == expected
    assert answer.json["stop"] is True
    assert answer.json["model"] == "coder@2"
    assert answer.json["tokens_evaluated"] == len(ids_of(coder, PLAIN))
    assert answer.json["timings"]["predicted_n"] == answer.json["tokens_predicted"]
    body = {"model": "coder", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 12}
    legacy = call(coder.rest_address, "POST", "/v1/completions", {**body, "temperature": 0})
    assert legacy.json["choices"][0]["text"] == expected
    echo = {**body, "temperature": 0, "echo": True}
    legacy = call(coder.rest_address, "POST", "/v1/completions", echo)
    assert legacy.json["choices"][0]["text"] == PREFIX + expected

    async def over_grpc(channel: grpc.aio.Channel) -> pb.GenerateResponse:
        given = pb.GenerateInput(
            model="coder",
            infill=pb.Infill(prefix=PREFIX, suffix=SUFFIX),
            sampling=pb.SamplingOptions(temperature=0),
            stop=pb.StopOptions(max_tokens=12),
        )
        return await inference(channel).Generate(pb.GenerateRequest(input=given))

    assert on_channel(coder.grpc_target, over_grpc).choices[0].text == expected


def test_files_and_what_is_typed_already_come_before_the_gap(coder: Stack) -> None:
    extra = [{"filename": "x.py", "text": "x = 1\n"}, {"text": "y"}]
    assert infill(coder, input_extra=extra).json["content"] == middle(coder, WITH_FILES)
    typed = infill(coder, prompt="a +").json["content"]
    assert typed == middle(coder, PLAIN.replace(PREFIX, PREFIX + "a +"))


def test_a_stream_ends_with_the_counts_and_no_done(coder: Stack) -> None:
    whole = infill(coder).json
    body = infill(coder, stream=True).body.decode()
    events = [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if line]
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    same = ("stop_type", "tokens_predicted", "tokens_evaluated", "model")
    assert {key: events[-1][key] for key in same} == {key: whole[key] for key in same}


def test_what_editors_send_beside_it_is_honoured_or_named(coder: Stack) -> None:
    """The body of llama.vim, at its defaults."""
    answer = infill(
        coder,
        id_slot=0,
        prompt="",
        input_extra=[],
        n_predict=5,
        stop=[],
        n_indent=4,
        top_k=40,
        top_p=0.9,
        stream=False,
        samplers=["top_k", "top_p", "infill"],
        cache_prompt=True,
        t_max_prompt_ms=500,
        t_max_predict_ms=1000,
        response_fields=["content"],
        seed=-1,
        repeat_last_n=8,
    )
    assert answer.status == 200, answer.body
    assert answer.json["tokens_predicted"] <= 5
    assert answer.json["stop_type"] == "limit"
    assert answer.headers["x-appliance-ignored"] == (
        "cache_prompt, id_slot, n_indent, response_fields, samplers, t_max_predict_ms, "
        "t_max_prompt_ms"
    )


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"model": "demo"}, "model", "no token for prefix, suffix, middle"),
        ({"input_extra": [{"text": "x"}] * 3}, "input_extra", "has 3 entries; the limit is 2"),
        ({"input_extra": [{"filename": "x"}]}, "input_extra[0].text", "is missing"),
        ({"input_prefix": "", "input_suffix": ""}, "prompt", "is empty"),
        ({"n_predict": -2}, "n_predict", "-1 or not negative"),
        ({"n_predict": 3, "max_tokens": 4}, "n_predict", "contradicts 'max_tokens'"),
        ({"n": 2}, "n", "must be 1"),
        ({"input_sufix": "x"}, "input_sufix", "did you mean 'input_suffix'?"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    coder: Stack, body: dict[str, object], field: str, reason: str
) -> None:
    answer = infill(coder, **body)
    assert (answer.status, answer.error["param"]) == (400, field)
    assert reason in answer.error["message"]


def test_grpc_refuses_a_model_without_the_tokens(coder: Stack) -> None:
    async def over_grpc(channel: grpc.aio.Channel) -> pb.GenerateResponse:
        given = pb.GenerateInput(model="demo", infill=pb.Infill(prefix="a", suffix="b"))
        return await inference(channel).Generate(pb.GenerateRequest(input=given))

    failure = expect_failure(coder.grpc_target, over_grpc)
    assert (failure.reason, failure.violations[0][0]) == ("INVALID_REQUEST", "model")


def test_an_adapter_is_looked_for_and_not_forgotten(coder: Stack) -> None:
    answer = infill(coder, adapter="none")
    assert (answer.status, answer.error["param"]) == (404, "adapter")
