"""A refusal comes at once and says when to try again; a loss of the worker shows in health."""

from __future__ import annotations

import asyncio
import os
import signal

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api.proto import inference_pb2 as pb
from tests.integration.grpc_calls import failure_of, inference, on_channel, text_input
from tests.integration.rest_calls import call, chat_body
from tests.integration.stack import Stack

ALL_SEQUENCES = pb.OutputOptions(n=16)
LONG = pb.StopOptions(max_tokens=900, ignore_eos=True)


def test_a_full_queue_refuses_on_both_faces_and_says_when_to_come_again(
    strict_stack: Stack,
) -> None:
    full = text_input("Go on", stop=LONG, output=ALL_SEQUENCES)

    async def work(channel: grpc.aio.Channel) -> None:
        stub = inference(channel)
        running = stub.GenerateStream(pb.GenerateStreamRequest(input=full))
        async for response in running:
            if response.event.HasField("delta"):
                break
        waiting = stub.GenerateStream(pb.GenerateStreamRequest(input=full))
        first = await waiting.read()
        assert isinstance(first, pb.GenerateStreamResponse)
        assert first.event.HasField("accepted")
        try:
            await stub.Generate(pb.GenerateRequest(input=text_input("x")))
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error)
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert failure.reason == "QUEUE_FULL"
            assert failure.retry_s is not None
            assert failure.retry_s > 0
        else:
            raise AssertionError("a third request was let in")
        answer = await asyncio.to_thread(
            call, strict_stack.rest_address, "POST", "/v1/chat/completions", chat_body()
        )
        assert (answer.status, answer.error["code"]) == (429, "QUEUE_FULL")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "true"
        waiting.cancel()
        running.cancel()

    on_channel(strict_stack.grpc_target, work)
    strict_stack.wait_idle()


def test_a_watch_sees_the_worker_go_and_come_back(strict_stack: Stack) -> None:
    pid = strict_stack.status().worker_pid

    async def work(channel: grpc.aio.Channel) -> list[int]:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="demo")
        )
        seen = [(await watch.read()).status]
        os.kill(pid, signal.SIGKILL)
        seen.append((await watch.read()).status)
        seen.append((await watch.read()).status)
        watch.cancel()
        return seen

    seen = on_channel(strict_stack.grpc_target, work)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert seen == [serving, health_pb2.HealthCheckResponse.NOT_SERVING, serving]
