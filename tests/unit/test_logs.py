"""The rules of a log line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from appliance import logs


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(*, human: bool, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(level, human=human, stream=stream)
    return stream


def test_an_event_is_one_json_line_with_time_level_event_and_fields() -> None:
    stream = lines_of(human=False)
    logs.event("model_ready", model="m@1", load_ms=12.5, path="a\nb")
    (line,) = stream.getvalue().splitlines()
    shown = json.loads(line)
    assert shown.pop("time").endswith("Z")
    assert shown == {
        "level": "info",
        "event": "model_ready",
        "model": "m@1",
        "load_ms": 12.5,
        "path": "a\nb",
    }


def test_a_record_of_any_logger_keeps_its_extra_fields_and_names_its_logger() -> None:
    stream = lines_of(human=False)
    logging.getLogger("other").warning("odd %s", "thing", extra={"count": 3})
    shown = json.loads(stream.getvalue())
    assert (shown["logger"], shown["event"], shown["count"]) == ("other", "odd thing", 3)


def test_a_traceback_stays_inside_its_json_line() -> None:
    stream = lines_of(human=False)
    try:
        int("boom")
    except ValueError:
        logging.getLogger("x").exception("daemon_failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_a_field_never_replaces_time_level_or_event() -> None:
    stream = lines_of(human=False)
    logs.event("a", event="b", level_name="c")
    assert json.loads(stream.getvalue())["event"] == "a"


def test_a_huge_line_is_replaced_by_its_name_and_size() -> None:
    stream = lines_of(human=False)
    logs.event("big", text="x" * (logs.LINE_CHARS_MAX + 1))
    shown = json.loads(stream.getvalue())
    assert shown["event"] == "big"
    assert shown["line_chars_dropped"] > logs.LINE_CHARS_MAX


def test_a_level_below_the_configured_one_is_dropped() -> None:
    stream = lines_of(human=False, level="warning")
    logs.event("quiet")
    logs.event("loud", level=logging.WARNING)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_for_a_person_an_event_is_plain_words() -> None:
    stream = lines_of(human=True)
    logs.event("model_ready", model="m@1", reason="two words", load_ms=12.345)
    shown = stream.getvalue().split("  ", 1)[1]
    assert shown == 'model ready  model=m@1 reason="two words" load_ms=12.3\n'
