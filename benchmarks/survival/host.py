"""Host versions as the runtime does, as far as a disk and processes can tell.

What this room does: a process for each loaded version, which maps its files and ends when this
process does; who is active, on standby, on trial.
What it knows: what a worker says is in its files is what it would serve.
What it never does: touch the state directory, or outlive its process.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from appliance.contract.release import Expectation
from appliance.domain import (
    Answer,
    Digest,
    HostedVersion,
    Loaded,
    NoRoom,
    Sample,
    SwitchReport,
    Traffic,
    Window,
)
from appliance.errors import DeploymentRefused, ModelUnloadable, WorkerLost

_WORKER = Path(__file__).with_name("worker.py")
SAMPLES = 10


@dataclass(kw_only=True, slots=True)
class Mood:
    """How unkind the world is. is_alone: two versions have no room. strands: nothing loads again.

    bad: the version that answers users with errors; fails: the one that fails its checks.
    """

    bad: str = ""
    fails: str = ""
    is_alone: bool = False
    strands: bool = False


@dataclass(slots=True)
class FileHost:
    """Satisfies `ModelHost` and `Examiner`."""

    mood: Mood
    active: Digest | None = None
    traffic: Traffic = field(default_factory=Traffic)
    workers: dict[Digest, subprocess.Popen[str]] = field(default_factory=dict)
    versions: dict[Digest, str] = field(default_factory=dict)

    async def load(self, hosted: HostedVersion, instead_of: Digest | None) -> Loaded | NoRoom:
        """Start a process for it."""
        if instead_of not in (None, hosted.digest):
            await self.unload(instead_of)
        others = set(self.workers) - {hosted.digest}
        if self.mood.is_alone and others:
            return NoRoom(needed_bytes=2, free_bytes=1)
        if self.mood.strands and instead_of is not None and hosted.digest in self.versions:
            raise ModelUnloadable(path=hosted.version.label, reason="it does not load again")
        if hosted.digest not in self.workers:
            paths = (*hosted.weights, *(one.path for one in hosted.adapters.values()))
            worker = await asyncio.to_thread(_started, paths)
            if worker is None:
                raise WorkerLost(cause="it ended while loading", tokens_sent=0)
            self.workers[hosted.digest] = worker
        self.versions[hosted.digest] = hosted.version.version
        return Loaded(digest=hosted.digest, load_ms=1.0, memory_bytes=1, tokenizer_sha256="a" * 64)

    async def unload(self, digest: Digest) -> None:
        """End its process."""
        worker = self.workers.pop(digest, None)
        if worker is not None:
            await asyncio.to_thread(_ended, worker)
        if self.active == digest and not self.mood.is_alone:
            self.active = None

    async def direct(self, model: str, traffic: Traffic) -> None:
        """Remember who is on trial."""
        del model
        self.traffic = traffic

    async def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        """Change who is active, if it is loaded."""
        previous = self.active
        if previous not in (to, expecting):
            raise DeploymentRefused(model=model, action="switch", reason="another is active")
        if to not in self.workers:
            raise WorkerLost(cause="it is not loaded", tokens_sent=0)
        self.active, self.traffic = to, Traffic()
        return SwitchReport(
            model=model,
            previous=previous or to,
            to=to,
            utc_ms=0,
            flip_ms=0.0,
            moved_count=0,
            left_count=0,
            reason="",
        )

    async def stand_by(self, model: str, hosted: HostedVersion | None) -> None:
        """Keep a version loaded, and no third one."""
        del model
        if hosted is not None and not self.mood.is_alone:
            await self.load(hosted, None)
        kept = {self.active, hosted.digest if hosted else None}
        for digest in set(self.workers) - kept:
            await self.unload(digest)

    async def ask(self, digest: Digest, prompt: Expectation) -> Answer:
        """Answer what is expected, or not."""
        fails = self.versions.get(digest) == self.mood.fails
        return Answer(text="" if fails else prompt.contains, token_count=4, decode_ms=4.0)

    def window(self, digest: Digest) -> Window:
        """Read made-up requests."""
        is_candidate = digest == self.traffic.candidate
        shadow = self.traffic.shadow_share > 0 and is_candidate
        is_bad = self.versions.get(digest) == self.mood.bad and is_candidate and not shadow
        error = "DECODE_FAILED" if is_bad else ""
        return Window(
            samples=(Sample(error=error, first_token_ms=9.0, is_shadow=shadow),) * SAMPLES
        )

    def serves(self) -> list[str]:
        """Ask the active worker what is in its files; nothing if there is none."""
        worker = self.workers.get(self.active) if self.active else None
        if worker is None or worker.stdin is None or worker.stdout is None:
            return []
        worker.stdin.write("?\n")
        worker.stdin.flush()
        return [str(one) for one in json.loads(worker.stdout.readline())]

    def close(self) -> None:
        """End every process."""
        for worker in self.workers.values():
            _ended(worker)
        self.workers.clear()


def _started(paths: tuple[str, ...]) -> subprocess.Popen[str] | None:
    """Start a worker and wait until its files are mapped."""
    command = [sys.executable, "-I", "-S", str(_WORKER), *paths]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={}
    )
    assert worker.stdout is not None
    if not worker.stdout.readline():
        _ended(worker)
        return None
    return worker


def _ended(worker: subprocess.Popen[str]) -> None:
    for stream in (worker.stdin, worker.stdout):
        if stream is not None:
            stream.close()
    worker.wait(10)
