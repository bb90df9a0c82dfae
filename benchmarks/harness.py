"""Give the suites what they share: models, servers that are up, loads, and a place for samples.

What this room does: writes models into the cache, keeps servers running while a suite needs them,
runs the client's process, takes turns, and keeps every sample and command line.
What it knows: the machine, and what this run was asked for.
What it never does: decide what is measured (`suites`), or judge it (`bars`).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.load import LOAD_S, run_here, run_load
from benchmarks.peer import Peer, build_peer, example_packages
from benchmarks.samples import (
    CEILING,
    EXAMPLE_SERVER,
    OURS_GRPC,
    OURS_REST,
    PEER,
    Sample,
    digest,
    metrics_of,
)
from benchmarks.servers import CORES, Running, Settings, appliance, example_server, llama_server
from benchmarks.traffic import Load, Part, Report
from tools.gguf_writer import (
    EDITION,
    SHAPES,
    Quantisation,
    byte_vocabulary,
    read_vocabulary,
    write_llama,
)

WARM_STREAMS, WARM_TOKENS = 2, 8  # before the first round
# Of the 32 000 tokens of the vocabulary: none of the special and byte tokens, which come first.
TOKEN_IDS = (300, 31_000)
BYTE_TOKEN_IDS = (32, 126)  # of a byte-level vocabulary: what can be printed
CELLS_LEAST = 8192
_CELLS_STEP = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What this run was asked for. `rounds` 0: as many as each suite has; `twin`: see `engine`."""

    cache: Path
    quick: bool = False
    twin: bool = False
    rounds: int = 0
    seed: int = 1
    threads: int = CORES
    shape: str = "1B"
    prompt_tokens: int = 128
    output_tokens: int = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to one server; what a sample calls it."""

    name: str
    server: Running
    way: str


class Session:
    """One run of some suites. A context manager: its servers stop at its end."""

    def __init__(self, options: Options, scratch: Path, say: Callable[[str], None]) -> None:
        """Build the peer if it is not in the cache (some ten minutes, once)."""
        self.options = options
        self.say = say
        self.samples: list[Sample] = []
        self.commands: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self.suite = ""  # which is under way
        self._scratch = scratch
        self._stack = ExitStack()
        self._up: dict[tuple[str, Settings], Running] = {}
        self._peer: Peer | None = None if options.twin else build_peer(options.cache, say)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_servers()

    # --- what suites stand on --------------------------------------------------------------------

    @property
    def token_ids(self) -> tuple[int, int]:
        """Name the range that prompts are drawn from."""
        return BYTE_TOKEN_IDS if self._has_bytes else TOKEN_IDS

    @property
    def _has_bytes(self) -> bool:
        return self.options.quick or self._peer is None

    def rounds(self, usual: int, within_s: float) -> Iterator[int]:
        """Count rounds: as many as were asked for, else `usual`, but none that would end too late.

        On a slow machine there are fewer of them, and a note says so: the whole must end in time.
        """
        wanted = 1 if self.options.quick else self.options.rounds or usual
        began = time.monotonic()
        for number in range(wanted):
            spent_s = time.monotonic() - began
            is_late = number and spent_s * (number + 1) / number > within_s
            if is_late and not self.options.rounds:
                said = f"{number} of {wanted} rounds in {spent_s:.0f} s: this machine is slow"
                self.note(f"{self.suite}: {said}" if self.suite else said)
                return
            yield number

    def turns(
        self, sides: Sequence[Side], usual: int, within_s: float
    ) -> Iterator[tuple[int, Side]]:
        """Go through the sides in each round, in alternating order."""
        for number in self.rounds(usual, within_s):
            for side in sides if number % 2 == 0 else reversed(sides):
                yield number, side

    def model(
        self, shape: str = "1B", quantisation: Quantisation | None = None, template: str = ""
    ) -> Path:
        """Return a model of random weights, written into the cache once."""
        options = self.options
        kind = quantisation or (Quantisation.Q4_K_M if SHAPES[shape].width >= 768 else None)  # noqa: PLR2004 - K-quants want rows of 256
        if options.quick:
            shape, kind = "tiny", Quantisation.F16
        kind = kind or Quantisation.Q8_0
        words = [shape, kind, str(EDITION)]
        words += ["bytes"] if self._has_bytes else []
        words += ["chat"] if template else []
        path = options.cache / f"random-{'-'.join(words)}.gguf"
        if not path.exists():
            options.cache.mkdir(parents=True, exist_ok=True)
            vocabulary = byte_vocabulary()
            if not self._has_bytes:
                assert self._peer
                vocabulary = read_vocabulary(self._peer.vocabularies / "ggml-vocab-llama-spm.gguf")
            write_llama(path, SHAPES[shape], vocabulary, kind, chat_template=template or None)
        return path

    def settings(
        self,
        model: Path,
        streams: int,
        tokens: int,
        *,
        shared: bool | None = None,
        prompt_cache: bool = True,
    ) -> Settings:
        """Give so many streams room for so many tokens each, with a quarter to spare."""
        quick = self.options.quick
        wanted = -(-streams * tokens * 5 // 4 // _CELLS_STEP) * _CELLS_STEP
        return Settings(
            model=model,
            threads=1 if quick else self.options.threads,
            streams=streams,
            cells=max(_CELLS_STEP if quick else CELLS_LEAST, wanted),
            shared=shared,
            prompt_cache=prompt_cache,
        )

    # --- servers ---------------------------------------------------------------------------------

    def ours(self, settings: Settings) -> Running:
        """Return our server with these settings; it needs no number of streams."""
        settings = _ours(settings)
        return self._running("ours", settings, lambda: appliance(settings, self._scratch))

    def llama_server(self, settings: Settings) -> Running:
        """Return llama-server with these settings; with `twin` a second copy of ours."""
        peer = self._peer
        if peer is None:
            twin = _ours(settings)
            return self._running(PEER, twin, lambda: appliance(twin, self._scratch, name=PEER))
        return self._running(PEER, settings, lambda: llama_server(peer, settings, self._scratch))

    def example_server(self, settings: Settings) -> Running | None:
        """Return llama-cpp-python's examples/server; None and a note if it can't run here."""
        peer = self._peer
        if peer is None:
            self.note(f"{EXAMPLE_SERVER}: not measured, there are no peers in this run")
            return None
        try:
            packages = example_packages(self.options.cache)
            return self._running(
                EXAMPLE_SERVER,
                settings,
                lambda: example_server(peer, packages, settings, self._scratch),
            )
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            self.note(f"{EXAMPLE_SERVER}: not measured: {error}")
            return None

    def sides(self, settings: Settings, *, grpc: bool = True) -> list[Side]:
        """List ours over gRPC and REST and llama-server."""
        ours, peer = self.ours(settings), self.llama_server(settings)
        found = [Side(name=OURS_GRPC, server=ours, way="grpc")] if grpc else []
        return [
            *found,
            Side(name=OURS_REST, server=ours, way="rest"),
            Side(name=PEER, server=peer, way="rest"),
        ]

    def stop_servers(self) -> None:
        """Stop what runs; the next suite starts what it needs."""
        self._up.clear()
        self._stack.close()

    def suite_ended(self) -> None:
        """Stop the servers between suites; small ones stay up for the next suite."""
        if not self.options.quick:
            self.stop_servers()

    def _running(
        self, kind: str, settings: Settings, start: Callable[[], AbstractContextManager[Running]]
    ) -> Running:
        key = (kind, settings)
        if key not in self._up:
            self._up[key] = self._stack.enter_context(start())
            self._keep_command(kind, self._up[key].command)
        return self._up[key]

    def _keep_command(self, kind: str, command: Sequence[str]) -> None:
        """Keep a command line for readers, without the places of this machine."""
        said = " ".join(command)
        for place, name in (
            (str(self.options.cache), "CACHE"),
            (str(self._scratch), "SCRATCH"),
            (sys.executable, "python"),
            (str(Path.cwd()), "."),
        ):
            said = said.replace(place, name)
        kept = self.commands.setdefault(kind, [])
        if said not in kept:
            kept.append(said)

    # --- loads -----------------------------------------------------------------------------------

    def order(self, side: Side, *parts: Part, seed: int, may_fail: bool = False) -> Load:
        """Describe a load for one side."""
        server = side.server
        return Load(
            way=side.way,
            target=server.url if side.way == "rest" else server.socket,
            parts=parts,
            first_token_id=self.token_ids[0],
            last_token_id=self.token_ids[1],
            seed=self.options.seed * 1_000_003 + seed,
            timeout_s=LOAD_S,
            may_fail=may_fail,
            extra=server.extra,
        )

    def send(
        self, side: Side, *parts: Part, seed: int, may_fail: bool = False
    ) -> tuple[Report, dict[str, float]]:
        """Run one load; return its report and the server's CPU seconds meanwhile.

        It has a process of its own, but for small ones, which that would cost more than they do.
        Raises RuntimeError if it fails.
        """
        server, load = side.server, self.order(side, *parts, seed=seed, may_fail=may_fail)
        before = server.cpu_s()
        try:
            report = run_here(load) if self.options.quick else run_load(load)
        except RuntimeError as error:
            raise RuntimeError(f"{side.name}: {error}") from error
        used = {kind: after - before.get(kind, 0.0) for kind, after in server.cpu_s().items()}
        return report, used

    def warm(self, sides: Sequence[Side], part: Part) -> None:
        """Send each side a short load that is not counted; small models are warm at once."""
        if self.options.quick:
            return
        streams = min(part.streams, WARM_STREAMS)
        short = msgspec.structs.replace(
            part, streams=streams, requests=1, output_tokens=WARM_TOKENS
        )
        for side in sides:
            self.send(side, short, seed=0)

    def keep(self, suite: str, case: str, side: str, number: int, **metrics: float) -> None:
        """Keep one sample and say it."""
        sample = Sample(suite=suite, case=case, side=side, round=number, metrics=metrics)
        self.samples.append(sample)
        said = ", ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if "cpu_ms." not in name
        )
        self.say(f"  {suite}, {case}, round {number + 1}, {side}: {said}")

    def keep_load(
        self, suite: str, case: str, side: Side, number: int, sent: tuple[Report, dict[str, float]]
    ) -> None:
        """Keep what a whole load measured."""
        report, cpu_s = sent
        self.keep(suite, case, side.name, number, **metrics_of(report, cpu_s))
        self.samples[-1] = msgspec.structs.replace(self.samples[-1], texts_digest=digest(report))

    def ceiling(
        self, suite: str, case: str, number: int, settings: Settings, prompt: int, output: int
    ) -> None:
        """Keep what llama.cpp does with this load in one static batch: no server, no sampling."""
        if self._peer is None:
            self.note(f"{CEILING}: not measured, there are no peers in this run")
            return
        threads, streams = str(settings.threads), str(settings.streams)
        command = [
            *(str(self._peer.batched_bench), "-m", str(settings.model), "-c", str(settings.cells)),
            *("-t", threads, "-tb", threads, "-npl", streams),
            *("-npp", str(prompt), "-ntg", str(output), "--output-format", "jsonl"),
        ]
        if settings.shared is not None:
            command.append("--kv-unified" if settings.shared else "--no-kv-unified")
        done = subprocess.run(command, capture_output=True, check=True, timeout=LOAD_S)
        line = next(line for line in done.stdout.splitlines() if line.startswith(b"{"))
        found = msgspec.json.decode(line, type=dict[str, float])
        self._keep_command(CEILING, command)
        self.keep(
            suite,
            case,
            CEILING,
            number,
            tokens_per_s=settings.streams * output / found["t"],
            prompt_tokens_per_s=found["speed_pp"],
            decode_tokens_per_s=found["speed_tg"],
        )

    def note(self, text: str) -> None:
        """Say once what a reader must know beside the figures."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(text)


def machine() -> dict[str, str]:
    """Describe this machine, as far as figures depend on it."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": f"{os.getloadavg()[0]:.2f}",
    }


def _ours(settings: Settings) -> Settings:
    """Leave out what only llama-server is told, so that one server of ours serves more loads."""
    return replace(settings, streams=0, shared=None, prompt_cache=True)
