"""Calls are demanded, held to their schemas and read in every syntax of the table alike."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from appliance.domain import (
    ChatPrompt,
    Constraint,
    ConstraintKind,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from appliance.errors import InvalidRequest, SchemaUnsupported
from appliance.runtime import constrain
from appliance.runtime.call_reader import ToolCallReader
from appliance.runtime.constrain import ConstraintCompiler
from appliance.runtime.llama import Model
from appliance.runtime.tool_grammar import constraint_of
from appliance.runtime.tool_syntax import SYNTAXES, Form, Syntax, find, syntax_of
from tests.unit.runtime.drawing import Drawing
from tests.unit.runtime.schema_validator import is_valid
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

Call: TypeAlias = tuple[str, dict[str, Any]]

HERMES = find("hermes")
AUTO, REQUIRED = ToolChoiceMode.AUTO, ToolChoiceMode.REQUIRED
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool(name="get_weather", description="W", parameters=json.dumps(PARAMETERS))
COUNTS = {"properties": {"n": {"type": "integer"}, "of": {"enum": ["a", "b"]}}, "required": ["n"]}
COUNT = Tool(name="count", parameters=json.dumps(COUNTS))
OTHER = Tool(name="other-tool", parameters='{"type": "object", "properties": {}}')
ARGUMENTS: list[Call] = [
    ("get_weather", {"city": "</Paris> {", "days": 2}),
    ("get_weather", {"city": "好"}),
]


def _chat(mode: ToolChoiceMode, *tools: Tool, name: str = "", parallel: bool = True) -> ChatPrompt:
    return ChatPrompt(
        messages=(Message(role="user", content="hi"),),
        tools=tools,
        tool_choice=ToolChoice(mode=mode, name=name, parallel=parallel),
    )


def _spelt(syntax: Syntax, calls: Sequence[Call]) -> str:
    """Write calls as the row says, with every optional line end."""
    texts = []
    for name, arguments in calls:
        body = json.dumps(arguments, ensure_ascii=False)
        if syntax.tags is not None:
            tags = syntax.tags
            body = "".join(
                tags.key_open + key + tags.key_close + str(value) + tags.value_close
                for key, value in arguments.items()
            )
        texts.append(syntax.head + name + syntax.middle + body + syntax.tail)
    between = syntax.between
    if syntax.repeats:
        between = syntax.closes + syntax.between + syntax.opens + syntax.begins
    text = syntax.opens + syntax.begins + between.join(texts) + syntax.closes
    return text.replace("¶", "\n").replace("№", "0")


def _read(
    syntax: Syntax | None, text: str, sizes: random.Random | None = None, tools: Sequence[Tool] = ()
) -> list[str | ToolCall]:
    """Feed text in pieces and join neighbouring strings of what comes out."""
    reader = ToolCallReader(syntax, tools, "request", 0)
    out: list[str | ToolCall] = []
    while text:
        size = sizes.randrange(1, 6) if sizes else len(text)
        _join(out, reader.feed(text[:size]))
        text = text[size:]
    _join(out, reader.finish())
    return out


def _join(out: list[str | ToolCall], pieces: Iterable[str | ToolCall]) -> None:
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    return Model(path, gpu_layers=0, on_progress=lambda _ratio: None)


@pytest.fixture(scope="module")
def drawing(model: Model) -> Drawing:
    return Drawing(model)


@pytest.fixture(scope="module")
def compiler(drawing: Drawing) -> ConstraintCompiler:
    return drawing.compiler


def _follow(
    compiler: ConstraintCompiler, model: Model, constraint: Constraint | None, text: str | list[int]
) -> bool | None:
    """Write a text byte by byte, or tokens; None: it was not allowed. Else: may it end there?"""
    assert constraint is not None
    matcher = compiler.start(constraint)
    pieces = model.vocabulary.pieces
    tokens = text if isinstance(text, list) else [pieces.index(bytes([b])) for b in text.encode()]
    for token_id in tokens:
        if not matcher.allows(token_id):
            return None
        matcher.accept(token_id)
    return matcher.is_complete or matcher.allows(model.vocabulary.end_ids[0])


def _tokens(model: Model, text: str) -> list[int]:
    """Take the longest token each time."""
    data, tokens = text.encode(), []
    pieces = {piece: token_id for token_id, piece in enumerate(model.vocabulary.pieces)}
    while data:
        size = next(size for size in range(min(len(data), 16), 0, -1) if data[:size] in pieces)
        tokens.append(pieces[data[:size]])
        data = data[size:]
    return tokens


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [pytest.param(row, id=row.name) for row in SYNTAXES])
def test_what_a_grammar_demands_is_what_the_reader_reads(
    syntax: Syntax, compiler: ConstraintCompiler, model: Model
) -> None:
    calls = ARGUMENTS[:1] if syntax.at_start else ARGUMENTS
    text = _spelt(syntax, calls)
    demanded = constraint_of(_chat(REQUIRED, WEATHER, OTHER), syntax, None, {})
    assert _follow(compiler, model, demanded, text) is True
    one_call = constraint_of(_chat(REQUIRED, WEATHER, parallel=False), syntax, None, {})
    assert _follow(compiler, model, one_call, _spelt(syntax, calls[:1])) is True
    assert _follow(compiler, model, demanded, "Well: " + text) is None
    for seed in range(5):
        read = _read(syntax, text, random.Random(seed), [WEATHER, OTHER])
        assert [(c.name, json.loads(c.arguments)) for c in read if isinstance(c, ToolCall)] == calls
        assert not any(isinstance(piece, str) and piece.strip() for piece in read)


@pytest.mark.parametrize("syntax", [pytest.param(row, id=row.name) for row in SYNTAXES])
def test_an_opened_call_is_held_to_its_schema_and_free_text_is_free(
    syntax: Syntax, compiler: ConstraintCompiler, model: Model
) -> None:
    auto = constraint_of(_chat(AUTO, WEATHER), syntax, None, {})
    assert _follow(compiler, model, auto, 'Nothing to call. {"name": 1} <tool') is True
    text = _spelt(syntax, ARGUMENTS[:1])
    before = "" if syntax.at_start else "I call:\n"
    assert _follow(compiler, model, auto, before + text) is True
    assert _follow(compiler, model, auto, before + text.replace("days", "dayz")) is None
    assert _follow(compiler, model, auto, before + text.replace("2", "two")) is None


@pytest.mark.parametrize("syntax", [pytest.param(row, id=row.name) for row in SYNTAXES])
@pytest.mark.parametrize("control", [None, b"<|im_start|>"])
def test_every_demanded_call_that_is_drawn_is_read_and_valid(
    syntax: Syntax, drawing: Drawing, control: bytes | None
) -> None:
    controls = {syntax.opens: drawing.words.spelt.index(control)} if control else {}
    constraint = constraint_of(
        _chat(REQUIRED, COUNT, OTHER, parallel=False), syntax, None, controls
    )
    assert constraint is not None
    calls: list[ToolCall] = []
    for seed in range(12):
        text = drawing.text(constraint, seed)
        if text is not None:
            read = _read(syntax, text.replace("<|im_start|>", syntax.opens), None, [COUNT, OTHER])
            assert all(isinstance(piece, ToolCall) for piece in read), text
            calls += (piece for piece in read if isinstance(piece, ToolCall))
    assert len(calls) >= 4
    for call in calls:
        schema = COUNTS if call.name == COUNT.name else json.loads(OTHER.parameters)
        assert is_valid(json.loads(call.arguments), schema), call


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }}<tool_call>", "hermes"),
        ("{{ tools }}<tool_call><function=x><parameter=y>", "qwen_coder"),
        ("{{ tools }}<tool_call>{{ name }}<arg_key></arg_key><arg_value>", "glm"),
        ('{{ tools }}{"name": function name, "parameters": dictionary}', "llama3_json"),
        ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]", "mistral"),
        ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]f[ARGS]", "mistral_args"),
        ("{{ tools }}<function=f>{}</function>", "functionary_v31"),
        ("{{ tools }}<|tool_call|>", "granite_3"),
        ("{{ messages }}<tool_call>", ""),
        ("{{ tools }}<some_call>", ""),
        ("{{ messages }}", ""),
    ],
)
def test_the_syntax_is_seen_in_the_template(template: str, name: str) -> None:
    assert syntax_of(template) == name


# --- what is demanded ---------------------------------------------------------------------------


def test_control_tokens_are_named_by_their_ids_and_shown(
    compiler: ConstraintCompiler, model: Model
) -> None:
    words = model.vocabulary
    opens, other = (words.spelt.index(text) for text in (b"<|im_start|>", b"<s>"))
    pieces = [words.pieces.index(bytes([b])) for b in _spelt(HERMES, ARGUMENTS[1:]).encode()]
    pieces[: len("<tool_call>")] = [opens]
    control = {"<tool_call>": opens, "<s>": other}
    for mode in (REQUIRED, AUTO):
        made = constraint_of(_chat(mode, WEATHER), HERMES, None, control)
        assert made is not None
        assert made.shown_ids == (opens,)
    demanded = constraint_of(_chat(REQUIRED, WEATHER), HERMES, None, control)
    assert _follow(compiler, model, demanded, pieces) is True
    assert _follow(compiler, model, demanded, _spelt(HERMES, ARGUMENTS[1:])) is None


def test_a_named_tool_is_the_only_one(compiler: ConstraintCompiler, model: Model) -> None:
    prompt = _chat(ToolChoiceMode.NAMED, WEATHER, OTHER, name="other-tool")
    demanded = constraint_of(prompt, HERMES, None, {})
    assert _follow(compiler, model, demanded, _spelt(HERMES, [("other-tool", {})])) is True
    assert _follow(compiler, model, demanded, _spelt(HERMES, ARGUMENTS[:1])) is None


@pytest.mark.parametrize("mode", [REQUIRED, AUTO])
def test_one_call_is_all_if_they_may_not_be_parallel(
    compiler: ConstraintCompiler, model: Model, mode: ToolChoiceMode
) -> None:
    prompt = _chat(mode, WEATHER, parallel=False)
    made = constraint_of(prompt, HERMES, None, {})
    assert _follow(compiler, model, made, _spelt(HERMES, ARGUMENTS[:1])) is True
    assert _follow(compiler, model, made, _spelt(HERMES, ARGUMENTS)) is None


def test_an_answer_with_a_schema_is_the_other_way_beside_a_call(
    compiler: ConstraintCompiler, model: Model
) -> None:
    asked = Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"enum": ["yes", "no"]}')
    made = constraint_of(_chat(AUTO, WEATHER), HERMES, asked, {})
    assert _follow(compiler, model, made, '"yes"') is True
    assert _follow(compiler, model, made, _spelt(HERMES, ARGUMENTS[:1])) is True
    assert _follow(compiler, model, made, "Well") is None
    regex = Constraint(kind=ConstraintKind.REGEX, text="a")
    with pytest.raises(InvalidRequest, match="JSON or to a schema only"):
        constraint_of(_chat(AUTO, WEATHER), HERMES, regex, {})
    with pytest.raises(InvalidRequest, match="can't demand a call"):
        constraint_of(_chat(REQUIRED, WEATHER), HERMES, asked, {})


def test_without_an_offer_only_what_was_asked_holds() -> None:
    asked = Constraint(kind=ConstraintKind.REGEX, text="a")
    assert constraint_of(_chat(AUTO), None, asked, {}) == asked
    assert constraint_of(_chat(ToolChoiceMode.NONE, WEATHER), HERMES, asked, {}) == asked
    assert constraint_of(_chat(ToolChoiceMode.NONE, WEATHER), HERMES, None, {}) is None


@pytest.mark.parametrize("name", ["", "no"])
def test_a_demanded_tool_must_be_there(name: str) -> None:
    prompt = _chat(
        ToolChoiceMode.NAMED if name else REQUIRED, *([WEATHER] if name else []), name=name
    )
    with pytest.raises(InvalidRequest) as error:
        constraint_of(prompt, HERMES, None, {})
    assert error.value.field == "tool_choice"


def test_a_tool_whose_schema_can_not_be_honoured_is_refused() -> None:
    wrong = Tool(name="f", parameters='{"properties": {"a": {"not": {}}}}')
    for mode in (AUTO, REQUIRED):
        made = constraint_of(_chat(mode, wrong), HERMES, None, {})
        assert made is not None
        with pytest.raises(SchemaUnsupported, match="not") as caught:
            constrain.check(made)
        assert caught.value.field == "tools"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"anyOf": [{"required": ["a"]}]}, "anyOf"),
        ({"type": "array"}, "type"),
        ({"required": ["a"]}, "required"),
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "pattern"),
        ({"properties": {"a>b": {}}}, "properties"),
        ({"properties": {"a": True}}, "properties"),
    ],
)
def test_what_tagged_arguments_can_not_be_held_to_is_refused(
    schema: dict[str, object], reason: str
) -> None:
    tool = Tool(name="f", parameters=json.dumps(schema))
    with pytest.raises(SchemaUnsupported) as caught:
        constraint_of(_chat(REQUIRED, tool), find("qwen_coder"), None, {})
    assert reason in str(caught.value.fields["reason"])


def test_tagged_arguments_keep_their_types(compiler: ConstraintCompiler, model: Model) -> None:
    members = {
        "text": {"type": "string"},
        "word": {"enum": ["1", "two"]},
        "number": {"$ref": "#/$defs/n"},
        "list": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
    }
    schema = {"properties": members, "required": ["text"], "$defs": {"n": {"type": "number"}}}
    tool = Tool(name="f", parameters=json.dumps(schema))
    syntax = find("qwen_coder")
    values = {"text": '3\n"', "word": "1", "number": "2.5", "list": '["a"]'}
    text = _spelt(syntax, [("f", dict(values))])
    demanded = constraint_of(_chat(REQUIRED, tool), syntax, None, {})
    assert _follow(compiler, model, demanded, text) is True
    (call,) = _read(syntax, text, tools=[tool])
    assert isinstance(call, ToolCall)
    read = json.loads(call.arguments)
    assert read == {"text": '3\n"', "word": "1", "number": 2.5, "list": ["a"]}


def test_the_token_that_ends_a_trigger_may_bring_more(
    compiler: ConstraintCompiler, model: Model
) -> None:
    llama = find("llama3_json")
    auto = constraint_of(_chat(AUTO, WEATHER), llama, None, {})
    assert auto is not None
    text = _spelt(llama, ARGUMENTS[:1])
    tokens = _tokens(model, text)
    assert len(tokens) < len(text)
    assert _follow(compiler, model, auto, tokens) is True
    # A name of no tool is no trigger: it is an answer in JSON.
    assert _follow(compiler, model, auto, '{"name": "Ann", "age": 3}') is True


# --- reading ------------------------------------------------------------------------------------

TWO_CALLS = (
    'Sure. <tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>\n'
    '<tool_call>{"name": "g", "arguments": {}}</tool_call>\n'
)


@pytest.mark.parametrize("seed", range(20))
def test_calls_are_read_the_same_however_the_text_is_cut(seed: int) -> None:
    whole = _read(HERMES, TWO_CALLS)
    assert _read(HERMES, TWO_CALLS, random.Random(seed)) == whole
    assert whole[0] == "Sure."
    calls = [piece for piece in whole if isinstance(piece, ToolCall)]
    assert [call.name for call in calls] == ["f", "g"]
    assert json.loads(calls[0].arguments) == {"a": "</tool_call>"}


def test_ids_of_calls_derive_from_the_request() -> None:
    first, second = (p.id for p in _read(HERMES, TWO_CALLS) if isinstance(p, ToolCall))
    assert first != second
    assert first.startswith("call_")
    assert len(first) == len("call_") + 24
    assert [p.id for p in _read(HERMES, TWO_CALLS) if isinstance(p, ToolCall)] == [first, second]


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
        "<tool_call>{bad}</tool_call> more",
        "<tool_call>never closed",
        '<tool_call>{"name": "f", "argum',
        "text that ends in space \n",
    ],
)
def test_what_is_not_a_call_stays_text(text: str) -> None:
    assert _read(HERMES, text) == [text]
    assert _read(HERMES, text, random.Random(1)) == [text]


@pytest.mark.parametrize("syntax", [pytest.param(row, id=row.name) for row in SYNTAXES])
def test_a_broken_call_is_never_lost(syntax: Syntax) -> None:
    text = _spelt(syntax, [("get_weather", {"city": "Paris"})])
    for size in range(len(syntax.opens) + 3, len(text) - 1, 7):
        read = _read(syntax, text[:size], random.Random(size), [WEATHER])
        if not any(isinstance(piece, ToolCall) for piece in read):
            assert read == [text[:size]]


def test_a_call_of_no_tool_is_text() -> None:
    text = _spelt(HERMES, [("nobody", {})])
    assert _read(HERMES, text, tools=[WEATHER]) == [text]


def test_a_call_whose_end_is_missing_is_read_at_the_end() -> None:
    (call,) = _read(HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}}')
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments) == {"a": 1}


def test_an_answer_in_json_is_no_call() -> None:
    llama = find("llama3_json")
    for text in ('{"name": "Ann", "age": 3}', 'As JSON: {"name": "get_weather"}'):
        assert _read(llama, text, random.Random(2), [WEATHER]) == [text]


def test_without_a_syntax_everything_is_text() -> None:
    reader = ToolCallReader(None)
    assert reader.feed(TWO_CALLS) == [TWO_CALLS]
    assert reader.finish() == []


def test_every_row_has_a_name_of_its_own_and_tags_where_it_needs_them() -> None:
    assert len({row.name for row in SYNTAXES}) == len(SYNTAXES)
    assert all((row.tags is not None) is (row.form is Form.TAGGED) for row in SYNTAXES)
