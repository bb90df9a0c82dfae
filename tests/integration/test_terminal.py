"""What a person sees at a terminal: the conversation, the bar while loading, the demo."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.integration.daemons import RunningDaemon, command, environment, program

WAIT_S = 60.0
BEGUN_CHARS = 60


class Terminal:
    """A command on a terminal of its own. A context manager."""

    def __init__(self, *arguments: object) -> None:
        """Start the command with the terminal as its standard streams."""
        self._ours, theirs = pty.openpty()
        # A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", *command(*arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment(TERM="dumb", COLUMNS="200"),
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        os.close(self._ours)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._ours, line.encode() + b"\n")

    def until(self, text: str) -> str:
        """Read until `text` comes; return what came before it and drop both."""
        limit_s = time.monotonic() + WAIT_S
        while text not in self.seen:
            assert time.monotonic() < limit_s, f"{text!r} did not come: {self.seen!r}"
            self.more()
        before, _, self.seen = self.seen.partition(text)
        return before

    def more(self) -> None:
        """Read what comes next."""
        assert select.select([self._ours], [], [], WAIT_S)[0], self.seen
        self.seen += os.read(self._ours, 65536).decode("utf-8", "replace")

    def end(self) -> int:
        """Wait for the end, reading what still comes."""
        while True:
            try:
                if not os.read(self._ours, 65536):
                    break
            except OSError:  # the last one on the other side has gone
                break
        return self.process.wait(WAIT_S)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running.ready()


def test_a_conversation_is_kept_until_cleared_and_ends_on_exit(daemon: RunningDaemon) -> None:
    options = ("--temperature", "0", "--stats", "--max-tokens", "16")
    with Terminal("chat", "--address", daemon.address, *options) as terminal:
        terminal.until("/exit leaves")
        prompts = []
        for line in ("Hello", "What is 1 + 2?", "/clear", "Hello"):
            terminal.until("> ")
            terminal.type(line)
            if line == "/clear":
                terminal.until("(forgotten)")
            else:
                terminal.until("(")
                prompts.append(int(terminal.until(" + ")))
        terminal.until("> ")
        terminal.type("/exit")
        assert terminal.end() == 0
    first, second, again = prompts
    assert second > first == again


def test_ctrl_c_stops_the_answer_and_not_the_conversation(daemon: RunningDaemon) -> None:
    options = ("--ignore-eos", "--max-tokens", "8000", "--temperature", "1")
    with Terminal("chat", "--address", daemon.address, *options) as terminal:
        terminal.until("> ")
        terminal.type("Hello")
        terminal.until("Hello")  # the terminal's own echo
        terminal.until("\n")
        while len(terminal.seen) < BEGUN_CHARS:
            terminal.more()  # the answer, and not a rest of the echo, has begun
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("(stopped)")
        terminal.until("> ")
        ended = daemon.waited(
            lambda lines: [line for line in lines if line.get("reason") == "REQUEST_CANCELLED"]
        )
        assert ended[0]["operation"] == "chat"
        terminal.type("/exit")
        assert terminal.end() == 0


def test_serve_on_a_terminal_speaks_plainly(tmp_path: Path) -> None:
    directories = ("--state-dir", tmp_path / "state", "--runtime-dir", tmp_path / "run")
    with Terminal("serve", "--rest", "127.0.0.1:0", *directories) as terminal:
        terminal.until("listening")
        shown = terminal.until("ready  models=")
        assert '"event"' not in shown
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("stopped")
        assert terminal.end() == 0


def test_the_demo_asks_over_grpc_then_tells_the_whole_story_of_versions(tmp_path: Path) -> None:
    done = program("demo", timeout_s=170, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("→ ") == 8
    assert "[calls get_weather(" in done.stdout
    assert "time to first token" in done.stdout
    told = [
        "drained and stopped cleanly",
        "demo@1 committed",
        "users begin to ask",
        "demo@2 shadowing",
        "demo@2 shifting 50 %",
        "demo@2 probation",
        "demo@2 committed",
        "demo@3 checking",
        "demo@3 aborted",
        "Version 3 was caught before anybody met it: check_failed",
        "Rolled back in ",
        "0 failed, 0 met version 3",
        "nothing of them is left",
    ]
    found = [done.stdout.find(text) for text in told]
    assert -1 not in found, done.stdout
    assert found == sorted(found)
    assert list(tmp_path.iterdir()) == []
