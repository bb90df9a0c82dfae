"""Show answers and measurements to a person.

What this room does: text from a model made safe for a terminal; the line of measurements; sizes;
how a standby is held; a page for tables, and JSON.
What it knows: a model may write control characters, and a terminal obeys them.
What it never does: change what goes into a pipe or a file.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

import msgspec
from rich.console import Console

from appliance import domain

PIPE_COLUMNS = 200  # a table in a pipe is not folded
LEVELS = {
    "h0": "on disk (h0)",
    "h1": "in the page cache (h1)",
    "h2": "locked in memory (h2)",
    "h3": "loaded (h3)",
    "h4": "loaded and proven (h4)",
}
_KEPT = frozenset("\n\t")
_MS_PER_S = 1000.0


def printable(text: str) -> str:
    """Replace control and format characters that a terminal would obey by U+FFFD."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if character not in _KEPT and unicodedata.category(character) in ("Cc", "Cs")
        else character
        for character in text
    )


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a piece of an answer at once; raw unless the stream is a terminal."""
    out = stream if stream is not None else sys.stdout
    out.write(printable(text) if out.isatty() else text)
    out.flush()


def tokens_per_second(final: domain.Final) -> float:
    """Tell the speed after the first token; 0 if there is nothing to tell it from."""
    tokens = final.usage.completion_tokens - len(final.finish_reasons)
    took_ms = final.timings.total_ms - final.timings.first_token_ms
    return tokens * _MS_PER_S / took_ms if tokens > 0 and took_ms > 0 else 0.0


def measurements(final: domain.Final) -> str:
    """Say in one line what an answer took."""
    usage, timings = final.usage, final.timings
    speed = tokens_per_second(final)
    parts = [
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        f"{speed:.1f} tokens/s" if speed else "",
        f"first token after {timings.first_token_ms:.0f} ms",
        f"total {timings.total_ms:.0f} ms",
        f"queue {timings.queue_ms:.0f} ms",
        "/".join(reason.value for reason in final.finish_reasons),
    ]
    return ", ".join(part for part in parts if part)


def call_of(call: domain.ToolCall) -> str:
    """Show a call of a tool."""
    return f"[calls {call.name}({call.arguments})]"


def size(count: float) -> str:
    """Show a number of bytes: 1536 is '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - a kibibyte
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def console() -> Console:
    """Open standard output for tables; wide where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def print_json(answer: object) -> None:
    """Print one object on one line, at once."""
    print(msgspec.json.encode(answer).decode(), flush=True)
