"""Hold one child process of ours: start it, talk in frames, end it, and say how it ended.

What this room does: executes our own program with an inherited socket and a clean environment;
sends and receives frames; passes the child's stderr to the log, line by line and at a bounded
rate; ends the child by the kill ladder (socket closed, SIGTERM, SIGKILL), each wait bounded.
What it knows: frames, signals and exit codes.
What it never does: know what a frame means, decide to restart, or outlive its child.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import appliance
from appliance import clock
from appliance.runtime import wire

_log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
WRITE_BYTES_MAX = 2 * wire.FRAME_BYTES_MAX
STDERR_LINE_BYTES_MAX = 4096
STDERR_LINES_PER_S_MAX = 50
CANNOT_START = "cannot_start"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

F = TypeVar("F")


def child_command(kind: str, fd: int) -> list[str]:
    """Name the command that runs our own program as a child, frozen or not."""
    if getattr(sys, "frozen", False):
        return [sys.executable, kind, "--fd", str(fd)]
    return [sys.executable, "-P", "-m", "appliance", kind, "--fd", str(fd)]


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Build the whole environment of a child: nothing of the daemon's own gets through.

    PYTHONPATH makes the child import this very package, wherever it lies. GGML_NO_BACKTRACE: an
    assertion of ggml would otherwise fork a debugger. GOMP_SPINCOUNT: threads that wait for each
    other by spinning at length make a step many times longer as soon as anybody else wants a core;
    not spinning at all costs much of the speed of an idle machine (see docs/adr/0011-threads.md).
    """
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(appliance.__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GGML_NO_BACKTRACE": "1",
        "GOMP_SPINCOUNT": "500",
        **(extra or {}),
    }


def exit_cause(returncode: int) -> str:
    """Name an exit in one word: sigkill, sigsegv, exit_70, ..."""
    if returncode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-returncode).name.lower()
        return f"signal_{-returncode}"
    return f"exit_{returncode}"


class Child(Generic[F]):
    """One running child. `F` is the union of frames it sends. Made by `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        frame_type: object,
        stop_wait_s: float,
    ) -> None:
        """Take hold of a started process; use `start` instead."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._frames = wire.FrameReader(frame_type)
        self._stop_wait_s = stop_wait_s
        self._cause = ""

    @classmethod
    async def start(
        cls,
        kind: str,
        frame_type: object,
        *,
        stop_wait_s: float,
        memory_bytes_max: int = 0,
        environment: dict[str, str] | None = None,
    ) -> Child[F]:
        """Execute `appliance KIND` with one end of a new socket pair.

        memory_bytes_max bounds the child's data segment (0: unbounded). Returns as soon as the
        process exists; the handshake is the caller's.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *child_command(kind, theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    env=child_environment(environment),
                    limit=STDERR_LINE_BYTES_MAX,
                )
            except BaseException:
                ours.close()
                raise
        if memory_bytes_max:
            with contextlib.suppress(ProcessLookupError):
                bounds = (memory_bytes_max, memory_bytes_max)
                resource.prlimit(process.pid, resource.RLIMIT_DATA, bounds)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_BYTES)
        return cls(process, reader, writer, frame_type, stop_wait_s)

    @property
    def pid(self) -> int:
        """Name the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Tell whether the process has ended, as far as is known now."""
        return self._process.returncode is not None or self._reader.at_eof()

    @property
    def killed(self) -> bool:
        """Tell whether `kill` was called in the process's life."""
        return bool(self._cause)

    def send(self, frame: wire.Frame) -> None:
        """Hand one frame over; does not block and never raises for a child that is gone.

        A child that has let WRITE_BYTES_MAX pile up is not reading: it is killed, and its end is
        seen by the reader.

        Raises:
            WireFault: the frame itself is over the bound (callers bound their input first).
        """
        data = wire.encode(frame)
        if self._writer.transport.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > WRITE_BYTES_MAX:
            self.kill("not_reading")
            return
        self._writer.write(data)

    async def receive(self) -> Iterator[F] | None:
        """Wait for more bytes and return the frames they complete; None at the end of the stream.

        Cancelling loses nothing. Consume the iterator before calling again.

        Raises:
            WireFault: while iterating, if the child sends what is not this protocol.
        """
        try:
            data = await self._reader.read(READ_BYTES)
        except ConnectionError:
            return None
        if not data:
            return None
        return self._frames.feed(data)  # type: ignore[return-value] # the reader was made for F

    def kill(self, cause: str) -> None:
        """End the process at once and remember why; does not block, idempotent."""
        if self._process.returncode is None:
            self._cause = self._cause or cause
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def log_stderr(self, name: str) -> None:
        """Pass the child's stderr to the log until it ends; lines over the rate are counted."""
        assert self._process.stderr is not None
        second, lines, dropped = 0, 0, 0
        while True:
            try:
                line = await self._process.stderr.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                line = await self._process.stderr.readexactly(error.consumed)
            except asyncio.IncompleteReadError as error:
                line = error.partial
                if not line:
                    return
            now = int(clock.monotonic_ms() / 1000)
            if now != second:
                if dropped:
                    fields = {"process": name, "lines": dropped}
                    _log.warning("stderr_dropped", extra={"fields": fields})
                second, lines, dropped = now, 0, 0
            lines += 1
            if lines > STDERR_LINES_PER_S_MAX:
                dropped += 1
                continue
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                fields = {"process": name, "pid": self.pid, "line": text}
                _log.info("stderr", extra={"fields": fields})

    async def end(self) -> str:
        """Go down the kill ladder until the process is reaped; return the cause of its end.

        Takes at most three waits of stop_wait_s. A process that has ended by itself is only reaped.
        """
        self._writer.close()
        for rung in (0, signal.SIGTERM, signal.SIGKILL):  # 0: the closed socket is the first one
            if rung:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(rung)
            try:
                async with asyncio.timeout(self._stop_wait_s):
                    returncode = await self._process.wait()
            except TimeoutError:
                continue
            return self._cause or exit_cause(returncode)
        return self._cause or "unkillable"
