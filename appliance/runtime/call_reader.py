"""Read tool calls out of what a model writes, while it writes.

What this room does: text that can't be the beginning of a call goes on at once; each whole call
comes out as one; whitespace beside a call is dropped.
What it knows: the rows of `tool_syntax`, and the tools that were offered (what a tagged argument
stands for is said by its schema).
What it never does: lose text. What is opened as a call and is none is passed on as text.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.domain import Tool, ToolCall
from appliance.runtime.tool_syntax import NUMBER, OPTIONAL_NEWLINE, Form, Syntax

Json: TypeAlias = Any

_CALL_CHARS_MAX = 1024 * 1024
_SPACE = " \t\r\n"
_BETWEEN_OBJECTS = _SPACE + "[,"
_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_DECODER = json.JSONDecoder()


class _Incomplete(Exception):
    """More text is needed to tell."""


class _NoCall(Exception):
    """It is no call, whatever follows."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A call, and where the text goes on behind it."""

    name: str
    arguments: str
    end: int


class ToolCallReader:
    """Read the tool calls of one choice."""

    def __init__(
        self,
        syntax: Syntax | None,
        tools: Sequence[Tool] = (),
        request_id: str = "",
        choice: int = 0,
    ) -> None:
        """Read this syntax; None: everything is text. Ids of calls derive from the last two.

        Without a request_id one is drawn, so that ids differ between readers.
        """
        self._syntax = syntax
        self._members = {tool.name: _members(tool) for tool in tools}
        self._identity = f"{request_id or secrets.token_hex(16)}/{choice}"
        self._buffer = ""
        self._inside = False
        self._opening = ""  # what stands before the buffer if it turns out to be no call
        self._is_blank = True  # nothing but space was passed on so far
        self._calls = 0

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take more text in; return what is certain now, in order."""
        if self._syntax is None:
            return [text] if text else []
        self._buffer += text
        return self._pieces(self._syntax, is_last=False)

    def finish(self) -> list[str | ToolCall]:
        """Return what was held back; call once, at the end of the choice."""
        if self._syntax is None:
            return []
        pieces = self._pieces(self._syntax, is_last=True)
        rest = self._opening + self._buffer
        self._buffer = self._opening = ""
        if rest and not (self._calls and not rest.strip()):
            pieces.append(rest)
        return pieces

    def _pieces(self, syntax: Syntax, *, is_last: bool) -> list[str | ToolCall]:
        pieces: list[str | ToolCall] = []
        try:
            while self._buffer:
                if self._inside:
                    self._step_inside(syntax, pieces, is_last=is_last)
                else:
                    self._step_outside(syntax, pieces)
        except _Incomplete:
            pass
        return pieces

    def _step_outside(self, syntax: Syntax, pieces: list[str | ToolCall]) -> None:
        """Pass text on up to what opens a call."""
        at = self._buffer.find(syntax.opens)
        if at >= 0 and syntax.at_start and not (self._is_blank and not self._buffer[:at].strip()):
            at = -1
        if at >= 0:
            before = self._buffer[:at].rstrip()
            self._pass_on(before.lstrip() if self._calls else before, pieces)
            self._opening = self._buffer[at : at + len(syntax.opens)]
            self._buffer = syntax.kept + self._buffer[at + len(syntax.opens) :]
            self._inside = True
            return
        may_open = self._is_blank or not syntax.at_start
        sure = len(self._buffer) - (_overlap(self._buffer, syntax.opens) if may_open else 0)
        sure = len(self._buffer[:sure].rstrip())
        if sure == 0:
            raise _Incomplete
        text, self._buffer = self._buffer[:sure], self._buffer[sure:]
        self._pass_on(text, pieces)

    def _step_inside(self, syntax: Syntax, pieces: list[str | ToolCall], *, is_last: bool) -> None:
        """Take the next call, or leave the section of calls."""
        try:
            read = self._look(syntax)
        except _Incomplete:
            if is_last:
                self._give_up(syntax, pieces)
            raise
        except _NoCall:
            self._give_up(syntax, pieces)
            return
        if read is None:
            return
        digest = hashlib.sha256(f"{self._identity}/{self._calls}".encode()).hexdigest()
        self._calls += 1
        pieces.append(ToolCall(id=f"call_{digest[:24]}", name=read.name, arguments=read.arguments))
        self._go_on(read.end, inside=bool(syntax.closes))

    def _look(self, syntax: Syntax) -> _Read | None:
        """Read a call; None: what stands there closes one, and was skipped."""
        text = self._buffer
        if len(text) > _CALL_CHARS_MAX:
            raise _NoCall
        skipped = _BETWEEN_OBJECTS if syntax.form is Form.OBJECTS else _SPACE
        begin = len(text) - len(text.lstrip(skipped))
        closes = syntax.spelt(syntax.closes)
        tail = syntax.spelt(syntax.tail) if syntax.form is Form.NAMED else ""
        for mark in filter(None, (tail, closes)):
            if text.startswith(mark, begin):
                self._go_on(begin + len(mark), inside=mark is tail)
                return None
            if mark.startswith(text[begin:]):
                raise _Incomplete  # of what closes, or nothing is there yet
        read = _READ[syntax.form](syntax, text, begin, self._members)
        if self._members and read.name not in self._members:
            raise _NoCall
        return read

    def _go_on(self, end: int, *, inside: bool) -> None:
        self._buffer = self._buffer[end:]
        self._opening = ""
        self._inside = inside

    def _give_up(self, syntax: Syntax, pieces: list[str | ToolCall]) -> None:
        """Pass on as text what was opened as a call and is none."""
        kept = len(syntax.kept) if self._opening else 0
        text = self._opening + self._buffer[kept:]
        if text.strip() or not self._calls:
            self._pass_on(text, pieces)
        self._buffer = self._opening = ""
        self._inside = False

    def _pass_on(self, text: str, pieces: list[str | ToolCall]) -> None:
        if text:
            pieces.append(text)
            self._is_blank = self._is_blank and not text.strip()


# --- one call -----------------------------------------------------------------------------------


def _read_object(
    _syntax: Syntax, text: str, at: int, _members: Mapping[str, Mapping[str, Json]]
) -> _Read:
    """Read a JSON object that holds the name and the arguments."""
    value, end = _json(text, at)
    name = next((value[key] for key in _NAMES if key in value), None)
    arguments: Json = next((value[key] for key in _ARGUMENTS if key in value), {})
    if not isinstance(name, str):
        raise _NoCall
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return _Read(name, arguments, end)


def _read_named(
    syntax: Syntax, text: str, at: int, _members: Mapping[str, Mapping[str, Json]]
) -> _Read:
    """Read a name and the arguments as a JSON object behind it."""
    name, at = _name(syntax, text, at)
    value, end = _json(text, len(text) - len(text[at:].lstrip(_SPACE)))
    return _Read(name, json.dumps(value, ensure_ascii=False), end)


def _read_tagged(
    syntax: Syntax, text: str, at: int, members: Mapping[str, Mapping[str, Json]]
) -> _Read:
    """Read a name and each argument between its tags."""
    assert syntax.tags is not None
    key_open = syntax.spelt(syntax.tags.key_open)
    key_close, *rest = map(syntax.spelt, syntax.tags.key_close.split(OPTIONAL_NEWLINE))
    value_close = syntax.spelt(syntax.tags.value_close)
    name, at = _name(syntax, text, at)
    schemas = members.get(name, {})
    values: dict[str, Json] = {}
    while True:
        at = len(text) - len(text[at:].lstrip(_SPACE))
        if not text.startswith(key_open, at):
            if key_open.startswith(text[at:]):
                raise _Incomplete
            break
        key, at = _up_to(text, at + len(key_open), key_close)
        for mark in rest:
            at = _past(text, at, mark)
        value, at = _up_to(text, at, value_close)
        values[key.strip()] = _value(_unwrapped(value), schemas.get(key.strip()))
    tail = syntax.spelt(syntax.tail)
    end = _past(text, at, tail)
    return _Read(name, json.dumps(values, ensure_ascii=False), end)


_READ = {Form.OBJECTS: _read_object, Form.NAMED: _read_named, Form.TAGGED: _read_tagged}


def _name(syntax: Syntax, text: str, at: int) -> tuple[str, int]:
    """Read a name between `head` and `middle`; where `middle` is space, it ends at no letter."""
    at = _past(text, at, syntax.spelt(syntax.head))
    match = re.compile(r"\s*" + syntax.name_form).match(text, at)
    if match is None:
        if text[at:].strip():
            raise _NoCall
        raise _Incomplete
    if match.end() == len(text):
        raise _Incomplete
    end = match.end()
    middle = syntax.middle.split(NUMBER)
    if len(middle) > 1:  # a number that is counted stands between
        end = _past(text, end, syntax.spelt(middle[0]))
        while end < len(text) and text[end].isdigit():
            end += 1
    return match.group(1), _past(text, end, syntax.spelt(middle[-1]))


def _json(text: str, at: int) -> tuple[dict[str, Json], int]:
    """Read one JSON object; what is broken off may be mended by more."""
    if at >= len(text):
        raise _Incomplete
    if text[at] != "{":
        raise _NoCall
    if "}" not in text[at:]:
        raise _Incomplete
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        if error.msg.startswith(("Unterminated string", "Invalid \\")):
            raise _Incomplete from error
        if error.pos >= len(text.rstrip()) - len("false"):  # a word may be broken off too
            raise _Incomplete from error
        raise _NoCall from error
    except RecursionError as error:
        raise _NoCall from error
    return value, end


def _past(text: str, at: int, mark: str) -> int:
    """Go on behind a mark and the space before it."""
    begin = len(text) - len(text[at:].lstrip(_SPACE)) if mark else at
    if text.startswith(mark, begin):
        return begin + len(mark)
    raise _Incomplete if mark.startswith(text[begin:]) else _NoCall


def _up_to(text: str, at: int, mark: str) -> tuple[str, int]:
    end = text.find(mark, at)
    if end < 0:
        raise _Incomplete
    return text[at:end], end + len(mark)


def _unwrapped(value: str) -> str:
    """Drop the one line end on each side that belongs to the tags."""
    return value.removeprefix("\n").removesuffix("\n")


def _value(text: str, schema: Json) -> Json:
    """Read a tagged value: a text if its schema says so, else JSON if it is JSON."""
    if isinstance(schema, dict):
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return text
        if values is None and schema.get("type") == "string":
            return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _members(tool: Tool) -> Mapping[str, Json]:
    try:
        schema = json.loads(tool.parameters or "{}")
    except (ValueError, RecursionError):
        return {}
    members = schema.get("properties") if isinstance(schema, dict) else None
    return members if isinstance(members, dict) else {}


def _overlap(text: str, mark: str) -> int:
    """Count the characters at the end of `text` that begin `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0
