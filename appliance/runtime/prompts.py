"""Bound a prompt before it crosses to the text process. Pure.

What this room does: counts what a prompt holds, whatever its kind.
What it knows: the kinds of prompts.
What it never does: look at what a text says.
"""

from __future__ import annotations

from appliance.domain import ChatPrompt, InfillPrompt, Prompt, RankPrompt, TextPrompt
from appliance.errors import InvalidRequest


def check_bytes(prompt: Prompt | RankPrompt, bytes_max: int) -> None:
    """Refuse a prompt whose text alone is over the bound; a character has one byte at least.

    Raises:
        InvalidRequest: it is.
    """
    if isinstance(prompt, TextPrompt):
        size = len(prompt.text)
    elif isinstance(prompt, InfillPrompt):
        size = len(prompt.prefix) + len(prompt.suffix)
        size += sum(len(file.text) + len(file.name) for file in prompt.files)
    elif isinstance(prompt, RankPrompt):
        size = len(prompt.query) + len(prompt.document)
    elif isinstance(prompt, ChatPrompt):
        size = sum(
            len(m.content) + sum(len(call.arguments) for call in m.tool_calls)
            for m in prompt.messages
        ) + sum(len(tool.description) + len(tool.parameters) for tool in prompt.tools)
    else:
        size = len(prompt.token_ids)
    if size > bytes_max:
        raise InvalidRequest(field="prompt", reason=f"is larger than {bytes_max} bytes")
