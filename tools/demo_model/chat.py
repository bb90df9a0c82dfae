"""Render chats exactly as the served model's own template does.

What this room does: one Jinja environment set up as the appliance sets up its own.
What it knows: `template.jinja`, which goes into the GGUF unchanged.
What it never does: tokenise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = (Path(__file__).parent / "template.jinja").read_text(encoding="utf-8")
END_OF_TURN = "<|im_end|>"


def _tojson(value: Any) -> str:  # noqa: ANN401 - whatever a template holds
    return json.dumps(value, ensure_ascii=False)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    made.filters["tojson"] = _tojson
    return made


_template = _environment().from_string(TEMPLATE)


def render_prompt(messages: tuple[dict[str, Any], ...], tools: tuple[dict[str, Any], ...]) -> str:
    """Render everything up to the place where the assistant begins to speak."""
    return _template.render(messages=messages, tools=list(tools), add_generation_prompt=True)
