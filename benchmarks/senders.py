"""Send one request as a client does, over REST or over gRPC.

What this room does: OpenAI's /v1/completions with token ids and /v1/chat/completions, streamed;
gRPC's GenerateStream; each message that comes back becomes an `Event`.
What it knows: both protocols; the same REST code serves every server.
What it never does: time anything, or send twice.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.traffic import Asked, Event, Load, RefusedError

if TYPE_CHECKING:
    from appliance.api.proto import inference_pb2 as pb

Send = Callable[[Asked], AsyncGenerator[Event, None]]
_HTTP_OK = 200
_GRPC_OPTIONS = (("grpc.max_receive_message_length", 16 * 1024 * 1024),)


@asynccontextmanager
async def sender(load: Load) -> AsyncIterator[Send]:
    """Open what the load's way needs; the block sends."""
    async with {"rest": rest, "grpc": grpc}[load.way](load) as send:
        yield send


@asynccontextmanager
async def rest(load: Load) -> AsyncIterator[Send]:
    """Send over REST: server-sent events, each parsed as JSON."""
    import aiohttp  # noqa: PLC0415 - each way pays only for its own library

    timeout = aiohttp.ClientTimeout(total=load.timeout_s)
    # llama-server closes kept connections at its own discretion: each request has its own.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(load.target, connector=connector, timeout=timeout) as session:

        async def send(one: Asked) -> AsyncGenerator[Event, None]:
            path, body = _body(load, one)
            try:
                async with session.post(path, json=body) as answer:
                    if answer.status != _HTTP_OK:
                        raise RefusedError(f"{answer.status}: {await answer.text()}")
                    async for line in answer.content:
                        if line.startswith((b"data: {", b"error: {")):
                            yield _rest_event(json.loads(line.partition(b": ")[2]), one)
            except aiohttp.ClientError as error:
                raise RefusedError(f"{type(error).__name__}: {error}") from error

        yield send


def _body(load: Load, one: Asked) -> tuple[str, dict[str, Any]]:
    body = {
        "model": "bench",
        "max_tokens": one.part.output_tokens,
        "temperature": 0,
        "ignore_eos": one.part.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
        **load.extra,
        **one.part.body,
    }
    if not one.chat:
        if one.schema:
            raise ValueError("over REST only a chat takes a schema")
        return "/v1/completions", body | {"prompt": one.token_ids}
    if one.schema:
        schema = {"name": "answer", "schema": one.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    body["messages"] = [{"role": "user", "content": one.chat}]
    return "/v1/chat/completions", body


def _rest_event(event: dict[str, Any], one: Asked) -> Event:
    if "choices" not in event:  # an error after the first event, as each server words it
        raise RefusedError(json.dumps(event.get("error", event)))
    tokens = (event.get("usage") or {}).get("completion_tokens", 0)
    if not event["choices"]:
        return Event(tokens=tokens)
    choice = event["choices"][0]
    finish = choice.get("finish_reason") or ""
    if finish == "length" and not tokens:
        tokens = one.part.output_tokens  # a server that tells no usage while it streams
    text = choice["delta"].get("content") if one.chat else choice["text"]
    return Event(text=text or "", tokens=tokens, finish=finish)


@asynccontextmanager
async def grpc(load: Load) -> AsyncIterator[Send]:
    """Send over gRPC: InferenceService.GenerateStream."""
    from grpc import aio  # noqa: PLC0415 - each way pays only for its own library

    from appliance.api.proto import inference_pb2 as pb  # noqa: PLC0415
    from appliance.api.proto.inference_pb2_grpc import InferenceServiceStub  # noqa: PLC0415

    async with aio.insecure_channel(load.target, options=_GRPC_OPTIONS) as channel:
        stub = InferenceServiceStub(channel)

        async def send(one: Asked) -> AsyncGenerator[Event, None]:
            asked = pb.GenerateInput(
                model="bench",
                token_ids=pb.TokenIds(ids=one.token_ids),
                sampling=pb.SamplingOptions(temperature=0),
                stop=pb.StopOptions(
                    max_tokens=one.part.output_tokens, ignore_eos=one.part.ignore_eos
                ),
            )
            if one.chat or one.part.body:
                raise ValueError("chats and fields of a body go over REST")
            if one.schema:
                asked.constraint.json_schema = json.dumps(one.schema)
            call = stub.GenerateStream(
                pb.GenerateStreamRequest(input=asked), timeout=load.timeout_s
            )
            try:
                async for message in call:
                    yield _grpc_event(message.event)
            except aio.AioRpcError as error:
                raise RefusedError(f"{error.code().name}: {error.details()}") from error
            finally:
                call.cancel()

        yield send


def _grpc_event(event: pb.StreamEvent) -> Event:
    kind = event.WhichOneof("event")
    if kind == "delta":
        return Event(event.delta.text, 0, "ended" if event.delta.finish_reason else "")
    if kind == "final":
        return Event("", event.final.usage.completion_tokens)
    return Event()
