"""Every limit of the operator is hit by name, before anything is spent on the request."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from appliance.api.limits import (
    JSON_DEPTH_MAX,
    check_embed,
    check_generate,
    check_request_id,
    check_text,
    check_tokens,
    new_request_id,
    new_seed,
)
from appliance.config import Limits
from appliance.domain import (
    SEED_MAX,
    ChatPrompt,
    Constraint,
    ConstraintKind,
    EmbedRequest,
    GenerateRequest,
    Message,
    Prompt,
    RequestId,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
)
from appliance.errors import InvalidRequest

LIMITS = Limits(prompt_bytes=8, messages=2, tools=1, embed_inputs=2, constraint_bytes=4)
HI = Message(role="user", content="hi")


def _request(prompt: Prompt, constraint: Constraint | None = None) -> GenerateRequest:
    return GenerateRequest(
        request_id=RequestId("r"), model="m", prompt=prompt, constraint=constraint
    )


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (TextPrompt(text=""), "prompt"),
        (TextPrompt(text="123456789"), "prompt"),
        (TextPrompt(text="ééééé"), "prompt"),
        (TokenPrompt(token_ids=()), "prompt"),
        (TokenPrompt(token_ids=tuple(range(9))), "prompt"),
        (TokenPrompt(token_ids=(2**31,)), "prompt"),
        (ChatPrompt(messages=()), "messages"),
        (ChatPrompt(messages=(HI, HI, HI)), "messages"),
        (ChatPrompt(messages=(Message(role="user", content="123456789"),)), "prompt"),
        (ChatPrompt(messages=(HI,), tools=(Tool(name="a"), Tool(name="b"))), "tools"),
        (ChatPrompt(messages=(HI,), tools=(Tool(name="a", parameters="12345"),)), "tools"),
    ],
)
def test_a_prompt_over_a_limit_is_refused(prompt: Prompt, field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_generate(_request(prompt), LIMITS)
    assert raised.value.field == field


@pytest.mark.parametrize(
    "prompt",
    [
        TextPrompt(text="12345678"),
        TokenPrompt(token_ids=(0, 2**31 - 1)),
        ChatPrompt(messages=(HI, HI), tools=(Tool(name="a", parameters="{}"),)),
    ],
)
def test_a_prompt_at_the_limit_is_let_through(prompt: Prompt) -> None:
    check_generate(_request(prompt), LIMITS)


def test_a_constraint_over_the_limit_is_refused() -> None:
    constraint = Constraint(kind=ConstraintKind.REGEX, text="12345")
    with pytest.raises(InvalidRequest, match="regex"):
        check_generate(_request(TextPrompt(text="x"), constraint), LIMITS)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("[" * JSON_DEPTH_MAX + "]" * JSON_DEPTH_MAX, True),
        ("[" * (JSON_DEPTH_MAX + 1), False),
        ("[{}]" * JSON_DEPTH_MAX, True),
        (json.dumps({"a": "[{" * JSON_DEPTH_MAX, 'b\\"': '"{[' * JSON_DEPTH_MAX}), True),
    ],
)
def test_json_is_nested_so_deeply_at_most(text: str, *, fits: bool) -> None:
    call = ToolCall(id="c", name="f", arguments=text)
    turn = Message(role="assistant", tool_calls=(call,))
    chat = ChatPrompt(messages=(HI, turn))
    tool = ChatPrompt(messages=(HI,), tools=(Tool(name="f", parameters=text),))
    schema = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)
    for request, field in (
        (_request(chat), "messages[1].tool_calls"),
        (_request(tool), "tools"),
        (_request(TextPrompt(text="x"), schema), "json_schema"),
    ):
        with nullcontext() if fits else pytest.raises(InvalidRequest, match="nested") as raised:
            check_generate(request, Limits())
        assert raised is None or raised.value.field == field


@pytest.mark.parametrize("texts", [[], ["a", "b", "c"], [""], ["12345", "6789"]])
def test_inputs_to_embed_are_bounded_one_by_one_and_together(texts: list[str]) -> None:
    inputs = tuple(TextPrompt(text=text) for text in texts)
    with pytest.raises(InvalidRequest, match="input"):
        check_embed(EmbedRequest(request_id=RequestId("r"), model="m", inputs=inputs), LIMITS)


def test_texts_and_tokens_to_turn_are_bounded() -> None:
    check_text("text", "", LIMITS)
    check_tokens("token_ids", (), LIMITS)
    with pytest.raises(InvalidRequest):
        check_text("text", "123456789", LIMITS)
    with pytest.raises(InvalidRequest):
        check_tokens("token_ids", tuple(range(9)), LIMITS)


@pytest.mark.parametrize("request_id", ["", "a b", "a\n", "é", "a" * 129])
def test_an_id_must_fit_into_a_log_line(request_id: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        check_request_id(request_id)


def test_what_we_make_ourselves_passes() -> None:
    check_request_id(new_request_id())
    assert new_request_id() != new_request_id()
    assert 0 <= new_seed() <= SEED_MAX
