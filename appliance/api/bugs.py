"""Record a bug of ours that reached a transport's catch-all.

What this room does: one log event with the kind of the exception and where it came from.
What it knows: an exception's message may quote what a client sent, so it is left out.
What it never does: handle the bug; the face answers the client.
"""

from __future__ import annotations

import logging
import traceback

from appliance import logs

FRAMES_MAX = 20


def log_bug(face: str, error: Exception) -> None:
    """Log the type of the error and its innermost frames; never its message."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    logs.event(
        "bug",
        level=logging.ERROR,
        face=face,
        error=type(error).__name__,
        frames=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    )
