"""Start ours and its peers on the same weights, and read their CPU time.

What this room does: command lines, waiting until ready, CPU seconds by kind of process, stopping.
What it knows: what makes them comparable (weights, threads, cells in all), and how the users of
each run it for so many streams: ours with its defaults; llama-server with its number of slots
given, which gives each stream its own part of the cells unless the suite says otherwise.
What it never does: send load.
"""

from __future__ import annotations

import json
import os
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
from benchmarks.samples import EXAMPLE_SERVER, PEER

READY_S, STOP_S, POLL_S = 120.0, 30.0, 0.05
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the servers are told. `cells` is the KV cache in all, `streams` llama-server's slots.

    `shared`: whether llama-server's streams share the cells, as ours do; None: its own default.
    `prompt_cache`: llama-server's, which is on by default.
    """

    model: Path
    threads: int = CORES
    streams: int
    cells: int
    shared: bool | None = None
    prompt_cache: bool = True
    adapters: tuple[tuple[str, Path], ...] = ()  # of ours: names and files


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers."""

    name: str
    url: str
    process: psutil.Process
    command: tuple[str, ...]
    socket: str = ""  # gRPC's, if it has one
    extra: dict[str, Any]

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by kind: server, or daemon, worker and text."""
        used: dict[str, float] = {}
        for kind, one in self.processes():
            times = one.cpu_times()
            used[kind] = used.get(kind, 0.0) + times.user + times.system
        return used

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """List its processes with their kinds."""
        return [
            (self._kind(one), one) for one in (self.process, *self.process.children(recursive=True))
        ]

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
        *{None: [], True: ["--kv-unified"], False: ["--no-kv-unified"]}[settings.shared],
        *("--no-ui", "--host", "127.0.0.1", "--port", str(port)),
    ]
    extra = {}
    if not settings.prompt_cache:
        command += ["--no-cache-prompt", "--cache-ram", "0", "--no-cache-idle-slots"]
        extra = {"cache_prompt": False}
    url = f"http://127.0.0.1:{port}"
    with _process(command, scratch / f"llama-server-{port}.log", f"{url}/health") as process:
        yield Running(name=PEER, url=url, process=process, command=tuple(command), extra=extra)


@contextmanager
def example_server(
    peer: Peer, packages: Path, settings: Settings, scratch: Path
) -> Iterator[Running]:
    """Run llama-cpp-python's examples/server with its own defaults."""
    port = _free_port()
    config = scratch / f"example-server-{port}.json"
    model = {
        "path": str(settings.model),
        "alias": "bench",
        "n_ctx": settings.cells,
        "n_seq_max": settings.streams,
        "threads": settings.threads,
        "threads_batch": settings.threads,
    }
    config.write_text(
        json.dumps({"server": {"host": "127.0.0.1", "port": port}, "model": model}),
        encoding="ascii",
    )
    libraries = str(peer.libraries)
    environment = os.environ | {
        "PYTHONPATH": str(packages),
        "LLAMA_CPP_LIB_PATH": libraries,
        "MTMD_CPP_LIB": libraries,
    }
    command = [sys.executable, str(peer.example_server), "-C", str(config)]
    url = f"http://127.0.0.1:{port}"
    log = scratch / f"example-server-{port}.log"
    with _process(command, log, f"{url}/healthz", environment) as process:
        yield Running(
            name=EXAMPLE_SERVER,
            url=url,
            process=process,
            command=tuple(command),
            extra={"logit_bias": {"2": -100.0}},  # it has no ignore_eos; 2 is the end of a text
        )


@contextmanager
def appliance(settings: Settings, scratch: Path, *, name: str = "ours") -> Iterator[Running]:
    """Run our daemon as an operator does, from a configuration file, with its defaults."""
    port = _free_port()
    place = scratch / f"appliance-{port}"
    place.mkdir()
    config = place / "appliance.toml"
    adapters = "".join(
        f'[[models.adapters]]\nname = "{known_as}"\npath = "{path}"\n'
        for known_as, path in settings.adapters
    )
    threads = "" if settings.threads == CORES else f"threads = {settings.threads}\n"
    config.write_text(
        f"""
[server]
state_dir = "{place / "state"}"
runtime_dir = "{place / "run"}"
[rest]
tcp = "127.0.0.1:{port}"
[engine]
{threads}context_tokens = {settings.cells}
cells_total = {settings.cells}
[[models]]
path = "{settings.model}"
name = "bench"
{adapters}""",
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "appliance", "serve", "--config", str(config)]
    with _process(command, place / "log", f"{url}/readyz") as process:
        yield Running(
            name=name,
            url=url,
            process=process,
            command=(*command, config.read_text(encoding="utf-8")),
            socket=f"unix:{place / 'run' / 'grpc.sock'}",
            extra={},
        )


@contextmanager
def _process(
    command: list[str], log: Path, ready_url: str, environment: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    """Run a server from when it answers at `ready_url` until the end of the block."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as child,
    ):
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
