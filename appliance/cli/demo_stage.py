"""Give the demonstration its stage: a directory, our own program in processes, a clock.

What this room does: commands run to their end; processes that run beside, with their logs; lines
with the time since the beginning.
What it knows: everything lies in one directory, which is gone afterwards.
What it never does: import what it demonstrates, or leave a process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from rich.console import Console

from appliance.cli.exits import SOFTWARE, CommandFailed
from appliance.clock import monotonic_ms

COMMAND_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05
LOG_TAIL_LINES = 20


class Stage:
    """A directory in which our program runs, and a page to tell of it."""

    def __init__(self, console: Console, place: Path) -> None:
        """Tell on `console`; everything is done in `place`."""
        self.console = console
        self.place = place
        self._begun_ms = monotonic_ms()

    def say(self, text: str, style: str = "") -> None:
        """Print a line with the time since the beginning."""
        took_s = (monotonic_ms() - self._begun_ms) / 1000
        self.console.print(f"{took_s:6.1f} s  ", style="dim", end="", markup=False)
        self.console.print(text, style=style or None, markup=False, soft_wrap=True)

    def write(self, name: str, text: str) -> None:
        """Write a file of the stage."""
        (self.place / name).write_text(text, "utf-8")

    async def command(self, *words: str, quiet: bool = False) -> str:
        """Run one of our commands, shown unless quiet; returns what it printed.

        Raises:
            CommandFailed: it did not do what it was asked to.
        """
        if not quiet:
            self.say(f"$ appliance {' '.join(words)}", "dim")
        process = await asyncio.create_subprocess_exec(
            *_program(words),
            cwd=self.place,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                out, err = await process.communicate()
        finally:
            await _end(process)
        if process.returncode != 0:
            reason = " ".join(err.decode(errors="replace").split()) or "it said nothing"
            raise CommandFailed(f"{' '.join(words[:3])}: {reason}", SOFTWARE)
        return out.decode()

    @contextlib.asynccontextmanager
    async def running(self, name: str, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run one of our programs; it is asked to end, and whatever happens it is gone afterwards.

        Raises:
            CommandFailed: it ended otherwise than it was asked to.
        """
        with (self.place / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *_program(words),
                cwd=self.place,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
            self.check_runs(name, process)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_TIMEOUT_S):
                code = await process.wait()
            if code != 0:
                raise CommandFailed(f"{name} ended with {code}: {self.tail(name)}", SOFTWARE)
        finally:
            await _end(process)

    def check_runs(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Refuse to wait for a process that has ended. Raises CommandFailed."""
        if process.returncode is not None:
            reason = f"{name} ended with {process.returncode}: {self.tail(name)}"
            raise CommandFailed(reason, SOFTWARE)

    def logged(self, name: str, **wanted: str) -> dict[str, str] | None:
        """Find the first line of a log that has these fields."""
        for line in (self.place / f"{name}.log").read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                found = msgspec.json.decode(line, type=dict[str, object])
                if all(found.get(key) == value for key, value in wanted.items()):
                    return {key: str(value) for key, value in found.items()}
        return None

    def tail(self, name: str) -> str:
        """Read the end of a log, in one line."""
        lines = (self.place / f"{name}.log").read_text("utf-8", "replace").splitlines()
        return " | ".join(lines[-LOG_TAIL_LINES:]) or "it logged nothing"


def _program(words: tuple[str, ...]) -> list[str]:
    program = [] if getattr(sys, "frozen", False) else ["-m", "appliance"]
    return [sys.executable, *program, *words]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
