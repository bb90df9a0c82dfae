"""Bad input gets a clear typed error on both faces, and nothing of the appliance ends by it."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest

from appliance.api.proto import inference_pb2 as pb
from tests.integration.grpc_calls import (
    chat_input,
    expect_failure,
    inference,
    on_channel,
    text_input,
)
from tests.integration.rest_calls import call, chat_body, raw, text_body
from tests.integration.stack import Stack

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
HUGE = "word " * 3_000


def deep(levels: int) -> object:
    """Nest an object so deeply."""
    nested: object = {}
    for _ in range(levels):
        nested = {"a": nested}
    return nested


@pytest.fixture(autouse=True)
def _everything_lives(stack: Stack) -> Iterator[None]:
    """See that after every case the same worker still answers, and nothing is held."""
    before = stack.status()
    yield
    stack.wait_idle()
    after = stack.status()
    assert (after.worker_pid, after.worker_restarts) == (before.worker_pid, before.worker_restarts)
    assert call(stack.rest_address, "GET", "/readyz").status == 200


# --- REST -----------------------------------------------------------------------------------------

USER = [{"role": "user", "content": "x"}]
TOOL = {"type": "function", "function": {"name": "f"}}

REST_CASES: list[tuple[str, str, object, int, str | None]] = [
    ("a wrong type", CHAT, chat_body(max_tokens="many"), 400, "max_tokens"),
    ("a fraction of a token", CHAT, chat_body(max_tokens=1.5), 400, "max_tokens"),
    ("a boolean number", CHAT, chat_body(n=True), 400, "n"),
    ("a wrong element type", CHAT, chat_body(stop=["a", 1]), 400, "stop[1]"),
    ("a negative temperature", CHAT, chat_body(temperature=-1), 400, "temperature"),
    ("too hot", CHAT, chat_body(temperature=1000), 400, "temperature"),
    ("a top_p over 1", CHAT, chat_body(top_p=1.5), 400, "top_p"),
    ("a negative limit", CHAT, chat_body(max_tokens=-1), 400, "max_tokens"),
    ("no choices", CHAT, chat_body(n=0), 400, "n"),
    ("too many choices", CHAT, chat_body(n=1000), 400, "n"),
    ("a negative seed", CHAT, chat_body(seed=-1), 400, "seed"),
    ("a limit of 400 digits", CHAT, chat_body(max_tokens=10**400), 400, "max_tokens"),
    ("a seed of 100 digits", CHAT, chat_body(seed=10**100), 400, "seed"),
    ("too many logprobs", CHAT, chat_body(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    ("top_logprobs alone", CHAT, chat_body(top_logprobs=1), 400, "top_logprobs"),
    ("an empty stop string", CHAT, chat_body(stop=""), 400, "stop"),
    ("too many stop strings", CHAT, chat_body(stop=["a"] * 17), 400, "stop"),
    ("a bias of a word", CHAT, chat_body(logit_bias={"word": 1}), 400, "logit_bias"),
    ("a bias over 100", CHAT, chat_body(logit_bias={"5": 101}), 400, "logit_bias[5]"),
    ("a bias beyond the ids", CHAT, chat_body(logit_bias={"3000000000": 1}), 400, "logit_bias"),
    ("a bias beyond the vocabulary", CHAT, chat_body(logit_bias={"999999": 1}), 400, "logit_bias"),
    ("no messages", CHAT, chat_body(messages=[]), 400, "messages"),
    ("messages missing", CHAT, {"model": "demo"}, 400, "messages"),
    ("model missing", CHAT, {"messages": USER}, 400, "model"),
    ("an unknown model", CHAT, chat_body(model="nobody"), 404, "model"),
    ("an unknown role", CHAT, chat_body(messages=[{"role": "boss", "content": "x"}]), 400,
     "messages[0].role"),
    ("no content", CHAT, chat_body(messages=[{"role": "user"}]), 400, "messages[0].content"),
    ("an image", CHAT, chat_body(messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:,"}}]}]), 400, "messages[0].content[0]"),
    ("functions", CHAT, chat_body(functions=[{"name": "f"}]), 400, "functions"),
    ("function_call", CHAT, chat_body(function_call="auto"), 400, "function_call"),
    ("audio", CHAT, chat_body(modalities=["text", "audio"]), 400, "modalities"),
    ("a demanded tool without tools", CHAT, chat_body(tool_choice="required"), 400, "tool_choice"),
    ("a tool that is not there", CHAT, chat_body(tools=[TOOL], tool_choice={
        "type": "function", "function": {"name": "g"}}), 400, "tool_choice"),
    ("the same tool twice", CHAT, chat_body(tools=[TOOL, TOOL]), 400, "tools[1].function.name"),
    ("a tool nested too deeply", CHAT, chat_body(tools=[{"type": "function", "function": {
        "name": "f", "parameters": deep(900)}}]), 400, "tools"),
    ("a tool that can't be held to", CHAT, chat_body(tools=[{"type": "function", "function": {
        "name": "f", "parameters": {"not": {}}}}]), 400, "tools"),
    ("a regex beside tools", CHAT, chat_body(tools=[TOOL], structured_outputs={"regex": "a"}),
     400, "tools"),
    ("a schema that is not one", CHAT, chat_body(response_format={
        "type": "json_schema", "json_schema": {"name": "x"}}), 400,
     "response_format.json_schema.schema"),
    ("a grammar that is none", CHAT, chat_body(grammar="root ::= ("), 400, "grammar"),
    ("a grammar without a root", CHAT, chat_body(grammar='a ::= "b"'), 400, "grammar"),
    ("a grammar too large", CHAT, chat_body(grammar="#" * 70_000), 400, "gbnf"),
    ("two formats", CHAT, chat_body(grammar='root ::= "b"', structured_outputs={"regex": "b"}),
     400, "grammar"),
    ("no structure", CHAT, chat_body(structured_outputs={}), 400, "structured_outputs"),
    ("an unknown structure", CHAT, chat_body(structured_outputs={"regexp": "a"}), 400,
     "structured_outputs.regexp"),
    ("vLLM's older name", CHAT, chat_body(guided_regex="a"), 400, "guided_regex"),
    ("an unknown format", CHAT, chat_body(response_format={"type": "xml"}), 400,
     "response_format.type"),
    ("stream options without a stream", CHAT, chat_body(stream_options={"include_usage": True}),
     400, "stream_options"),
    ("an unknown field", CHAT, chat_body(temprature=0), 400, "temprature"),
    ("an unknown field inside", CHAT, chat_body(messages=[{**USER[0], "rol": 1}]), 400,
     "messages[0].rol"),
    ("a huge prompt", CHAT, chat_body(HUGE), 400, None),
    ("an empty prompt", TEXT, text_body(""), 400, "prompt"),
    ("an empty list of prompts", TEXT, text_body([]), 400, "prompt"),
    ("an empty list of tokens", TEXT, text_body([[]]), 400, "prompt"),
    ("prompt missing", TEXT, {"model": "demo"}, 400, "prompt"),
    ("a mixed prompt", TEXT, text_body(["a", 1]), 400, "prompt"),
    ("a negative token", TEXT, text_body([-1]), 400, "prompt"),
    ("a token beyond the ids", TEXT, text_body([2**40]), 400, "prompt"),
    ("a token beyond the vocabulary", TEXT, text_body([999_999]), 400, "prompt"),
    ("a huge legacy prompt", TEXT, text_body(HUGE), 400, None),
    ("a suffix for a model that fills no gaps", TEXT, text_body(suffix="end"), 400, "model"),
    ("a suffix of tokens", TEXT, text_body(prompt=[5, 6], suffix="end"), 400, "suffix"),
    ("best_of", TEXT, text_body(best_of=3), 400, "best_of"),
    ("too many prompts", TEXT, text_body(["a"] * 65), 400, "prompt"),
    ("an embedding format", EMBED, {"model": "demo", "input": "x", "encoding_format": "hex"}, 400,
     "encoding_format"),
    ("an embedding without input", EMBED, {"model": "demo"}, 400, "input"),
    ("too many inputs", EMBED, {"model": "demo", "input": ["x"] * 2049}, 400, "input"),
    ("an empty input", EMBED, {"model": "demo", "input": ""}, 400, "input"),
    ("no name where none can be meant", EMBED, {"model": "", "input": "x"}, 400, "model"),
    ("a list for a body", CHAT, [1], 400, "body"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [case[1:] for case in REST_CASES],
    ids=[case[0] for case in REST_CASES],
)
def test_rest_refuses(
    stack: Stack, path: str, body: object, status: int, param: str | None
) -> None:
    answer = call(stack.rest_address, "POST", path, body)
    assert answer.status == status, answer.body
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]


def test_rest_names_the_nearest_known_field(stack: Stack) -> None:
    answer = call(stack.rest_address, "POST", CHAT, chat_body(temprature=0))
    assert answer.error["message"].endswith("did you mean 'temperature'?")


RAW_BODIES = {
    "malformed JSON": b'{"model": "demo", ',
    "no body": b"",
    "NaN": b'{"model": "demo", "messages": [], "temperature": NaN}',
    "Infinity": b'{"model": "demo", "messages": [], "temperature": Infinity}',
    "a number too large": b'{"model": "demo", "messages": [], "temperature": 1e999}',
    "a number of 5000 digits": b'{"model": "demo", "messages": [], "n": ' + b"1" * 5000 + b"}",
    "invalid UTF-8": b'{"model": "demo", "messages": [{"role": "user", "content": "\xff"}]}',
    "half a surrogate": rb'{"model": "demo", "messages": [{"role": "user", "content": "\ud800"}]}',
    "deep nesting": b'{"a":' * 20_000,
    "nesting": b'{"model": "demo", "messages": [], "tools": ' + b"[" * 900 + b"]" * 900 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("body", RAW_BODIES.values(), ids=RAW_BODIES.keys())
def test_rest_refuses_what_is_not_the_json_it_reads(stack: Stack, body: bytes) -> None:
    for path in (CHAT, TEXT, EMBED):
        answer = call(stack.rest_address, "POST", path, body)
        assert answer.status == 400, answer.body
        assert answer.error["code"] == "INVALID_REQUEST"


def test_rest_refuses_any_depth_as_a_client_error(stack: Stack) -> None:
    chat = '{"model":"demo","messages":[{"role":"user","content":"x"}],'
    for levels in range(940, 990):  # where one of several readers gives up before the others
        nested = '{"a":' * levels + "1" + "}" * levels
        tool = f'{{"type":"function","function":{{"name":"f","parameters":{nested}}}}}'
        answer = call(stack.rest_address, "POST", CHAT, f'{chat}"tools":[{tool}]}}'.encode())
        assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST"), levels


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_rest_refuses_other_kinds_of_bodies(stack: Stack, headers: dict[str, str]) -> None:
    body = json.dumps(chat_body()).encode()
    answer = call(stack.rest_address, "POST", CHAT, body, headers)
    assert answer.status == 400
    assert answer.error["param"] == next(iter(headers)).lower()


def test_rest_refuses_an_oversized_body_announced_or_not(stack: Stack) -> None:
    limit = stack.rest_settings.body_bytes_max
    answer = call(stack.rest_address, "POST", CHAT, b" " * (limit + 1))
    assert (answer.status, answer.error["code"]) == (413, "BODY_TOO_LARGE")
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.create_connection(stack.rest_address, 30) as connection:
        connection.sendall(head)
        for _ in range(limit // 0x100000 + 1):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(64)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("POST", "/v1/chat", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/demo", 405, "method_not_allowed"),
    ],
)
def test_rest_answers_wrong_routes_in_openais_words(
    stack: Stack, method: str, path: str, status: int, code: str
) -> None:
    answer = call(stack.rest_address, method, path)
    assert (answer.status, answer.error["code"]) == (status, code)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        ),
    ],
    ids=["TLS", "a future version", "a long header", "no colon", "a negative length", "no chunk"],
)
def test_rest_refuses_what_is_not_http(stack: Stack, data: bytes) -> None:
    answer = raw(stack.rest_address, data)
    assert b" 400 " in answer.split(b"\r\n", 1)[0]
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["type"] == "invalid_request_error"


# --- gRPC -----------------------------------------------------------------------------------------


def _sampling(**options: object) -> dict[str, object]:
    return {"sampling": pb.SamplingOptions(**options)}  # type: ignore[arg-type]


GRPC_TEXT_CASES: list[tuple[str, pb.GenerateInput, str]] = [
    ("no prompt", pb.GenerateInput(model="demo"), "prompt"),
    ("an empty prompt", text_input(""), "prompt"),
    ("no tokens", pb.GenerateInput(model="demo", token_ids=pb.TokenIds()), "prompt"),
    ("a negative token", pb.GenerateInput(model="demo", token_ids=pb.TokenIds(ids=[-1])), "prompt"),
    ("a token beyond the vocabulary",
     pb.GenerateInput(model="demo", token_ids=pb.TokenIds(ids=[999_999])), "prompt"),
    ("NaN", text_input("x", **_sampling(temperature=math.nan)), "temperature"),
    ("infinity", text_input("x", **_sampling(temperature=math.inf)), "temperature"),
    ("a negative temperature", text_input("x", **_sampling(temperature=-1)), "temperature"),
    ("a negative top_k", text_input("x", **_sampling(top_k=-1)), "top_k"),
    ("a zero repeat penalty", text_input("x", **_sampling(repeat_penalty=0)), "repeat_penalty"),
    ("a seed too large", text_input("x", **_sampling(seed=2**64 - 1)), "seed"),
    ("a NaN bias", text_input("x", **_sampling(logit_bias={5: math.nan})), "logit_bias[5]"),
    ("a negative biased token", text_input("x", **_sampling(logit_bias={-5: 1})), "logit_bias"),
    ("a negative limit", text_input("x", stop=pb.StopOptions(max_tokens=-1)), "max_tokens"),
    ("a negative stop token", text_input("x", stop=pb.StopOptions(token_ids=[-1])),
     "stop_token_ids"),
    ("an empty stop string", text_input("x", stop=pb.StopOptions(strings=[""])), "stop"),
    ("a negative n", text_input("x", output=pb.OutputOptions(n=-1)), "n"),
    ("too many logprobs", text_input("x", output=pb.OutputOptions(top_logprobs=99)),
     "top_logprobs"),
    ("echo with logprobs", text_input("x", output=pb.OutputOptions(echo=True, top_logprobs=1)),
     "logprobs"),
    ("an id with a line break", text_input("x", request_id="a\nb"), "request_id"),
    ("an id too long", text_input("x", request_id="a" * 129), "request_id"),
]  # fmt: skip

GRPC_CHAT_CASES: list[tuple[str, pb.ChatInput, str]] = [
    ("no messages", pb.ChatInput(model="demo"), "messages"),
    ("no role", pb.ChatInput(model="demo", messages=[pb.Message(content="x")]), "messages[0].role"),
    ("echo", chat_input("x", output=pb.OutputOptions(echo=True)), "echo"),
    ("a result of no call", chat_input("x", messages=[
        pb.Message(role=pb.Message.ROLE_TOOL, content="x")]), "messages[0].tool_call_id"),
    ("a user who calls a tool", chat_input("x", messages=[
        pb.Message(role=pb.Message.ROLE_USER, tool_calls=[pb.ToolCall(name="f")])]),
     "messages[0].tool_calls"),
    ("a tool with a space in its name", chat_input("x", tools=[pb.Tool(name="f g")]),
     "tools[0].name"),
    ("the same tool twice", chat_input("x", tools=[pb.Tool(name="f"), pb.Tool(name="f")]),
     "tools[1].name"),
    ("arguments nested too deeply", chat_input("x", messages=[
        pb.Message(role=pb.Message.ROLE_ASSISTANT, tool_calls=[
            pb.ToolCall(id="c", name="f", arguments_json=json.dumps(deep(900)))])]),
     "messages[0].tool_calls"),
    ("a tool without a name", chat_input("x", tools=[pb.Tool()]), "tools[0].name"),
    ("arguments that are not JSON", chat_input("x", tools=[
        pb.Tool(name="f", parameters_json="{")]), "tools"),
    ("a demanded tool without tools", chat_input("x", tool_choice=pb.ToolChoice(
        mode=pb.ToolChoice.MODE_REQUIRED)), "tool_choice.mode"),
    ("a tool that is not there", chat_input("x", tool_choice=pb.ToolChoice(
        mode=pb.ToolChoice.MODE_NAMED, name="f")), "tool_choice.name"),
    ("a schema that is not JSON", chat_input("x", constraint=pb.Constraint(
        json_schema="{")), "json_schema"),
    ("a regex that is not one", chat_input("x", constraint=pb.Constraint(regex="(")), "regex"),
    ("a grammar that is none", chat_input("x", constraint=pb.Constraint(gbnf="x")), "grammar"),
    ("a temperature in a grammar", chat_input("x", constraint=pb.Constraint(
        lark='start[temperature=0.1]: "a"')), "grammar"),
    ("a schema in a grammar", chat_input("x", constraint=pb.Constraint(
        lark='start: %json {"not": {}}')), "grammar"),
    ("no choices", chat_input("x", constraint=pb.Constraint(choices=pb.Choices())), "choices"),
    ("a constraint too large", chat_input("x", constraint=pb.Constraint(regex="a" * 70_000)),
     "regex"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "field"),
    [case[1:] for case in GRPC_TEXT_CASES],
    ids=[case[0] for case in GRPC_TEXT_CASES],
)
def test_grpc_refuses_a_generate(stack: Stack, given: pb.GenerateInput, field: str) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await inference(channel).Generate(pb.GenerateRequest(input=given))

    failure = expect_failure(stack.grpc_target, work)
    assert failure.code is INVALID, failure
    assert failure.reason == "INVALID_REQUEST"
    assert failure.violations[0][0] == field


@pytest.mark.parametrize(
    ("given", "field"),
    [case[1:] for case in GRPC_CHAT_CASES],
    ids=[case[0] for case in GRPC_CHAT_CASES],
)
def test_grpc_refuses_a_chat(stack: Stack, given: pb.ChatInput, field: str) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        call = inference(channel).ChatStream(pb.ChatStreamRequest(input=given))
        async for _ in call:
            pass

    failure = expect_failure(stack.grpc_target, work)
    assert failure.code is INVALID, failure
    assert failure.reason in ("INVALID_REQUEST", "SCHEMA_UNSUPPORTED")
    assert failure.violations[0][0] == field


def test_grpc_says_that_a_model_of_a_very_long_name_is_not_served(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await inference(channel).Generate(
            pb.GenerateRequest(input=text_input("x", model="\N{GRINNING FACE}" * 20_000))
        )

    failure = expect_failure(stack.grpc_target, work)
    assert failure.code is grpc.StatusCode.NOT_FOUND, failure.message[:200]
    assert failure.reason == "MODEL_NOT_SERVED"


def test_grpc_names_both_numbers_of_a_prompt_too_long(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await inference(channel).Generate(pb.GenerateRequest(input=text_input(HUGE)))

    failure = expect_failure(stack.grpc_target, work)
    assert (failure.code, failure.reason) == (INVALID, "CONTEXT_TOO_LONG")
    assert int(failure.metadata["prompt_tokens"]) > int(failure.metadata["limit_tokens"])


@pytest.mark.parametrize("data", [b"\x0a\x02\xff\xff", b"\xff\xff\xff\xff", b"\x0a\x7f"])
def test_grpc_refuses_what_is_not_a_message(stack: Stack, data: bytes) -> None:
    """Invalid UTF-8 in a string, an unknown wire type, a length beyond the end."""

    async def work(channel: grpc.aio.Channel) -> None:
        await channel.unary_unary(
            "/appliance.v1.InferenceService/Tokenize",
            request_serializer=bytes,
            response_deserializer=pb.TokenizeResponse.FromString,
        )(data)

    failure = expect_failure(stack.grpc_target, work)
    assert (failure.code, failure.reason) == (INVALID, "INVALID_REQUEST")


def test_grpc_refuses_an_oversized_message(stack: Stack) -> None:
    size = stack.grpc_settings.message_bytes_max + 1

    async def work(channel: grpc.aio.Channel) -> None:
        await inference(channel).Tokenize(pb.TokenizeRequest(model="demo", text="a" * size))

    failure = expect_failure(stack.grpc_target, work)
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_grpc_refuses_unknown_methods(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await channel.unary_unary("/appliance.v1.InferenceService/Nothing", bytes)(b"")

    assert expect_failure(stack.grpc_target, work).code is grpc.StatusCode.UNIMPLEMENTED


def test_grpc_refuses_bad_embeddings(stack: Stack) -> None:
    async def none(channel: grpc.aio.Channel) -> None:
        await inference(channel).Embed(pb.EmbedRequest(model="demo"))

    async def hollow(channel: grpc.aio.Channel) -> None:
        await inference(channel).Embed(pb.EmbedRequest(model="demo", inputs=[pb.EmbedInput()]))

    assert expect_failure(stack.grpc_target, none).violations[0][0] == "input"
    assert expect_failure(stack.grpc_target, hollow).violations[0][0] == "inputs[0]"


def test_grpc_outlives_bytes_that_are_not_http2(stack: Stack) -> None:
    path = stack.grpc_target.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)

    async def work(channel: grpc.aio.Channel) -> pb.TokenizeResponse:
        return await inference(channel).Tokenize(pb.TokenizeRequest(model="demo", text="x"))

    assert on_channel(stack.grpc_target, work).version == "demo@2"
