"""Run one loaded model as a process of its own: `appliance worker --fd N`.

What this room does: the handshake, loading, and the loop that takes commands in, runs steps and
sends what they brought; exit codes.
What it knows: the daemon's socket; that the main thread decodes and a second one moves frames.
What it never does: outlive the daemon, answer a signal meant for the daemon, or print a prompt.

Exit codes: 0 the daemon closed the socket, 70 the engine is lost, 78 the model can't be loaded.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

from appliance.clock import monotonic_ms
from appliance.errors import ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.devices import node_cores
from appliance.runtime.link import Link

if TYPE_CHECKING:
    from appliance.runtime.engine import Engine

EXIT_FATAL = 70
EXIT_CONFIG = 78
_HEARTBEAT_S = 1.0
_LISTEN_S = 3600.0
_PROGRESS_STEP = 0.01
_SWITCH_INTERVAL_S = 0.0005  # else the I/O thread keeps a 2 ms decode waiting for 5 ms
_PR_SET_PDEATHSIG = 1


def main(fd: int) -> int:
    """Serve the daemon over this inherited socket; returns the exit code.

    Does not return when the daemon closes the socket: the process ends there and then.
    """
    _prepare_process()
    link = Link(fd)
    code = EXIT_FATAL
    try:
        code = _serve(link)
    except Exception:  # noqa: BLE001 - the top of the process: say what, and end as fatal
        sys.excepthook(*sys.exc_info())
    link.close()
    return code


def _prepare_process() -> None:
    """End with the parent, leave terminal signals to it, and be quick to change threads."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the daemon drains, then closes the socket
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # else an assertion of ggml forks a debugger


def _serve(link: Link) -> int:
    # Here and not above, because llama.cpp reads its environment when it is imported; and before
    # the daemon says what to load, because it takes most of a second and a spare worker has time.
    from appliance.runtime.llama import EngineLost  # noqa: PLC0415
    from appliance.runtime.loading import load  # noqa: PLC0415

    start = _handshake(link)
    if start is None:
        return EXIT_FATAL
    near = node_cores(frozenset(os.sched_getaffinity(0)), start.engine.threads_prefill)
    os.sched_setaffinity(0, near)
    try:
        loaded = load(start.engine, monotonic_ms, _ProgressSender(link))
    except ModelUnloadable as error:
        link.send(wire.LoadFailed(path=error.path, reason=error.reason))
        return EXIT_CONFIG
    link.send(wire.Ready(facts=loaded.facts, step_ms_worst=loaded.engine.step_ms_worst))
    gc.collect()
    gc.freeze()  # what loading made stays for ever: never walk it again
    try:
        _Loop(
            link,
            loaded.engine,
            ack_window_steps=start.engine.ack_window_steps,
            take_ms=start.engine.step_ms_while_streaming,
        ).run()
    except EngineLost as error:
        sys.stderr.write(f"worker: the engine is lost: {error}\n")
    return EXIT_FATAL


def _handshake(link: Link) -> wire.Start | None:
    """Wait for Start, for as long as the daemon lives, and answer Hello; None if they disagree."""
    start = None
    while start is None:
        start = link.receive(_LISTEN_S)
    if not isinstance(start, wire.Start):
        sys.stderr.write("worker: the daemon did not begin with Start\n")
        return None
    link.send(wire.Hello(protocol_version=wire.PROTOCOL_VERSION, pid=os.getpid()))
    if start.protocol_version != wire.PROTOCOL_VERSION:
        sys.stderr.write(f"worker: the daemon speaks version {start.protocol_version}\n")
        return None
    return start


class _ProgressSender:
    """Tell the daemon how much is loaded, in steps that can be seen."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._sent = -1.0

    def __call__(self, ratio: float) -> None:
        if ratio - self._sent >= _PROGRESS_STEP or (ratio >= 1.0 > self._sent):
            self._sent = ratio
            self._link.send(wire.Loading(ratio=min(1.0, max(0.0, ratio))))


class _Loop:
    """The decode thread's life: commands in, a step, its frames out."""

    def __init__(
        self, link: Link, engine: Engine, *, ack_window_steps: int, take_ms: float
    ) -> None:
        self._link = link
        self._engine = engine
        self._window = ack_window_steps
        self._take_ms = take_ms
        self._sent = 0
        self._acked = 0

    def run(self) -> None:
        """Run until the process ends. Idle, it sends one empty step a second as a heartbeat."""
        beat_ms = monotonic_ms()
        while True:
            now_ms = monotonic_ms()
            is_behind = self._sent - self._acked >= self._window
            wait_s = max(0.0, beat_ms / 1000 + _HEARTBEAT_S - now_ms / 1000)
            if is_behind or not self._engine.has_work:
                self._take(_HEARTBEAT_S if is_behind else wait_s)
            self._take_all()
            if self._sent - self._acked >= self._window:
                continue
            if self._engine.has_work or monotonic_ms() >= beat_ms + _HEARTBEAT_S * 1000:
                self._step()
                beat_ms = monotonic_ms()

    def _step(self) -> None:
        for frame in self._engine.step():
            self._link.send(frame)
        self._sent += 1

    def _take_all(self) -> None:
        """Take what has come, but go on with the streams when that takes long (new grammars)."""
        began_ms = monotonic_ms()
        while self._take(0.0) and monotonic_ms() - began_ms < self._take_ms:
            pass

    def _take(self, wait_s: float) -> bool:
        frame = self._link.receive(wait_s)
        if isinstance(frame, wire.Submit | wire.SubmitEmbed):
            self._engine.submit(frame)
        elif isinstance(frame, wire.Cancel):
            self._engine.cancel(frame.ticket)
        elif isinstance(frame, wire.LoadAdapter):
            self._link.send(self._engine.load_adapter(frame))
        elif isinstance(frame, wire.UnloadAdapter):
            self._engine.unload_adapter(frame.key)
        elif isinstance(frame, wire.Ack):
            self._acked = max(self._acked, frame.step)
        return frame is not None
