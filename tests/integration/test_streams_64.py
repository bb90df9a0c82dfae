"""Sixty-four streams over both faces at once, some cancelled, the worker killed among them.

Each stream ends in exactly one way, with no token lost or told twice, and nothing is held
afterwards. The seed is in the test's id.
"""

from __future__ import annotations

import asyncio
import enum
import json
import os
import random
import signal
from dataclasses import dataclass

import aiohttp
import grpc
import grpc.aio
import pytest

from appliance.api.proto import inference_pb2 as pb
from tests.integration.grpc_calls import inference
from tests.integration.stack import Stack

STREAMS = 64
TOKENS = 48
ENDS_TIMEOUT_S = 120.0


class End(enum.Enum):
    """The ways a stream may end; an error of the service is none of them here."""

    FINAL = "final"
    CANCELLED = "cancelled by its client"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one client does. `leave_after`: pieces after which it goes away, None: it stays."""

    index: int
    over_grpc: bool
    leave_after: int | None


class Kill:
    """Kill the worker once, when enough pieces have come in over all streams."""

    def __init__(self, stack: Stack, pieces: int) -> None:
        self._pid = stack.status().worker_pid
        self._left = pieces
        self.done = False

    def piece(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(self._pid, signal.SIGKILL)
            self.done = True


def _plans(rng: random.Random) -> list[Plan]:
    return [
        Plan(index, rng.random() < 0.5, rng.randrange(1, 12) if rng.random() < 0.3 else None)
        for index in range(STREAMS)
    ]


async def _grpc_stream(channel: grpc.aio.Channel, plan: Plan, kill: Kill) -> End:
    given = pb.ChatInput(
        model="demo",
        messages=[pb.Message(role=pb.Message.ROLE_USER, content=f"Add {plan.index} and 7.")],
        sampling=pb.SamplingOptions(temperature=0),
        stop=pb.StopOptions(max_tokens=TOKENS, ignore_eos=True),
    )
    call = inference(channel).ChatStream(pb.ChatStreamRequest(input=given))
    tokens, pieces, finals = 0, 0, []
    async for response in call:
        if response.event.HasField("final"):
            finals.append(response.event.final.usage.completion_tokens)
        if not response.event.HasField("delta"):
            continue
        tokens += len(response.event.delta.token_ids)
        pieces += 1
        kill.piece()
        if pieces == plan.leave_after:
            call.cancel()
            return End.CANCELLED
    assert finals == [TOKENS]
    assert tokens == TOKENS
    assert await call.code() is grpc.StatusCode.OK
    return End.FINAL


async def _rest_stream(session: aiohttp.ClientSession, url: str, plan: Plan, kill: Kill) -> End:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"Add {plan.index} and 7."}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    pieces, dones, usages = 0, 0, []
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200
        async for line in response.content:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                dones += 1
            elif data:
                event = json.loads(data)
                assert "error" not in event, event
                if event["usage"] is not None:
                    usages.append(event["usage"]["completion_tokens"])
                pieces += 1
                kill.piece()
            if pieces == plan.leave_after:
                response.close()
                return End.CANCELLED
    assert dones == 1
    assert usages == [TOKENS]
    return End.FINAL


async def _all(stack: Stack, plans: list[Plan], kill: Kill) -> list[End]:
    connector = aiohttp.TCPConnector(limit=STREAMS)
    async with (
        asyncio.timeout(ENDS_TIMEOUT_S),
        grpc.aio.insecure_channel(stack.grpc_target) as channel,
        aiohttp.ClientSession(connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = [
            group.create_task(
                _grpc_stream(channel, plan, kill)
                if plan.over_grpc
                else _rest_stream(session, stack.rest_url, plan, kill)
            )
            for plan in plans
        ]
    return [task.result() for task in tasks]


@pytest.mark.parametrize("seed", [1, 20])
def test_each_of_64_streams_ends_in_exactly_one_way(stack: Stack, seed: int) -> None:
    rng = random.Random(seed)
    plans = _plans(rng)
    restarts = stack.status().worker_restarts

    kill = Kill(stack, rng.randrange(100, 600))
    ends = asyncio.run(_all(stack, plans, kill))

    assert kill.done
    expected = [End.FINAL if plan.leave_after is None else End.CANCELLED for plan in plans]
    assert ends == expected
    stack.wait_idle()
    assert stack.status().worker_restarts == restarts + 1
