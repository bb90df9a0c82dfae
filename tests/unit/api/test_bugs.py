"""A bug shows where it is, and nothing of what a client sent."""

from __future__ import annotations

import io
import logging

import pytest

from appliance import logs
from appliance.api.bugs import log_bug


def _fail() -> None:
    raise RuntimeError("what the client wrote")


@pytest.fixture(autouse=True)
def _keep_the_root_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)


@pytest.mark.parametrize("human", [False, True])
def test_a_bug_is_logged_without_its_message(*, human: bool) -> None:
    stream = io.StringIO()
    logs.set_up("info", human=human, stream=stream)
    try:
        _fail()
    except RuntimeError as error:
        log_bug("grpc", error)
    assert "RuntimeError" in stream.getvalue()
    assert "test_bugs.py" in stream.getvalue()
    assert "what the client wrote" not in stream.getvalue()
