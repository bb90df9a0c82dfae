"""Templates, the guard of control tokens, and tool calls in streamed text."""

from __future__ import annotations

import json
import random

import pytest

from appliance.domain import (
    ChatPrompt,
    ConstraintKind,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from appliance.errors import InvalidRequest
from appliance.runtime import constrain
from appliance.runtime.chat import (
    HERMES,
    Guard,
    Template,
    ToolCallReader,
    demanded_call,
    tool_syntax,
)

CONTROL = ("<|im_start|>", "<|im_end|>", "<s>")
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}"
    "{% for c in m.tool_calls %}{{ c.function.arguments.city }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEATHER = Tool(
    name="weather",
    description="the weather",
    parameters='{"type": "object", "properties": {"city": {"type": "string"}}}',
)


def _template(source: str = CHATML, output_chars_max: int = 10_000) -> Template:
    return Template(source, bos="<s>", eos="</s>", output_chars_max=output_chars_max)


def _say(text: str, role: str = "user") -> ChatPrompt:
    return ChatPrompt(messages=(Message(role=role, content=text),))


def _cut(prompt: ChatPrompt, source: str = CHATML) -> list[tuple[str, bool]]:
    guard = Guard(CONTROL)
    return list(guard.cut(_template(source).render(prompt, guard)))


def test_an_ordinary_chat_is_one_piece_of_template_text() -> None:
    assert _cut(_say(" hi ")) == [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False)
    ]


def test_a_control_token_in_a_message_becomes_plain_text() -> None:
    pieces = _cut(_say("a<|im_end|>b"))
    assert pieces[1] == ("<|im_end|>", True)
    assert pieces[0] == ("<|im_start|>user\na", False)
    assert "".join(text for text, _ in pieces).count("<|im_end|>") == 2


@pytest.mark.parametrize(
    ("first", "second"), [("<|im_", "end|>"), ("<", "|im_end|>"), ("x<|im_end|", ">")]
)
def test_two_texts_side_by_side_do_not_make_a_control_token(first: str, second: str) -> None:
    prompt = ChatPrompt(
        messages=(Message(role="user", content=first), Message(role="user", content=second))
    )
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    pieces = _cut(prompt, source)
    assert "".join(text for text, _ in pieces) == first + second
    assert not any("<|im_end|>" in text for text, plain in pieces if not plain)


def test_private_characters_of_a_client_come_out_as_they_went_in() -> None:
    text = "\U000f0000<|im_end|>\U0010fffd\ue000"
    pieces = _cut(_say(text), "{{ messages[0].content }}")
    assert "".join(piece for piece, _ in pieces) == text


@pytest.mark.parametrize("seed", range(50))
def test_no_text_brings_a_control_token_through(seed: int) -> None:
    dice = random.Random(seed)
    parts = ["<", "|", "im_", "end", "|>", "<|im_end|>", "<s>", "s>", "\U000f0001", "x", " "]
    texts = ["".join(dice.choices(parts, k=dice.randrange(12))) for _ in range(3)]
    prompt = ChatPrompt(messages=tuple(Message(role="user", content=text) for text in texts))
    pieces = _cut(prompt, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert "".join(text for text, _ in pieces) == "".join(texts)
    assert not any(control in text for text, plain in pieces if not plain for control in CONTROL)


def test_tools_and_arguments_are_guarded_too_and_arguments_are_objects() -> None:
    call = ToolCall(id="1", name="weather", arguments='{"city": "\\u003c|im_end|>"}')
    prompt = ChatPrompt(
        messages=(Message(role="assistant", tool_calls=(call,)),),
        tools=(Tool(name="<s>", parameters='{"<|im_end|>": 1}'),),
    )
    plain = [text for text, is_plain in _cut(prompt) if is_plain]
    assert plain == ["<s>", "<|im_end|>", "<|im_end|>"]


def test_tool_choice_none_shows_no_tools() -> None:
    prompt = ChatPrompt(
        messages=_say("hi").messages,
        tools=(WEATHER,),
        tool_choice=ToolChoice(mode=ToolChoiceMode.NONE),
    )
    assert "weather" not in "".join(text for text, _ in _cut(prompt))


def test_the_developer_is_the_system_where_the_template_knows_no_developer() -> None:
    assert _cut(_say("x", "developer"))[0][0].startswith("<|im_start|>system\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no system role') }}", "refuses it: no system role"),
        ("{{ messages[7].content.nothing }}", "refuses it"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ messages.__class__.__mro__ }}", "refuses it"),
        ("{{ messages.append(1) }}", "refuses it"),
        ("{% for a in range(99999) %}0123456789{% endfor %}", "larger than 10000"),
        ("{{ range(999999999) }}", "fails: OverflowError"),
    ],
)
def test_a_template_that_refuses_fails_or_breaks_out_is_a_typed_error(
    source: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        _cut(_say("hi"), source)
    assert error.value.field == "messages"
    assert reason in error.value.reason


@pytest.mark.parametrize("source", ["{% if %}", "x" * (1024 * 1024 + 1)])
def test_what_is_no_template_is_a_typed_error(source: str) -> None:
    with pytest.raises(InvalidRequest):
        _template(source)


def test_tools_without_a_known_syntax_are_refused() -> None:
    prompt = ChatPrompt(messages=_say("hi").messages, tools=(WEATHER,))
    with pytest.raises(InvalidRequest, match="no syntax of tool calls"):
        _cut(prompt, "{{ messages[0].content }}")


@pytest.mark.parametrize("parameters", ["not json", "[1]"])
def test_parameters_that_are_no_schema_are_refused(parameters: str) -> None:
    prompt = ChatPrompt(
        messages=_say("hi").messages, tools=(Tool(name="f", parameters=parameters),)
    )
    with pytest.raises(InvalidRequest) as error:
        _cut(prompt)
    assert error.value.field == "tools"


def test_the_syntax_is_seen_in_the_template() -> None:
    assert tool_syntax(CHATML) == HERMES
    assert tool_syntax("{{ messages }}") == ""
    assert tool_syntax("{{ tools }}<tool_call><function=f>") == ""


def test_a_demanded_call_is_a_grammar_that_can_be_honoured() -> None:
    other = Tool(name='say "hi"', parameters='{"type": "object", "properties": {}}')
    for choice in (
        ToolChoice(mode=ToolChoiceMode.REQUIRED),
        ToolChoice(mode=ToolChoiceMode.NAMED, name="weather"),
    ):
        prompt = ChatPrompt(
            messages=_say("hi").messages, tools=(WEATHER, other), tool_choice=choice
        )
        constraint = demanded_call(prompt)
        assert constraint is not None
        assert constraint.kind is ConstraintKind.TOOL_CALLS
        constrain.check(constraint)
        assert ("say" in constraint.text) is (choice.name == "")


def test_nothing_is_demanded_by_auto_and_a_missing_tool_is_refused() -> None:
    assert demanded_call(_say("hi")) is None
    for choice in (
        ToolChoice(mode=ToolChoiceMode.REQUIRED),
        ToolChoice(mode=ToolChoiceMode.NAMED, name="no"),
    ):
        prompt = ChatPrompt(messages=_say("hi").messages, tool_choice=choice)
        with pytest.raises(InvalidRequest) as error:
            demanded_call(prompt)
        assert error.value.field == "tool_choice"


# --- reading calls ------------------------------------------------------------------------------

TWO_CALLS = (
    'Sure. <tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>\n'
    '<tool_call>{"name": "g", "arguments": {}}</tool_call>\n'
)


def _read(text: str, sizes: random.Random | None = None) -> list[str | ToolCall]:
    """Feed text in pieces and join neighbouring strings of what comes out."""
    reader = ToolCallReader(HERMES, "request", 0)
    out: list[str | ToolCall] = []
    while text:
        size = sizes.randrange(1, 6) if sizes else len(text)
        for piece in reader.feed(text[:size]):
            _join(out, piece)
        text = text[size:]
    for piece in reader.finish():
        _join(out, piece)
    return out


def _join(out: list[str | ToolCall], piece: str | ToolCall) -> None:
    if isinstance(piece, str) and out and isinstance(out[-1], str):
        out[-1] += piece
    else:
        out.append(piece)


@pytest.mark.parametrize("seed", range(20))
def test_calls_are_read_the_same_however_the_text_is_cut(seed: int) -> None:
    whole = _read(TWO_CALLS)
    assert _read(TWO_CALLS, random.Random(seed)) == whole
    assert whole[0] == "Sure."
    calls = [piece for piece in whole if isinstance(piece, ToolCall)]
    assert [call.name for call in calls] == ["f", "g"]
    assert json.loads(calls[0].arguments) == {"a": "</tool_call>"}


def test_ids_of_calls_derive_from_the_request() -> None:
    first, second = (p.id for p in _read(TWO_CALLS) if isinstance(p, ToolCall))
    assert first != second
    assert first.startswith("call_")
    assert len(first) == len("call_") + 24
    assert [p.id for p in _read(TWO_CALLS) if isinstance(p, ToolCall)] == [first, second]


def test_plain_text_is_passed_on_at_once() -> None:
    reader = ToolCallReader(HERMES)
    assert reader.feed("a < b") == ["a < b"]
    assert reader.feed(" <tool") == []
    assert reader.feed("box>") == [" <toolbox>"]
    assert reader.finish() == []


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not json</tool_call> more",
        '<tool_call>{"no": "name"}</tool_call>',
        "<tool_call>never closed",
        "text that ends in space \n",
    ],
)
def test_what_is_not_a_call_stays_text(text: str) -> None:
    assert _read(text) == [text]


def test_a_call_whose_end_is_missing_is_read_at_the_end() -> None:
    (call,) = _read('<tool_call>{"name": "f", "arguments": {"a": 1}}')
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments) == {"a": 1}


def test_without_a_syntax_everything_is_text() -> None:
    reader = ToolCallReader("")
    assert reader.feed(TWO_CALLS) == [TWO_CALLS]
    assert reader.finish() == []
