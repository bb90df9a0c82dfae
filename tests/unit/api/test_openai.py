"""OpenAI's JSON becomes requests of the domain, strictly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from appliance.api.openai import Asked, read_chat, read_completion, read_embeddings
from appliance.api.openai_shapes import (
    IGNORED_CHAT,
    REFUSED_CHAT,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
)
from appliance.domain import (
    ChatPrompt,
    Constraint,
    ConstraintKind,
    Message,
    OutputOptions,
    Priority,
    RequestId,
    SamplingOptions,
    StopOptions,
    TextPrompt,
    TokenPrompt,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from appliance.errors import InvalidRequest, SchemaUnsupported

ID = RequestId("req-1")
USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def _chat(**members: Any) -> Asked:  # noqa: ANN401 - whatever a client sends
    body = {"model": "m", "messages": [USER], **members}
    return read_chat(json.dumps(body).encode(), ID)


def _completion(**members: Any) -> Asked:  # noqa: ANN401 - whatever a client sends
    return read_completion(json.dumps({"model": "m", "prompt": "x", **members}).encode(), ID)


def _refused(**members: Any) -> InvalidRequest:  # noqa: ANN401 - whatever a client sends
    with pytest.raises(InvalidRequest) as raised:
        _chat(**members)
    return raised.value


def test_every_parameter_of_openais_reference_is_read_ignored_or_refused() -> None:
    base = set(chat_params.CompletionCreateParamsBase.__annotations__)
    assert base <= set(ChatBody.__struct_fields__) | IGNORED_CHAT | set(REFUSED_CHAT)
    base = set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    assert base <= set(CompletionBody.__struct_fields__)
    base = set(embedding_create_params.EmbeddingCreateParams.__annotations__)
    assert base <= set(EmbeddingBody.__struct_fields__)


def test_an_absent_parameter_has_openais_default() -> None:
    request = _chat().requests[0]
    assert request.sampling == SamplingOptions()
    assert request.stop == StopOptions()
    assert request.output == OutputOptions()
    assert _completion().requests[0].stop.max_tokens == 16


def test_null_is_the_same_as_absent() -> None:
    names = set(ChatBody.__struct_fields__) - {"model", "messages"}
    names |= set(REFUSED_CHAT)
    assert _chat(**dict.fromkeys(names)).requests == _chat().requests


@pytest.mark.parametrize(
    ("members", "sampling"),
    [
        ({"temperature": 0}, SamplingOptions(temperature=0.0)),
        ({"top_p": 0.5, "seed": 0}, SamplingOptions(top_p=0.5, seed=0)),
        ({"logit_bias": {"7": -100}}, SamplingOptions(logit_bias={7: -100.0})),
        (
            {"top_k": 5, "min_p": 0.1, "typical_p": 0.9},
            SamplingOptions(top_k=5, min_p=0.1, typical_p=0.9),
        ),
        (
            {"repeat_penalty": 1.2, "penalty_last_n": 8},
            SamplingOptions(repeat_penalty=1.2, penalty_last_n=8),
        ),
        (
            {"frequency_penalty": 1, "presence_penalty": -1},
            SamplingOptions(frequency_penalty=1.0, presence_penalty=-1.0),
        ),
    ],
)
def test_sampling(members: dict[str, Any], sampling: SamplingOptions) -> None:
    assert _chat(**members).requests[0].sampling == sampling


@pytest.mark.parametrize(
    ("members", "stop"),
    [
        ({"stop": "a"}, StopOptions(strings=("a",))),
        ({"stop": ["a", "b"]}, StopOptions(strings=("a", "b"))),
        ({"max_tokens": 5}, StopOptions(max_tokens=5)),
        ({"max_completion_tokens": 5}, StopOptions(max_tokens=5)),
        ({"stop_token_ids": [1], "ignore_eos": True}, StopOptions(token_ids=(1,), ignore_eos=True)),
    ],
)
def test_stop(members: dict[str, Any], stop: StopOptions) -> None:
    assert _chat(**members).requests[0].stop == stop


@pytest.mark.parametrize(
    ("members", "output"),
    [
        ({"n": 3}, OutputOptions(n=3)),
        ({"logprobs": True}, OutputOptions(top_logprobs=0)),
        ({"logprobs": True, "top_logprobs": 4}, OutputOptions(top_logprobs=4)),
        ({"logprobs": False}, OutputOptions()),
    ],
)
def test_output(members: dict[str, Any], output: OutputOptions) -> None:
    assert _chat(**members).requests[0].output == output


def test_messages_keep_their_parts_calls_and_results() -> None:
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "r"},
    ]
    prompt = _chat(messages=messages).requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == (
        Message(role="developer", content="a\nb"),
        Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments="{}"),)),
        Message(role="tool", content="r", tool_call_id="c"),
    )


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice(mode=ToolChoiceMode.NONE)),
        ("required", ToolChoice(mode=ToolChoiceMode.REQUIRED)),
        (
            {"type": "function", "function": {"name": "f"}},
            ToolChoice(mode=ToolChoiceMode.NAMED, name="f"),
        ),
    ],
)
def test_tool_choice(given: object, choice: ToolChoice) -> None:
    prompt = _chat(tools=[TOOL], tool_choice=given).requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tool_choice == choice
    assert prompt.tools[0].parameters == '{"type":"object"}'


def test_one_call_at_a_time_if_asked_for() -> None:
    prompt = _chat(tools=[TOOL], parallel_tool_calls=False).requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tool_choice == ToolChoice(parallel=False)


@pytest.mark.parametrize(
    ("given", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint(kind=ConstraintKind.JSON_OBJECT)),
        (
            {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "null"}}},
            Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"type":"null"}'),
        ),
    ],
)
def test_response_format(given: object, constraint: Constraint | None) -> None:
    assert _chat(response_format=given).requests[0].constraint == constraint


def test_an_unknown_format_is_refused_not_ignored() -> None:
    with pytest.raises(SchemaUnsupported):
        _chat(response_format={"type": "xml"})


def test_a_format_contradicts_a_demanded_call() -> None:
    error = _refused(tools=[TOOL], tool_choice="required", response_format={"type": "json_object"})
    assert error.field == "response_format"


@pytest.mark.parametrize("name", sorted(IGNORED_CHAT))
def test_what_means_nothing_here_is_accepted_and_named(name: str) -> None:
    assert _chat(**{name: {"any": "thing"}}).ignored == (name,)


def test_streams_are_asked_for_with_and_without_usage() -> None:
    assert not _chat().stream
    assert _chat(stream=True).include_usage is False
    asked = _chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert asked.include_usage
    assert asked.ignored == ("stream_options.include_obfuscation",)


@pytest.mark.parametrize(
    ("members", "field", "advice"),
    [
        ({"temprature": 1}, "temprature", "temperature"),
        ({"max_token": 1}, "max_token", "max_tokens"),
        ({"messages": [{"role": "user", "contents": "x"}]}, "messages[0].contents", "content"),
        ({"tools": [{"type": "function", "functon": {}}]}, "tools[0].functon", "function"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(
    members: dict[str, Any], field: str, advice: str
) -> None:
    error = _refused(**members)
    assert error.field == field
    assert error.reason == f"is not a known field; did you mean '{advice}'?"


def test_a_field_like_no_other_gets_no_advice() -> None:
    assert _refused(zzzz=1).reason == "is not a known field"


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_chat(b'{"messages": []}', ID)
    assert (raised.value.field, raised.value.reason) == ("model", "is missing")


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", (TextPrompt(text="a"),)),
        (["a", "b"], (TextPrompt(text="a"), TextPrompt(text="b"))),
        ([1, 2], (TokenPrompt(token_ids=(1, 2)),)),
        ([[1], [2, 3]], (TokenPrompt(token_ids=(1,)), TokenPrompt(token_ids=(2, 3)))),
    ],
)
def test_prompts_and_inputs_have_four_forms(given: object, prompts: object) -> None:
    assert tuple(one.prompt for one in _completion(prompt=given).requests) == prompts
    body = json.dumps({"model": "m", "input": given}).encode()
    assert read_embeddings(body, ID).request.inputs == prompts


def test_each_of_several_prompts_has_an_id_of_its_own() -> None:
    ids = [one.request_id for one in _completion(prompt=["a", "b"]).requests]
    assert ids == ["req-1-0", "req-1-1"]
    assert _completion().requests[0].request_id == ID


def test_embeddings_come_as_asked_for() -> None:
    body = {"model": "m", "input": "x", "encoding_format": "base64", "dimensions": 8, "user": "u"}
    asked = read_embeddings(json.dumps(body).encode(), ID)
    assert (asked.base64, asked.dimensions, asked.user) == (True, 8, "u")


@pytest.mark.parametrize(
    ("members", "priority"),
    [
        ({}, None),
        ({"service_tier": "auto"}, None),
        ({"priority": "interactive"}, Priority.INTERACTIVE),
        ({"priority": "batch", "service_tier": "flex"}, Priority.BATCH),
        ({"priority": "batch", "service_tier": "auto"}, Priority.BATCH),
        ({"service_tier": "default"}, Priority.NORMAL),
        ({"service_tier": "priority"}, Priority.INTERACTIVE),
        ({"service_tier": "flex"}, Priority.BATCH),
    ],
)
def test_a_tier_and_a_priority_name_a_class(
    members: dict[str, Any], priority: Priority | None
) -> None:
    for asked in (_chat(**members), _completion(**members)):
        assert asked.requests[0].priority is priority
        assert asked.says_tier == ("service_tier" in members)


@pytest.mark.parametrize(
    ("members", "field", "reason"),
    [
        ({"priority": "high"}, "priority", "must be one of 'interactive', 'normal', 'batch'"),
        ({"service_tier": "scale"}, "service_tier", "must be one of 'auto', "),
        ({"service_tier": "flex", "priority": "normal"}, "service_tier", "contradicts 'priority'"),
        ({"user": "a", "safety_identifier": "b"}, "safety_identifier", "contradicts 'user'"),
        ({"cache_salt": "x" * 129}, "cache_salt", "has 129 characters; the limit is 128"),
    ],
)
def test_who_asks_and_how_urgently_may_not_contradict_itself(
    members: dict[str, Any], field: str, reason: str
) -> None:
    error = _refused(**members)
    assert error.field == field
    assert reason in error.reason


def test_a_user_may_be_named_by_either_word() -> None:
    assert _chat(user="a").user == "a"
    assert _chat(safety_identifier="a").user == "a"
    assert _chat(user="a", safety_identifier="a").user == "a"
    assert _chat().user == ""
    assert _chat(cache_salt="s").requests[0].cache_salt == "s"


def test_a_time_limit_is_read_and_progress_asked_for_only_in_a_stream() -> None:
    assert (_chat(timeout=2).timeout_s, _completion(timeout=0.5).timeout_s) == (2.0, 0.5)
    assert _chat(timeout=None).timeout_s is None
    body = {"model": "m", "input": "x", "timeout": 3}
    assert read_embeddings(json.dumps(body).encode(), ID).timeout_s == 3.0
    assert _chat(stream=True, stream_options={"include_progress": True}).include_progress
    assert not _chat(stream=True, stream_options={}).include_progress
    assert _refused(stream_options={"include_progress": True}).field == "stream_options"
