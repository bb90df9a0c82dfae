"""Write one line per event on standard error: JSON for machines, plain words for a terminal.

What this room does: the two renderings of a log record; setting up the root logger once, from the
daemon or from a worker's main; `event`, the one way the house logs.
What it knows: an event has a name in snake_case and typed fields; journald keeps lines.
What it never does: write a prompt or a completion, rotate files, or start a thread.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
LOGGER_NAME = "appliance"
LINE_CHARS_MAX = 16_384

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def event(name: str, /, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one event with its fields.

    Blocks only as long as standard error does. Fields are shown as JSON; what JSON can't show is
    shown as text. Never hand a prompt or a completion to this.
    """
    write(name, level, fields)


def write(name: str, level: int, fields: Mapping[str, object]) -> None:
    """Log one event whose fields are at hand as a mapping. See `event`."""
    logging.getLogger(LOGGER_NAME).log(level, name, extra={"fields": dict(fields)})


def set_up(level: str, *, human: bool, stream: TextIO | None = None) -> None:
    """Send every record of this process to `stream` (standard error), replacing earlier handlers.

    Args:
        level: one of LEVELS; records below it are dropped.
        human: plain words for a terminal instead of JSON.
        stream: where to; standard error unless given.
    """
    assert level in LEVELS
    handler = logging.StreamHandler(stream) if stream is not None else _StandardError()
    handler.setFormatter(PlainFormatter() if human else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "aiohttp.access", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _StandardError(logging.StreamHandler[TextIO]):
    """Write to what standard error is at that moment: a progress bar may stand in for it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override] # the base class keeps one in an attribute
        """Find standard error."""
        return sys.stderr


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Collect what was said beside the name: `extra`, and the mapping that `event` passes."""
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    nested = extra.pop("fields", None)
    if isinstance(nested, dict):
        extra.update(nested)
    return extra


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, tz=UTC)


class JsonFormatter(logging.Formatter):
    """Render a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Put time, level and event first, then the fields; a traceback is one string."""
        line: dict[str, object] = {
            "time": _moment(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.name != LOGGER_NAME:
            line["logger"] = record.name
        for key, value in _fields_of(record).items():
            line.setdefault(key, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
        if len(text) <= LINE_CHARS_MAX:
            return text
        short = {key: line[key] for key in ("time", "level", "event")}
        return json.dumps({**short, "line_chars_dropped": len(text)}, ensure_ascii=False)


class PlainFormatter(logging.Formatter):
    """Render a record for a person: time, level if it matters, event, fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Keep everything on one line, apart from a traceback."""
        clock = _moment(record).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        name = record.getMessage().replace("_", " ")
        fields = " ".join(f"{key}={_plain(value)}" for key, value in _fields_of(record).items())
        text = f"{clock}  {level}{name}" + (f"  {fields}" if fields else "")
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text else text
