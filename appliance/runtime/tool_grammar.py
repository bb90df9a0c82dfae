"""Write the grammar of the tool calls a request may or must make, in the model's own syntax.

What this room does: tool_choice, the tools' schemas and a syntax become one constraint: calls are
demanded, or (auto) held to the schemas from the moment one has been opened, or are the alternative
to an answer that has a schema of its own.
What it knows: llguidance's Lark; `tool_syntax`; which of a vocabulary's tokens are control tokens,
which no text spells: a grammar names them by their ids, and the reader of calls is shown them.
What it never does: leave a schema's part out: what the syntax can't hold is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from appliance.domain import ChatPrompt, Constraint, ConstraintKind, Tool, Trigger
from appliance.domain import ToolChoiceMode as Mode
from appliance.errors import InvalidRequest, SchemaUnsupported
from appliance.runtime.constrain import inline
from appliance.runtime.tool_syntax import NUMBER, OPTIONAL_NEWLINE, Form, Syntax, Tags

Json: TypeAlias = Any

FIELD = "tools"
_MEMBER = re.compile(r"[\w.-]+")
_PIECES = re.compile(f"([{OPTIONAL_NEWLINE}{NUMBER}])")
_ANNOTATIONS = frozenset({"type", "description", "title", "default", "examples", "enum", "const"})
_SHARED = ("$defs", "definitions")
# What an object's schema may say where its members are tagged, each on its own.
_TAGGED = frozenset({"type", "properties", "required", "additionalProperties", *_SHARED}) | (
    frozenset({"description", "title", "$schema", "$id", "default", "examples"})
)


def constraint_of(
    prompt: ChatPrompt,
    syntax: Syntax | None,
    asked: Constraint | None,
    control: Mapping[str, int],
) -> Constraint | None:
    """Make the constraint of a chat: of its tools, of the format it asked for, or of both.

    Args:
        prompt: its tools are offered in this syntax; None only if there are none to offer.
        syntax: as `tool_syntax` found it in the template.
        asked: what the client demands of the answer.
        control: the texts and ids of the control tokens.

    Raises:
        InvalidRequest: the named tool is not there, or a format stands beside tools that can't.
        SchemaUnsupported: a schema can't be honoured, or not in this syntax.
    """
    mode = prompt.tool_choice.mode
    tools = _offered(prompt)
    if not tools or syntax is None:
        return asked
    demanded = mode in (Mode.REQUIRED, Mode.NAMED)
    if demanded and asked is not None:
        raise InvalidRequest(
            field="tool_choice", reason="can't demand a call while the output is constrained"
        )
    grammar = _Grammar(syntax, control, parallel=prompt.tool_choice.parallel)
    if asked is not None:
        return grammar.calls_or(_schema_of(asked), tools)
    return grammar.calls(tools) if demanded else grammar.calls_once_opened(tools)


def schema_of(tool: Tool) -> dict[str, Json]:
    """Read the schema of a tool's arguments.

    Raises:
        InvalidRequest: it is not a JSON object.
    """
    try:
        schema = json.loads(tool.parameters or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field=FIELD, reason="holds what is not JSON") from error
    if not isinstance(schema, dict):
        raise InvalidRequest(field=FIELD, reason="parameters must be a JSON object")
    return schema


def _offered(prompt: ChatPrompt) -> Sequence[Tool]:
    mode, name = prompt.tool_choice.mode, prompt.tool_choice.name
    if mode is Mode.NONE:
        return ()
    tools = [tool for tool in prompt.tools if mode is not Mode.NAMED or tool.name == name]
    if not tools and mode in (Mode.REQUIRED, Mode.NAMED):
        reason = "demands a call, but there are no tools"
        if mode is Mode.NAMED:
            reason = f"names the tool '{name}', which is not among the tools"
        raise InvalidRequest(field="tool_choice", reason=reason)
    return tools


def _schema_of(asked: Constraint) -> str:
    if asked.kind is ConstraintKind.JSON_OBJECT:
        return '{"type": "object"}'
    if asked.kind is ConstraintKind.JSON_SCHEMA:
        return asked.text
    raise InvalidRequest(
        field="tools", reason="beside tools, an answer can be held to JSON or to a schema only"
    )


class _Grammar:
    """The rules of one constraint."""

    def __init__(self, syntax: Syntax, control: Mapping[str, int], *, parallel: bool) -> None:
        self._syntax = syntax
        self._control = control
        self._parallel = parallel
        self._rules: list[str] = []
        self._shown: set[int] = set()
        texts = sorted(control, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def calls(self, tools: Sequence[Tool]) -> Constraint:
        """Demand calls: one, or more if they may be parallel."""
        self._rules.insert(0, f"start: {self._literal(self._syntax.opens)} opened")
        return self._made(tools)

    def calls_once_opened(self, tools: Sequence[Tool]) -> Constraint:
        """Let the model write what it likes until it opens a call, and hold it to calls then."""
        syntax = self._syntax
        self._rules.insert(0, "start: opened")
        self._literal(syntax.opens)
        heads = tuple(tool.name + '"' for tool in tools) if syntax.at_start else ("",)
        trigger = Trigger(opens=syntax.opens, heads=heads, at_start=syntax.at_start)
        return self._made(tools, trigger)

    def calls_or(self, schema: str, tools: Sequence[Tool]) -> Constraint:
        """Demand calls, or else an answer of this schema."""
        self._rules.insert(0, f"start: {self._literal(self._syntax.opens)} opened | answer")
        self._rules.append(f"answer: %json {inline(schema, 'response_format')}")
        return self._made(tools)

    def _made(self, tools: Sequence[Tool], trigger: Trigger | None = None) -> Constraint:
        syntax = self._syntax
        begins, closes = self._literal(syntax.begins), self._literal(syntax.closes)
        between = self._literal(syntax.between)
        more = ""
        if self._parallel and not syntax.at_start:
            opens = self._literal(syntax.opens)
            again = f"{closes} {between} {opens} {begins}" if syntax.repeats else between
            more = f"({again} call)*"
        self._rules.append(f"opened: {begins} call {more} {closes}")
        self._rules.append("call: " + " | ".join(f"call{n}" for n in range(len(tools))))
        for number, tool in enumerate(tools):
            self._call(number, tool)
        return Constraint(
            kind=ConstraintKind.TOOL_CALLS,
            text="\n".join(self._rules),
            trigger=trigger,
            shown_ids=tuple(sorted(self._shown)),
        )

    def _call(self, number: int, tool: Tool) -> None:
        syntax = self._syntax
        schema = {"type": "object", **schema_of(tool)}
        if syntax.form is Form.TAGGED:
            assert syntax.tags is not None
            arguments = self._tagged(f"v{number}", schema, syntax.tags)
        else:
            arguments = f"v{number}"
            self._rules.append(f"v{number}: %json {inline(json.dumps(schema), FIELD)}")
        head = self._literal(syntax.head + tool.name + syntax.middle)
        self._rules.append(f"call{number}: {head} {arguments} {self._literal(syntax.tail)}")

    def _tagged(self, rule: str, schema: dict[str, Json], tags: Tags) -> str:
        """Write each member between its tags, in the schema's order; returns the sequence."""
        for keyword in schema.keys() - _TAGGED:
            self._refuse(keyword)
        members = schema.get("properties", {})
        required = schema.get("required", [])
        if schema["type"] != "object" or not isinstance(members, dict):
            self._refuse("type")
        if not isinstance(required, list) or not set(map(str, required)) <= members.keys():
            self._refuse("required")
        shared = {key: schema[key] for key in _SHARED if key in schema}
        written: list[str] = []
        for number, (name, member) in enumerate(members.items()):
            if not _MEMBER.fullmatch(name):
                self._refuse(f"properties: '{name}'")
            key = self._literal(tags.key_open + name + tags.key_close)
            value = self._value(f"{rule}_{number}", member, shared, tags)
            optional = "" if name in required else "?"
            written.append(f"({key} {value}){optional}")
        return " ".join(written) or '""'

    def _value(self, rule: str, member: Json, shared: dict[str, Json], tags: Tags) -> str:
        close = self._literal(tags.value_close)
        if isinstance(member, dict) and self._is_text(member):
            values = [member["const"]] if "const" in member else member.get("enum")
            if values is not None:
                texts = [self._literal(value) for value in values if isinstance(value, str)]
                return f"({' | '.join(texts)}) {close}"
            if not member.keys() <= _ANNOTATIONS:
                self._refuse(", ".join(sorted(member.keys() - _ANNOTATIONS)))
            return self._text(rule, tags.value_close)
        whole = {**member, **shared} if isinstance(member, dict) else member
        if not isinstance(whole, dict):
            self._refuse("properties")
        self._rules.append(f"{rule}: %json {inline(json.dumps(whole), FIELD)}")
        return f"{rule} {close}"

    def _text(self, rule: str, close: str) -> str:
        """Write a text without quotes: it goes on up to what closes it."""
        if self._controls.search(close):
            self._rules.append(f"{rule}: /(?s:.*)/")
            return f"{rule} {self._literal(close)}"
        suffix, optional, rest = close.partition(OPTIONAL_NEWLINE)
        self._rules.append(f"{rule}[suffix={_quoted(suffix)}]: /(?s:.*)/")
        return f"{rule} {self._literal(optional + rest)}"

    @staticmethod
    def _is_text(member: dict[str, Json]) -> bool:
        values = [member["const"]] if "const" in member else member.get("enum")
        if values is not None:
            return isinstance(values, list) and all(isinstance(value, str) for value in values)
        return bool(member.get("type") == "string")

    def _refuse(self, keyword: str) -> None:
        reason = f"{keyword}: can't be held to where a template has its arguments between tags"
        raise SchemaUnsupported(field=FIELD, reason=reason)

    def _literal(self, text: str) -> str:
        """Write a text of a row: control tokens by their ids, the rest quoted."""
        written: list[str] = []
        for piece in _PIECES.split(text):
            if piece == OPTIONAL_NEWLINE:
                written.append('"\\n"?')
            elif piece == NUMBER:
                written.append("/[0-9]{1,4}/")
            else:
                written += self._with_controls(piece)
        return " ".join(written)

    def _with_controls(self, text: str) -> list[str]:
        written: list[str] = []
        at = 0
        for match in self._controls.finditer(text):
            if match.start() > at:
                written.append(_quoted(text[at : match.start()]))
            token_id = self._control[match.group()]
            self._shown.add(token_id)
            written.append(f"<[{token_id}]>")
            at = match.end()
        if at < len(text):
            written.append(_quoted(text[at:]))
        return written


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
