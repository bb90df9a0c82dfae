"""Put load on one server and time every token: the client's process.

What this room does: N streams, each sending its requests one after another, over REST (OpenAI's
/v1/completions with token ids, streamed) or over gRPC; one JSON object with the timings on stdout.
What it knows: both protocols, as a client does; the same REST code serves every server.
What it never does: start a server, or compare.

It is a process of its own so that its CPU time is the client's and nobody else's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. `extra` goes into every REST request, for what only one server knows."""

    way: str  # "rest" or "grpc"
    target: str  # http://HOST:PORT, or unix:PATH
    streams: int
    requests: int  # of each stream
    prompt_tokens: int
    output_tokens: int
    first_token_id: int  # prompts are drawn from this id ...
    last_token_id: int  # ... to this one
    seed: int
    timeout_s: float
    extra: dict[str, Any] = {}


class Timed(msgspec.Struct, kw_only=True):
    """One request: when its tokens came, in seconds after it was sent."""

    arrivals_s: list[float]
    total_s: float = 0.0
    output_tokens: int = 0
    text: str = ""


class Report(msgspec.Struct, kw_only=True):
    """One load: all its requests together."""

    wall_s: float
    client_cpu_s: float
    output_tokens: int
    first_token_ms: list[float]
    gap_ms: list[float]  # between two deltas of one stream
    request_ms: list[float]
    texts_digest: str  # equal digests: the servers gave the same texts


Send = Callable[[list[int]], AsyncIterator[tuple[str, int]]]  # → (text, tokens so far or 0)


def prompts(load: Load) -> list[list[int]]:
    """Draw a prompt for each request; no two are alike, and the same seed draws the same."""
    rng = np.random.default_rng(load.seed)
    shape = (load.streams * load.requests, load.prompt_tokens)
    drawn: list[list[int]] = rng.integers(
        load.first_token_id, load.last_token_id, shape, endpoint=True
    ).tolist()
    return drawn


@asynccontextmanager
async def rest(load: Load) -> AsyncIterator[Send]:
    """Send over REST: server-sent events, each parsed as JSON."""
    import aiohttp  # noqa: PLC0415 - each way pays only for its own library

    timeout = aiohttp.ClientTimeout(total=load.timeout_s)
    # llama-server closes kept connections at its own discretion: each request has its own.
    connector = aiohttp.TCPConnector(limit=load.streams, force_close=True)
    body = {
        "model": "bench",
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **load.extra,
    }
    async with aiohttp.ClientSession(load.target, connector=connector, timeout=timeout) as session:

        async def send(prompt: list[int]) -> AsyncIterator[tuple[str, int]]:
            asked = {**body, "prompt": prompt}
            async with session.post("/v1/completions", json=asked) as answer:
                if answer.status != 200:  # noqa: PLR2004 - HTTP's OK
                    raise RuntimeError(f"{answer.status}: {await answer.text()}")
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        usage = event.get("usage") or {}
                        text = event["choices"][0]["text"] if event["choices"] else ""
                        yield text, usage.get("completion_tokens", 0)

        yield send


@asynccontextmanager
async def grpc(load: Load) -> AsyncIterator[Send]:
    """Send over gRPC: GenerateStream."""
    from grpc import aio  # noqa: PLC0415 - each way pays only for its own library

    from appliance.api.proto import inference_pb2 as pb  # noqa: PLC0415
    from appliance.api.proto.inference_pb2_grpc import InferenceServiceStub  # noqa: PLC0415

    async with aio.insecure_channel(load.target) as channel:
        stub = InferenceServiceStub(channel)

        async def send(prompt: list[int]) -> AsyncIterator[tuple[str, int]]:
            asked = pb.GenerateInput(
                model="bench",
                token_ids=pb.TokenIds(ids=prompt),
                sampling=pb.SamplingOptions(temperature=0),
                stop=pb.StopOptions(max_tokens=load.output_tokens, ignore_eos=True),
            )
            request = pb.GenerateStreamRequest(input=asked)
            async for message in stub.GenerateStream(request, timeout=load.timeout_s):
                kind = message.event.WhichOneof("event")
                if kind == "delta":
                    yield message.event.delta.text, 0
                elif kind == "final":
                    yield "", message.event.final.usage.completion_tokens

        yield send


async def run(load: Load) -> Report:
    """Send everything and wait for the last answer."""
    drawn = prompts(load)
    timed: list[Timed] = []
    async with {"rest": rest, "grpc": grpc}[load.way](load) as send:
        cpu, started = _cpu_s(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_stream(send, drawn[number :: load.streams]))
                for number in range(load.streams)
            ]
        wall_s, client_cpu_s = time.perf_counter() - started, _cpu_s() - cpu
        timed = [one for task in tasks for one in task.result()]
    return _report(timed, wall_s, client_cpu_s)


async def _stream(send: Send, drawn: list[list[int]]) -> list[Timed]:
    timed = []
    for prompt in drawn:
        one, started = Timed(arrivals_s=[]), time.perf_counter()
        async for text, output_tokens in send(prompt):
            if text:
                one.arrivals_s.append(time.perf_counter() - started)
                one.text += text
            one.output_tokens = output_tokens or one.output_tokens
        one.total_s = time.perf_counter() - started
        timed.append(one)
    return timed


def _report(timed: list[Timed], wall_s: float, client_cpu_s: float) -> Report:
    gaps = [np.diff(one.arrivals_s) for one in timed]
    texts = hashlib.sha256("\0".join(one.text for one in timed).encode()).hexdigest()
    return Report(
        wall_s=wall_s,
        client_cpu_s=client_cpu_s,
        output_tokens=sum(one.output_tokens for one in timed),
        first_token_ms=[one.arrivals_s[0] * 1000 for one in timed],
        gap_ms=(np.concatenate(gaps) * 1000).round(3).tolist(),
        request_ms=[one.total_s * 1000 for one in timed],
        texts_digest=texts[:16],
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.argv[1].encode(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(asked))))
