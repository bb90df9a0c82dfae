"""Read the parts of a chat body that are more than a number: messages and tools.

What this room does: messages with text parts, tools and tool_choice, as values of the domain; a
clear refusal of images, audio, files and custom tools.
What it knows: `openai_shapes`.
What it never does: render a template, or check a schema (the text process does both).
"""

from __future__ import annotations

from appliance.api.openai_formats import json_text
from appliance.api.openai_shapes import ChatBody, MessageBody, ToolCallPart
from appliance.api.turns import check_message, check_tool_name
from appliance.domain import (
    Message,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from appliance.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHOWN_CHARS = 64
_WORDS = {
    "auto": ToolChoiceMode.AUTO,
    "none": ToolChoiceMode.NONE,
    "required": ToolChoiceMode.REQUIRED,
}


def messages_of(chat: ChatBody) -> tuple[Message, ...]:
    """Read the turns; a message says what is missing in it by its index."""
    return tuple(
        _message(f"messages[{index}]", message) for index, message in enumerate(chat.messages)
    )


def tools_of(chat: ChatBody) -> tuple[Tool, ...]:
    """Read the tools; their schemas are always held to, whether `strict` is given or not."""
    tools: list[Tool] = []
    for index, body in enumerate(chat.tools or ()):
        field = f"tools[{index}]"
        if body.type != "function" or body.function is None:
            raise InvalidRequest(field=field, reason="only tools of type 'function' are served")
        function = body.function
        check_tool_name(f"{field}.function.name", function.name, tools)
        tools.append(
            Tool(
                name=function.name,
                description=function.description or "",
                parameters=json_text({} if function.parameters is None else function.parameters),
            )
        )
    return tuple(tools)


def tool_choice_of(chat: ChatBody, tools: tuple[Tool, ...]) -> ToolChoice:
    """Read a word or a named function; it must be among the tools."""
    given = chat.tool_choice
    parallel = chat.parallel_tool_calls is not False
    if given is None:
        return ToolChoice(parallel=parallel)
    if isinstance(given, str):
        mode = _WORDS.get(given)
        if mode is None:
            raise InvalidRequest(
                field="tool_choice", reason="must be 'auto', 'none', 'required' or a function"
            )
        if mode is ToolChoiceMode.REQUIRED and not tools:
            raise InvalidRequest(field="tool_choice", reason="is 'required' and there are no tools")
        return ToolChoice(mode=mode, parallel=parallel)
    if given.type != "function" or given.function is None:
        raise InvalidRequest(
            field="tool_choice", reason="only a choice of type 'function' is served"
        )
    name = given.function.name
    if all(tool.name != name for tool in tools):
        raise InvalidRequest(
            field="tool_choice", reason=f"'{name[:_SHOWN_CHARS]}' is not among the tools"
        )
    return ToolChoice(mode=ToolChoiceMode.NAMED, name=name, parallel=parallel)


def _message(field: str, body: MessageBody) -> Message:
    if body.role == "function":
        raise InvalidRequest(field=f"{field}.role", reason="'function' is deprecated; use 'tool'")
    if body.role not in ROLES:
        raise InvalidRequest(field=f"{field}.role", reason=f"must be one of {', '.join(ROLES)}")
    if body.function_call is not None:
        raise InvalidRequest(field=f"{field}.function_call", reason="use 'tool_calls'")
    if body.audio is not None:
        raise InvalidRequest(field=f"{field}.audio", reason="audio is not served here")
    calls = tuple(
        _tool_call(f"{field}.tool_calls[{index}]", call)
        for index, call in enumerate(body.tool_calls or ())
    )
    message = Message(
        role=body.role,
        content=_content(field, body, needed=not calls),
        name=body.name or "",
        tool_calls=calls,
        tool_call_id=body.tool_call_id or "",
    )
    check_message(field, message)
    return message


def _content(field: str, body: MessageBody, *, needed: bool) -> str:
    content = body.content if body.content is not None else body.refusal
    if content is None:
        if needed:
            raise InvalidRequest(field=f"{field}.content", reason="is missing")
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if text is None:
            raise InvalidRequest(
                field=f"{field}.content[{index}]",
                reason=f"a part of type '{part.type[:_SHOWN_CHARS]}' is not served; "
                "this appliance reads text",
            )
        texts.append(text)
    return "\n".join(texts)


def _tool_call(field: str, call: ToolCallPart) -> ToolCall:
    if call.type != "function" or call.function is None:
        raise InvalidRequest(field=field, reason="only calls of type 'function' are served")
    return ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
