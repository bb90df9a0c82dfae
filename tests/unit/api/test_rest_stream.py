"""A bug of ours in the middle of a stream is its last event, and nothing comes after it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import cast

from appliance.api.adapters import AdapterService
from appliance.api.generate import Service
from appliance.api.rest_server import RestServer
from appliance.api.resume import Streams
from appliance.config import Limits, Rest
from appliance.domain import Accepted, Client, ClientKind, Delta, Event, GenerateRequest
from appliance.observe.metrics import Metrics

READ_TIMEOUT_S = 10.0
BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
).encode()
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode()


class _BrokenService:
    """A use case with a bug: it fails after the first word."""

    def identify(self, listener: ClientKind, _authorization: str, _user: str) -> Client:
        return Client(id="loopback", kind=listener)

    def deadline(self, _timeout_s: float | None) -> float | None:
        return None

    async def generate(
        self, _client: Client, request: GenerateRequest
    ) -> AsyncGenerator[Event, None]:
        yield Accepted(request_id=request.request_id, version="m@1", seed=0, prompt_tokens=1)
        yield Delta(choice=0, text="word")
        raise RuntimeError


async def _answer() -> bytes:
    streams = Streams(Limits(), Metrics(version="test", series_max=16))
    server = RestServer(
        cast("Service", _BrokenService()),
        streams,
        cast("AdapterService", None),
        Rest(tcp="127.0.0.1:0", head_timeout_s=1),
        utc_ms=int,
    )
    await server.start()
    host, _, port = server.tcp_address.rpartition(":")
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(HEAD + BODY)
            answer = await reader.read()
            writer.close()
            return answer
    finally:
        await server.stop(0)


def test_a_bug_in_a_stream_is_its_last_event() -> None:
    answer = asyncio.run(_answer())
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b'"content":"word"' in answer
    assert b'"code":"INTERNAL"' in answer
    assert b"[DONE]" not in answer
    assert answer.endswith(b"\r\n0\r\n\r\n")
