"""Hold the rules of a chat's turns and tools, which are the same on both faces.

What this room does: refuses a name that no tool may have, a tool that is there twice, a result
without its call, and a call by anybody but an assistant.
What it knows: OpenAI's rules of names; `field` is how the face calls the place in its own messages.
What it never does: read a face's messages (`openai_chat`, `grpc_convert`), or know a limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.domain import Message, Tool
from appliance.errors import InvalidRequest

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def check_tool_name(field: str, name: str, earlier: Sequence[Tool]) -> None:
    """Check the name of a tool beside those before it.

    Raises:
        InvalidRequest: it is not a name, or is there twice.
    """
    if not name:
        raise InvalidRequest(field=field, reason="is missing")
    if not _TOOL_NAME.fullmatch(name):
        reason = "must be 1 to 64 letters, digits, dots, dashes or underscores"
        raise InvalidRequest(field=field, reason=reason)
    if any(tool.name == name for tool in earlier):
        raise InvalidRequest(field=field, reason=f"'{name}' is there twice")


def check_message(field: str, message: Message) -> None:
    """Check that a turn has what its role needs and nothing else.

    Raises:
        InvalidRequest: a result without its call, or a call by anybody but an assistant.
    """
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidRequest(field=f"{field}.tool_call_id", reason="is missing")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(field=f"{field}.tool_calls", reason="only an assistant calls tools")
