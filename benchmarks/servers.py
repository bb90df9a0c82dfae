"""Start ours and llama-server on the same weights, and read their CPU time.

What this room does: command lines, waiting until ready, CPU seconds by kind of process, stopping.
What it knows: which settings make the two comparable: threads, cells in all, no prompt cache.
What it never does: send load.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peer import Peer

READY_S, STOP_S, POLL_S = 120.0, 30.0, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What both servers are told. `cells` is the KV cache in all.

    `shared`: llama-server's streams share the cells, as ours do; else each has its own part.
    """

    model: Path
    threads: int
    streams: int
    cells: int
    shared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers."""

    name: str
    url: str
    process: psutil.Process
    socket: str = ""  # gRPC's, if it has one
    extra: dict[str, Any]

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by kind: server, or daemon, worker and text."""
        used: dict[str, float] = {}
        for one in (self.process, *self.process.children(recursive=True)):
            times = one.cpu_times()
            kind = self._kind(one)
            used[kind] = used.get(kind, 0.0) + times.user + times.system
        return used

    def _kind(self, process: psutil.Process) -> str:
        words = process.cmdline()
        if "text-worker" in words:
            return "text"
        if "worker" in words:
            return "worker"
        return "daemon" if self.socket else "server"


@contextmanager
def llama_server(peer: Peer, settings: Settings, scratch: Path) -> Iterator[Running]:
    """Run llama-server with one slot for each stream."""
    port = _free_port()
    command = [
        *(str(peer.server), "--model", str(settings.model), "--alias", "bench"),
        *("--threads", str(settings.threads), "--threads-batch", str(settings.threads)),
        *("--parallel", str(settings.streams), "--ctx-size", str(settings.cells)),
        "--kv-unified" if settings.shared else "--no-kv-unified",
        *("--no-cache-prompt", "--cache-ram", "0", "--no-cache-idle-slots"),
        *("--no-ui", "--no-slots", "--host", "127.0.0.1", "--port", str(port)),
    ]
    url = f"http://127.0.0.1:{port}"
    with _process(command, scratch / f"llama-server-{port}.log", f"{url}/health") as process:
        yield Running(name="llama-server", url=url, process=process, extra={"cache_prompt": False})


@contextmanager
def appliance(settings: Settings, scratch: Path) -> Iterator[Running]:
    """Run our daemon as an operator does, from a configuration file."""
    port = _free_port()
    place = scratch / f"appliance-{port}"
    place.mkdir()
    config = place / "appliance.toml"
    config.write_text(
        f"""
[server]
state_dir = "{place / "state"}"
runtime_dir = "{place / "run"}"
[rest]
tcp = "127.0.0.1:{port}"
[engine]
threads = {settings.threads}
context_tokens = {settings.cells}
cells_total = {settings.cells}
[[models]]
path = "{settings.model}"
name = "bench"
""",
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "appliance", "serve", "--config", str(config)]
    with _process(command, place / "log", f"{url}/readyz") as process:
        yield Running(
            name="ours",
            url=url,
            process=process,
            socket=f"unix:{place / 'run' / 'grpc.sock'}",
            extra={},
        )


@contextmanager
def _process(command: list[str], log: Path, ready_url: str) -> Iterator[psutil.Process]:
    """Run a server from when it answers at `ready_url` until the end of the block."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as child:
        try:
            if not _ready(child, ready_url):
                end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"{command[0]} was not ready within {READY_S:.0f} s:\n{end}")
            yield psutil.Process(child.pid)
        finally:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()


def _ready(child: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310 - our own loopback address
                return True
        except OSError:
            time.sleep(POLL_S)
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
