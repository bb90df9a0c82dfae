"""Call the gRPC face from tests: one channel per call, statuses with their details."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from appliance.api.proto import inference_pb2 as pb
from appliance.api.proto import inference_pb2_grpc

CALL_TIMEOUT_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A status other than OK, taken apart."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    retry_s: float | None = None
    violations: tuple[tuple[str, str], ...] = ()
    resource: tuple[str, str] | None = None


def on_channel(target: str, work: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
    """Run `work` on a channel to `target`, on an event loop of its own, in bounded time."""

    async def main() -> T:
        async with asyncio.timeout(CALL_TIMEOUT_S), grpc.aio.insecure_channel(target) as channel:
            return await work(channel)

    return asyncio.run(main())


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Read the google.rpc details of an error."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it reads
    if status is None:
        return Failure(code=error.code(), message=error.details() or "")
    found: dict[str, object] = {}
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            found |= {
                "reason": info.reason,
                "domain": info.domain,
                "metadata": dict(info.metadata),
            }
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            found["retry_s"] = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            found["violations"] = tuple((v.field, v.description) for v in bad.field_violations)
        elif detail.Is(error_details_pb2.ResourceInfo.DESCRIPTOR):
            resource = error_details_pb2.ResourceInfo()
            detail.Unpack(resource)
            found["resource"] = (resource.resource_type, resource.resource_name)
    return Failure(code=error.code(), message=error.details() or "", **found)  # type: ignore[arg-type]


def expect_failure(target: str, work: Callable[[grpc.aio.Channel], Awaitable[object]]) -> Failure:
    """Run `work`, which must fail, and take its status apart."""
    try:
        answer = on_channel(target, work)
    except grpc.aio.AioRpcError as error:
        return failure_of(error)
    raise AssertionError(f"expected a failure, got {answer!r}")


def chat_input(text: str, **options: object) -> pb.ChatInput:
    """Make a chat of one user turn, greedy unless told otherwise."""
    given: dict[str, object] = {
        "model": "demo",
        "messages": [pb.Message(role=pb.Message.ROLE_USER, content=text)],
        "sampling": pb.SamplingOptions(temperature=0),
        "stop": pb.StopOptions(max_tokens=24),
        **options,
    }
    return pb.ChatInput(**given)  # type: ignore[arg-type]


def text_input(text: str, **options: object) -> pb.GenerateInput:
    """Make a text prompt, greedy unless told otherwise."""
    given: dict[str, object] = {
        "model": "demo",
        "text": text,
        "sampling": pb.SamplingOptions(temperature=0),
        "stop": pb.StopOptions(max_tokens=24),
        **options,
    }
    return pb.GenerateInput(**given)  # type: ignore[arg-type]


def inference(channel: grpc.aio.Channel) -> inference_pb2_grpc.InferenceServiceStub:
    """Make the stub."""
    return inference_pb2_grpc.InferenceServiceStub(channel)
