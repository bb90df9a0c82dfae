"""Run the real program as its users do: `python -m appliance …` in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "appliance" / "models" / "demo" / "demo-2.q8_0.gguf"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0

Line = dict[str, Any]


def command(*arguments: object) -> list[str]:
    """Name the command of our own program."""
    return [sys.executable, "-m", "appliance", *(str(argument) for argument in arguments)]


def environment(**more: str) -> dict[str, str]:
    """Build the environment: ours, with the tree in front."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def program(
    *arguments: object, stdin: str = "", timeout_s: float = START_TIMEOUT_S, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        env=environment(**env),
        check=False,
    )


class RunningProgram:
    """Our program in a process; its log is read as it comes. A context manager."""

    def __init__(self, arguments: list[str], cwd: Path | None = None, **env: str) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            arguments,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment(**env),
            cwd=cwd,
        )
        self._lines: list[Line] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

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
        self.process.wait(STOP_TIMEOUT_S)
        self._reader.join(STOP_TIMEOUT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def logged(self, event: str) -> Line:
        """Wait for a log line of this event and return the first."""
        return self.waited(lambda lines: [line for line in lines if line["event"] == event])[0]

    def waited(self, wanted: Callable[[list[Line]], list[Line]]) -> list[Line]:
        """Wait until what is wanted is among the lines."""
        limit_s = time.monotonic() + START_TIMEOUT_S
        with self._came:
            while not (found := wanted(self._lines)):
                left_s = limit_s - time.monotonic()
                assert left_s > 0, self._lines
                assert self._reader.is_alive() or wanted(self._lines), self._lines
                self._came.wait(min(left_s, 1.0))
        return found

    @property
    def lines(self) -> list[Line]:
        """Read what was logged until now."""
        with self._came:
            return list(self._lines)

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait(STOP_TIMEOUT_S)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"event": "text", "line": text}
            with self._came:
                self._lines.append(line)
                self._came.notify_all()
        with self._came:
            self._came.notify_all()


class RunningDaemon(RunningProgram):
    """`appliance serve` in a process."""

    def __init__(self, place: Path, *options: object, **env: str) -> None:
        """Start it with its directories in `place`; REST is at any free port."""
        self.runtime_dir = place / "run"
        self.address = f"unix:{self.runtime_dir / 'grpc.sock'}"
        arguments = command(
            "serve",
            *("--state-dir", place / "state", "--runtime-dir", self.runtime_dir),
            *("--rest", "127.0.0.1:0", *options),
        )
        super().__init__(arguments, None, **env)

    def ready(self) -> Self:
        """Wait until every model answers."""
        self.logged("ready")
        return self

    @property
    def rest_address(self) -> str:
        """Name the HOST:PORT of REST."""
        lines = self.waited(
            lambda lines: [line for line in lines if line.get("plane") == "metrics"]
        )
        return str(lines[0]["address"])

    def children(self) -> list[psutil.Process]:
        """List its worker and text processes."""
        return psutil.Process(self.process.pid).children(recursive=True)
