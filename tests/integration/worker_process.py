"""Hold real worker and text processes over real sockets, the way the daemon does.

What this room does: start, handshake, submit, collect; every wait is bounded.
What it knows: the frames of `runtime.wire`.
What it never does: stand in for a part of the program.
"""

# ruff: noqa: ANN401 - fields of frames are passed through by name

from __future__ import annotations

import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.domain import (
    ChatPrompt,
    FinishReason,
    Message,
    Prompt,
    SamplingOptions,
    StopOptions,
    TokenLogprob,
)
from appliance.runtime import wire
from appliance.runtime.adapters import file_key
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

WAIT_S = 120.0
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "appliance/models/demo/demo-2.q8_0.gguf"
GREEDY = SamplingOptions(temperature=0.0)


@dataclass
class Answer:
    """What one choice came to."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None


@dataclass
class Outcome:
    """What one ticket came to: its choices, or its failure."""

    choices: dict[int, Answer] = field(default_factory=dict)
    failure: wire.Failure | None = None
    is_started: bool = False
    prefills: list[tuple[int, int]] = field(default_factory=list)

    @property
    def only(self) -> Answer:
        assert self.failure is None, self.failure
        (answer,) = self.choices.values()
        return answer


class Child:
    """One of our processes and our end of its socket."""

    def __init__(self, kind: str, frame_type: object) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "appliance", kind, "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        ours.settimeout(WAIT_S)
        self.socket = ours
        self._stderr = b""
        self._reader = wire.FrameReader(frame_type)
        self._frames: deque[Any] = deque()

    def send(self, frame: wire.Frame) -> None:
        self.socket.sendall(wire.encode(frame))

    def receive(self) -> Any:
        while not self._frames:
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()

    def close(self) -> tuple[int, bytes]:
        """Close the socket; returns the exit code and all of stderr. May be called again."""
        self.socket.close()
        if self.process.stderr is not None and not self.process.stderr.closed:
            self._stderr = self.process.communicate(timeout=10)[1]
        return self.process.returncode, self._stderr


class Worker(Child):
    """A worker that acknowledges each step, unless `acknowledges` is turned off."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__("worker", wire.FromWorker)
        self.acknowledges = True
        self.steps: list[wire.Step] = []
        self.loading: list[float] = []
        self.embedded: dict[int, wire.Embedded | wire.Failure] = {}
        self.adapters: dict[str, wire.AdapterLoaded | wire.AdapterFailed] = {}
        self._next_ticket = 0
        self._count: dict[int, int] = {}
        defaults: dict[str, Any] = {
            "context_tokens": 512,
            "cells_total": 4096,
            "sequences_max": 16,
            "batch_tokens": 128,
            "threads_decode": 1,
            "threads_prefill": 1,
            "gpu_layers": 0,
            "step_ms_while_streaming": 300.0,
            "step_ms_max": 1000.0,
            "queue_requests_max": 64,
            "output_reserve_tokens": 32,
            "ack_window_steps": 16,
        }
        engine = wire.EngineOptions(path=str(path), **(defaults | options))
        self.send(wire.Start(protocol_version=wire.PROTOCOL_VERSION, engine=engine))
        hello = self.receive()
        assert isinstance(hello, wire.Hello)
        assert hello.pid == self.process.pid

    def ready(self) -> wire.Ready | wire.LoadFailed:
        while True:
            frame = self.receive()
            if isinstance(frame, wire.Loading):
                self.loading.append(frame.ratio)
            else:
                assert isinstance(frame, wire.Ready | wire.LoadFailed)
                return frame

    def submit(self, prompt_ids: Iterable[int], **fields: Any) -> int:
        self._next_ticket += 1
        ticket = self._next_ticket
        values: dict[str, Any] = {
            "n": 1,
            "seed": 1,
            "sampling": GREEDY,
            "stop": StopOptions(max_tokens=24),
        }
        values |= fields
        self._count[ticket] = max(1, values["n"] - len(values.get("ended", ())))
        self.send(wire.Submit(ticket=ticket, prompt_ids=tuple(prompt_ids), **values))
        return ticket

    def embed(self, inputs: Iterable[Iterable[int]], *, normalize: bool = True) -> int:
        self._next_ticket += 1
        token_lists = tuple(tuple(token_ids) for token_ids in inputs)
        frame = wire.SubmitEmbed(ticket=self._next_ticket, inputs=token_lists, normalize=normalize)
        self.send(frame)
        return self._next_ticket

    def load_adapter(self, key: str, path: Path, *, scale: float = 1.0) -> None:
        """Ask for an adapter; what comes of it is in `adapters` after a while."""
        self.send(
            wire.LoadAdapter(key=key, path=str(path), scale=scale, file_key=file_key(path.stat()))
        )

    def adapter(self, key: str) -> wire.AdapterLoaded | wire.AdapterFailed:
        """Wait for what became of an adapter."""
        while key not in self.adapters:
            self.step()
        return self.adapters.pop(key)

    def step(self) -> wire.Step:
        """Wait for the next Step; keep embeddings and adapters that come before it."""
        while True:
            frame = self.receive()
            if isinstance(frame, wire.Step):
                self.steps.append(frame)
                if self.acknowledges:
                    self.send(wire.Ack(step=frame.step))
                return frame
            if isinstance(frame, wire.Embedded):
                self.embedded[frame.ticket] = frame
            elif isinstance(frame, wire.AdapterLoaded | wire.AdapterFailed):
                self.adapters[frame.key] = frame
            else:
                assert isinstance(frame, wire.TicketFailed)
                self.embedded[frame.failure.ticket] = frame.failure

    def collect(self, *tickets: int) -> dict[int, Outcome]:
        """Read steps until each of the tickets has ended."""
        outcomes = {ticket: Outcome() for ticket in tickets}
        open_tickets = set(tickets)
        while open_tickets:
            step = self.step()
            fold(step, outcomes)
            open_tickets = {
                ticket
                for ticket, outcome in outcomes.items()
                if outcome.failure is None
                and sum(1 for answer in outcome.choices.values() if answer.finish)
                < self._count[ticket]
            }
        return outcomes

    def run(self, prompt_ids: Iterable[int], **fields: Any) -> Outcome:
        ticket = self.submit(prompt_ids, **fields)
        return self.collect(ticket)[ticket]

    def idle(self) -> wire.Step:
        """Read until a step says that nothing is held."""
        while True:
            step = self.step()
            if not step.gauges.running and not step.gauges.waiting:
                return step


def fold(step: wire.Step, outcomes: dict[int, Outcome]) -> None:
    for ticket in step.started:
        if ticket in outcomes:
            assert not outcomes[ticket].is_started
            outcomes[ticket].is_started = True
    for prefill in step.prefills:
        if prefill.ticket in outcomes:
            outcomes[prefill.ticket].prefills.append((prefill.done, prefill.total))
    for news in step.news:
        if news.ticket in outcomes:
            answer = outcomes[news.ticket].choices.setdefault(news.choice, Answer())
            assert answer.finish is None, "news after the end"
            answer.token_ids += news.token_ids
            answer.text += news.text
            answer.logprobs += news.logprobs
            answer.finish = news.finish
    for failure in step.failures:
        if failure.ticket in outcomes:
            assert outcomes[failure.ticket].failure is None
            outcomes[failure.ticket].failure = failure


class TextProcess(Child):
    """The text process with one vocabulary open."""

    def __init__(self, path: Path) -> None:
        super().__init__("text-worker", wire.FromText)
        assert isinstance(self.receive(), wire.Hello)
        self.send(wire.OpenVocabulary(ticket=1, key="demo", path=str(path)))
        assert isinstance(self.receive(), wire.Opened)

    def chat(self, text: str) -> tuple[int, ...]:
        return self.prepare(ChatPrompt(messages=(Message(role="user", content=text),))).token_ids

    def prepare(self, prompt: Prompt, **fields: Any) -> wire.Prepared:
        self.send(wire.Prepare(ticket=2, key="demo", prompt=prompt, **fields))
        answer = self.receive()
        assert isinstance(answer, wire.Prepared), answer
        return answer


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    """Start workers that are ended with the test, however that ends."""
    running: list[Worker] = []

    def begin(path: Path, **options: object) -> Worker:
        running.append(Worker(path, **options))
        return running[-1]

    yield begin
    for worker in running:
        worker.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    return path
