"""The REST face: what OpenAI's clients and public suites insist on, over the real socket."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest

from tests.integration.rest_calls import Answer, call, chat_body, text_body
from tests.integration.stack import Stack

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 9}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


def _post(stack: Stack, path: str, body: object, **headers: str) -> Answer:
    return call(stack.rest_address, "POST", path, body, headers)


def _ok(answer: Answer) -> Answer:
    assert answer.status == 200, answer.body
    return answer


def test_a_chat_answer_has_openais_members(stack: Stack) -> None:
    answer = _ok(_post(stack, CHAT, chat_body()))
    body = answer.json
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "demo@2"
    choice = body["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["refusal"] is None
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["logprobs"] is None
    assert body["usage"]["total_tokens"] == (
        body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    )
    assert answer.headers["x-request-id"].startswith("req-")


def test_a_stream_has_the_role_first_then_text_then_the_reason(stack: Stack) -> None:
    whole = _ok(_post(stack, CHAT, chat_body())).json
    answer = _ok(_post(stack, CHAT, chat_body(stream=True)))
    assert answer.headers["content-type"].startswith("text/event-stream")
    choices = [event["choices"][0] for event in answer.events]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == whole["choices"][0]["message"]["content"]
    assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all("usage" not in event for event in answer.events)
    assert all(choice["logprobs"] is None for choice in choices)


def test_usage_comes_in_a_last_chunk_without_choices_if_asked_for(stack: Stack) -> None:
    for path, body in ((CHAT, chat_body()), (TEXT, text_body())):
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        events = _ok(_post(stack, path, asked)).events
        assert events[-1]["choices"] == []
        assert events[-1]["usage"]["completion_tokens"] > 0
        assert all(event["usage"] is None for event in events[:-1])


def test_n_choices_come_whole_and_streamed(stack: Stack) -> None:
    body = chat_body(n=3, seed=7, temperature=1)
    whole = _ok(_post(stack, CHAT, body)).json["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2]
    texts = ["", "", ""]
    for event in _ok(_post(stack, CHAT, {**body, "stream": True})).events:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [choice["message"]["content"] for choice in whole]


def test_both_names_of_the_token_limit_work_and_may_not_contradict(stack: Stack) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = chat_body()
        del body["max_tokens"]
        answer = _ok(_post(stack, CHAT, {**body, name: 2, "ignore_eos": True}))
        assert answer.json["usage"]["completion_tokens"] == 2
        assert answer.json["choices"][0]["finish_reason"] == "length"
    answer = _post(stack, CHAT, chat_body(max_tokens=2, max_completion_tokens=3))
    assert (answer.status, answer.error["param"]) == (400, "max_tokens")
    assert _post(stack, CHAT, chat_body(max_tokens=2, max_completion_tokens=2)).status == 200


def test_a_developer_message_is_a_system_message(stack: Stack) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
        },
    ]
    assert _post(stack, CHAT, chat_body(messages=messages)).status == 200


def test_chat_logprobs_have_tokens_bytes_and_alternatives(stack: Stack) -> None:
    body = chat_body(logprobs=True, top_logprobs=2)
    answer = _ok(_post(stack, CHAT, body)).json
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for token in content:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(token["top_logprobs"]) == 2
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]
    streamed = [
        token
        for event in _ok(_post(stack, CHAT, {**body, "stream": True})).events
        for token in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [token["token"] for token in streamed] == [token["token"] for token in content]


def test_legacy_logprobs_have_offsets_into_the_text(stack: Stack) -> None:
    choice = _ok(_post(stack, TEXT, text_body(logprobs=2))).json["choices"][0]
    shown = choice["logprobs"]
    assert set(shown) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    sizes = {len(values) for values in shown.values()}
    assert len(sizes) == 1
    for token, offset in zip(shown["tokens"], shown["text_offset"], strict=True):
        if not token.startswith("bytes:") and offset + len(token) <= len(choice["text"]):
            assert choice["text"][offset : offset + len(token)] == token


def test_echo_repeats_the_prompt_and_refuses_logprobs_of_it(stack: Stack) -> None:
    choice = _ok(_post(stack, TEXT, text_body("One two", echo=True))).json["choices"][0]
    assert choice["text"].startswith("One two")
    nothing = _ok(_post(stack, TEXT, text_body("One two", echo=True, max_tokens=0))).json
    assert nothing["choices"][0]["text"] == "One two"
    assert nothing["usage"]["completion_tokens"] == 0
    assert _post(stack, TEXT, text_body(echo=True, logprobs=1)).error["param"] == "logprobs"


def test_prompts_may_be_texts_or_tokens_one_or_many(stack: Stack) -> None:
    single = [
        _ok(_post(stack, TEXT, text_body(text))).json["choices"][0]["text"]
        for text in ("One two", "Three")
    ]
    many = _ok(_post(stack, TEXT, text_body(["One two", "Three"]))).json
    assert [choice["text"] for choice in many["choices"]] == single
    assert [choice["index"] for choice in many["choices"]] == [0, 1]
    texts = ["", ""]
    for event in _ok(_post(stack, TEXT, text_body(["One two", "Three"], stream=True))).events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == single
    tokens = _ok(_post(stack, TEXT, text_body([5, 6, 7])))
    lists = _ok(_post(stack, TEXT, text_body([[5, 6, 7], [8]])))
    assert tokens.json["choices"][0]["text"] == lists.json["choices"][0]["text"]


def test_a_stop_string_ends_the_text_and_is_not_in_it(stack: Stack) -> None:
    body = text_body(max_tokens=40, ignore_eos=True)
    text = _ok(_post(stack, TEXT, body)).json["choices"][0]["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    for given in (stop, [stop, "never there"]):
        choice = _ok(_post(stack, TEXT, {**body, "stop": given})).json["choices"][0]
        assert choice["text"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_logit_bias_takes_token_ids_as_strings(stack: Stack) -> None:
    answer = _ok(_post(stack, TEXT, text_body(logit_bias={"100": 100}, max_tokens=3)))
    plain = _ok(_post(stack, TEXT, text_body(max_tokens=3)))
    assert answer.json["choices"][0]["text"] != plain.json["choices"][0]["text"]


def test_a_seed_gives_the_same_text_again(stack: Stack) -> None:
    body = chat_body(temperature=1, seed=0)
    first, second = (_ok(_post(stack, CHAT, body)).json["choices"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_tool_is_called(stack: Stack, choice: object, *, stream: bool) -> None:
    tools = [WEATHER] if choice == "required" else [TIME, WEATHER]
    body = chat_body("Paris?", tools=tools, tool_choice=choice, max_tokens=120, stream=stream)
    answer = _ok(_post(stack, CHAT, body))
    if stream:
        deltas = [event["choices"][0] for event in answer.events]
        calls = [call for d in deltas for call in d["delta"].get("tool_calls", [])]
        assert [call["index"] for call in calls] == [0]
        reason = deltas[-1]["finish_reason"]
    else:
        message = answer.json["choices"][0]["message"]
        calls, reason = message["tool_calls"], answer.json["choices"][0]["finish_reason"]
        assert message["content"] is None
    assert reason == "tool_calls"
    assert calls[0]["type"] == "function"
    assert calls[0]["id"]
    assert calls[0]["function"]["name"] == "get_weather"
    assert set(json.loads(calls[0]["function"]["arguments"])) == {"city"}


def test_no_tool_is_called_when_the_choice_is_none(stack: Stack) -> None:
    answer = _ok(_post(stack, CHAT, chat_body("Paris?", tools=[WEATHER], tool_choice="none")))
    assert "tool_calls" not in answer.json["choices"][0]["message"]


def test_an_answer_with_a_tool_call_may_be_sent_back_as_it_came(stack: Stack) -> None:
    body = chat_body("Paris?", tools=[WEATHER], tool_choice="required", max_tokens=120)
    message = _ok(_post(stack, CHAT, body)).json["choices"][0]["message"]
    messages = [
        {"role": "user", "content": "Paris?"},
        {**message, "annotations": [], "audio": None, "function_call": None},
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"},
    ]
    _ok(_post(stack, CHAT, chat_body(messages=messages, tools=[WEATHER])))


@pytest.mark.parametrize("text", ["Paris?", "What is the weather in Paris?"])
def test_beside_tools_the_answer_is_a_call_or_has_its_schema(stack: Stack, text: str) -> None:
    schema = {"type": "object", "properties": {"ok": {"enum": [1, 2]}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = chat_body(text, tools=[WEATHER], response_format=wanted, max_tokens=200)
    choice = _ok(_post(stack, CHAT, body)).json["choices"][0]
    if choice["finish_reason"] == "tool_calls":
        (made,) = choice["message"]["tool_calls"]
        assert made["function"]["name"] == "get_weather"
    else:
        assert json.loads(choice["message"]["content"])["ok"] in (1, 2)


def test_a_schema_is_honoured(stack: Stack) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema}}
    answer = _ok(_post(stack, CHAT, chat_body(response_format=wanted, max_tokens=60)))
    content = json.loads(answer.json["choices"][0]["message"]["content"])
    assert content["mood"] in ("good", "bad")


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"grammar": 'root ::= "yes" | "n" [o-p]'}, "yes|no|np"),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"structured_outputs": {"grammar": 'root ::= "x"{2,3}'}}, "xxx?"),
        ({"structured_outputs": {"grammar": 'start: "x" /[yz]/'}}, "x[yz]"),
        ({"structured_outputs": {"json": {"enum": [1, 22]}}}, "1|22"),
        ({"response_format": {"type": "json_object", "schema": {"const": "c"}}}, '"c"'),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_grammar_holds_the_whole_output(
    stack: Stack, path: str, asked: dict[str, Any], pattern: str
) -> None:
    body = chat_body(**asked) if path == CHAT else text_body(**asked)
    choice = _ok(_post(stack, path, body)).json["choices"][0]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert re.fullmatch(pattern, text), text
    assert choice["finish_reason"] == "stop"


def test_a_schema_that_cannot_be_honoured_is_refused(stack: Stack) -> None:
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object", "$ref": "http://example.org/"}},
    }
    answer = _post(stack, CHAT, chat_body(response_format=wanted))
    assert answer.status == 400
    assert answer.error["code"] == "SCHEMA_UNSUPPORTED"


def test_parameters_without_meaning_here_are_named_in_a_header(stack: Stack) -> None:
    body = chat_body(store=True, metadata={"a": "b"}, parallel_tool_calls=True)
    answer = _ok(_post(stack, CHAT, body))
    assert answer.headers["x-appliance-ignored"] == "metadata, parallel_tool_calls, store"
    assert "x-appliance-ignored" not in _ok(_post(stack, CHAT, chat_body())).headers


def test_a_bearer_key_means_nothing_where_no_client_is_configured(stack: Stack) -> None:
    _ok(_post(stack, CHAT, chat_body(), Authorization="Bearer anything"))


def test_models_are_listed_and_found_and_a_missing_one_has_openais_shape(stack: Stack) -> None:
    listed = _ok(call(stack.rest_address, "GET", "/v1/models")).json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["demo"]
    assert {"id", "object", "created", "owned_by"} <= set(listed["data"][0])
    assert _ok(call(stack.rest_address, "GET", "/v1/models/demo@2")).json["id"] == "demo@2"
    missing = call(stack.rest_address, "GET", "/v1/models/nobody")
    assert missing.status == 404
    assert missing.error["code"] == "model_not_found"
    assert missing.error["param"] == "model"


def test_probes_and_metrics_answer(stack: Stack) -> None:
    assert _ok(call(stack.rest_address, "GET", "/healthz")).json == {"status": "ok"}
    assert _ok(call(stack.rest_address, "GET", "/readyz")).json == {"status": "ready"}
    _ok(_post(stack, CHAT, chat_body()))
    answer = _ok(call(stack.rest_address, "GET", "/metrics"))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    for name in (
        'gen_ai_server_time_to_first_token_seconds_count{operation="chat",model="demo@2"}',
        'gen_ai_server_time_per_output_token_seconds_count{operation="chat",model="demo@2"}',
        'appliance_request_queue_seconds_count{operation="chat",model="demo@2"}',
        'appliance_tokens_total{operation="chat",model="demo@2",type="output"}',
        'appliance_requests_total{operation="chat",finish_reason="stop",code=""}',
        'appliance_requests_running{model="demo@2"}',
        'appliance_kv_cells_used{model="demo@2"}',
    ):
        assert name in text


def test_a_disconnect_stops_a_stream_and_a_whole_answer(stack: Stack) -> None:
    for stream in (True, False):
        body = json.dumps(chat_body(max_tokens=900, ignore_eos=True, stream=stream)).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        before = stack.call(
            lambda: stack.metrics.value(
                "appliance_requests_total", operation="chat", code="REQUEST_CANCELLED"
            )
        )
        with socket.create_connection(stack.rest_address) as connection:
            connection.sendall(head + body)
            if stream:
                assert connection.recv(64)
            else:
                stack.wait_for(lambda: stack.service.in_flight_count > 0)
        stack.wait_idle()
        after = stack.call(
            lambda: stack.metrics.value(
                "appliance_requests_total", operation="chat", code="REQUEST_CANCELLED"
            )
        )
        assert after == before + 1


def test_embeddings_of_a_generating_model_are_refused(stack: Stack) -> None:
    answer = _post(stack, "/v1/embeddings", {"model": "demo", "input": "x"})
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert "generates text and makes no embeddings" in answer.error["message"]
