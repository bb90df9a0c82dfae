"""Templates, and the guard of control tokens."""

from __future__ import annotations

import random

import pytest

from appliance.domain import ChatPrompt, Message, Tool, ToolCall, ToolChoice, ToolChoiceMode
from appliance.errors import InvalidRequest
from appliance.runtime.chat import Guard, Template

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


def test_what_a_template_marks_for_training_is_rendered_as_it_is() -> None:
    source = "{% generation %}{{ messages[0].content }}{% endgeneration %}!"
    assert _cut(_say("hi"), source) == [("hi!", False)]
