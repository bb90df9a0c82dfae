"""Turn messages into a prompt by the model's own template.

What this room does: renders a chat template in a sandbox; keeps what clients wrote from being
taken for the template's control tokens.
What it knows: the variables and filters that templates in GGUF files expect.
What it never does: tokenise, or trust a template to end (the process it runs in is killable).

The theory of the guard. A template writes control tokens as text (`<|im_end|>`), and so could a
client, to end its turn and speak as somebody else. So every control token's text in what clients
wrote is replaced by one private-use character before rendering, and after it the prompt is cut at
these characters: they stand for text that is tokenised without control tokens, while everything
between is tokenised together, as the model has seen it in training. The end of a client's string
is guarded too where it could be the beginning of a control token.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeAlias

import jinja2
import jinja2.ext
import jinja2.sandbox

from appliance.domain import ChatPrompt, Message, Tool
from appliance.domain import ToolChoiceMode as Mode
from appliance.errors import InvalidRequest
from appliance.runtime.tool_grammar import schema_of
from appliance.runtime.tool_syntax import syntax_of

TEMPLATE_CHARS_MAX = 1024 * 1024
_REASON_CHARS_MAX = 500
_PRIVATE_FIRST, _PRIVATE_LAST = 0xF0000, 0x10FFFD
_PRIVATE = f"[{chr(_PRIVATE_FIRST)}-{chr(_PRIVATE_LAST)}]"

Json: TypeAlias = Any  # what json.loads gives; it goes into the template as it is


# --- the guard ----------------------------------------------------------------------------------


class Guard:
    """Keep the texts of one request from being taken for control tokens. Made for one rendering."""

    def __init__(self, control_texts: Iterable[str], field: str = "messages") -> None:
        """Guard against these texts; `field` is what a refusal names."""
        self._field = field
        texts = sorted({text for text in control_texts if text}, key=len, reverse=True)
        heads = "".join(re.escape(char) for char in sorted({text[0] for text in texts}))
        choices = "|".join(re.escape(text) for text in texts)
        # The look-ahead at the first character makes the search fast where there is none.
        control = f"(?=[{heads}])(?:{choices})|" if texts else ""
        self._pattern = re.compile(control + _PRIVATE)
        self._heads = {text[:size] for text in texts for size in range(1, len(text))}
        self._head_chars_max = max((len(text) - 1 for text in texts), default=0)
        self._marks: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def hide(self, value: Json) -> Json:
        """Replace what must be guarded in a text, or in every text of a JSON value."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self._hide_text(key): self.hide(item) for key, item in value.items()}
        return value

    def cut(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Cut a rendered prompt into (text, plain): plain text holds no control tokens."""
        begin = 0
        for match in re.finditer(_PRIVATE, rendered):
            text = self._texts.get(match.group())
            if text is None:
                continue  # the template's own
            if begin < match.start():
                yield rendered[begin : match.start()], False
            yield text, True
            begin = match.end()
        if begin < len(rendered):
            yield rendered[begin:], False

    def _hide_text(self, text: str) -> str:
        tail = ""
        for size in range(min(self._head_chars_max, len(text)), 0, -1):
            if text[-size:] in self._heads:
                text, tail = text[:-size], self._mark(text[-size:])
                break
        return self._pattern.sub(lambda match: self._mark(match.group()), text) + tail

    def _mark(self, text: str) -> str:
        mark = self._marks.get(text)
        if mark is None:
            code = _PRIVATE_FIRST + len(self._marks)
            if code > _PRIVATE_LAST:
                raise InvalidRequest(field=self._field, reason="holds too many private characters")
            mark = self._marks[text] = chr(code)
            self._texts[mark] = text
        return mark


# --- the template -------------------------------------------------------------------------------


def try_template(source: str, output_chars_max: int) -> None:
    """Render the shortest chat with a template. May never end: run it killable.

    Raises:
        InvalidRequest: it is no template, or refuses or fails on one word of a user.
    """
    chat = ChatPrompt(messages=(Message(role="user", content="Hello"),))
    template = Template(source, bos="", eos="", output_chars_max=output_chars_max)
    template.render(chat, Guard(()))


class Template:
    """A compiled chat template."""

    def __init__(self, source: str, *, bos: str, eos: str, output_chars_max: int) -> None:
        """Compile; bos and eos are the texts of those tokens.

        Raises:
            InvalidRequest: the template is too large or not a template: chats can't be served.
        """
        if len(source) > TEMPLATE_CHARS_MAX:
            raise InvalidRequest(field="messages", reason="the model's chat template is too large")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            reason = f"the model's chat template can't be used: {_first_line(error)}"
            raise InvalidRequest(field="messages", reason=reason) from error
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._output_chars_max = output_chars_max
        self._knows_developer = "developer" in source
        self.tool_syntax = syntax_of(source)

    def render(self, prompt: ChatPrompt, guard: Guard) -> str:
        """Render a chat, ready for the assistant's turn. May never end: run it killable.

        Raises:
            InvalidRequest: the chat is not valid, or the template refuses it or fails.
        """
        shown = () if prompt.tool_choice.mode is Mode.NONE else prompt.tools
        if prompt.tools and shown and not self.tool_syntax:
            raise InvalidRequest(
                field="tools", reason="the model's chat template has no syntax of tool calls"
            )
        parts = self._template.generate(
            messages=[self._message(message, guard) for message in prompt.messages],
            tools=[_tool(tool, guard) for tool in shown] or None,
            add_generation_prompt=True,
            **self._tokens,
        )
        rendered: list[str] = []
        size = 0
        try:
            for part in parts:
                size += len(part)
                if size > self._output_chars_max:
                    reason = f"the rendered chat is larger than {self._output_chars_max} characters"
                    raise InvalidRequest(field="messages", reason=reason)
                rendered.append(part)
        except jinja2.TemplateError as error:
            reason = f"the model's chat template refuses it: {_first_line(error)}"
            raise InvalidRequest(field="messages", reason=reason) from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            reason = f"the model's chat template fails: {type(error).__name__}"
            raise InvalidRequest(field="messages", reason=reason) from error
        return "".join(rendered)

    def _message(self, message: Message, guard: Guard) -> dict[str, Json]:
        role = message.role
        if role == "developer" and not self._knows_developer:
            role = "system"
        turn: dict[str, Json] = {"role": role, "content": guard.hide(message.content)}
        if message.name:
            turn["name"] = guard.hide(message.name)
        if message.tool_call_id:
            turn["tool_call_id"] = guard.hide(message.tool_call_id)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": guard.hide(call.id),
                    "type": "function",
                    "function": {
                        "name": guard.hide(call.name),
                        "arguments": guard.hide(_parse(call.arguments, "messages.tool_calls")),
                    },
                }
                for call in message.tool_calls
            ]
        return turn


class _Generation(jinja2.ext.Extension):
    """Read `{% generation %}`, which marks what a model is trained on, as what is inside it."""

    tags = {"generation"}  # noqa: RUF012 - the base says a set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tool(tool: Tool, guard: Guard) -> dict[str, Json]:
    function = {"name": tool.name, "description": tool.description, "parameters": schema_of(tool)}
    return {"type": "function", "function": guard.hide(function)}


def _parse(text: str, field: str) -> Json:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field=field, reason="holds what is not JSON") from error


def _to_json(value: Json, indent: int | None = None, **_options: Json) -> str:
    """Write JSON the way templates expect it: characters as they are, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(layout: str) -> str:
    return dt.datetime.now().astimezone().strftime(layout)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:_REASON_CHARS_MAX]
