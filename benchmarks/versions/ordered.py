"""Order a rollback while users stream, and ask again: how long until the old version takes it?

What this room does: the suite `rollback`: an appliance serves two versions of its hub, eight
streams run over gRPC, and an operator orders the way back over gRPC, time after time.
What it knows: time runs from before the order's call to the first Accepted event of the old
version, seen by a user who asks anew each time he is accepted by the other one; what starting a
command costs is not in it. The order is answered later, when it is written down. The version that
was left is forgiven, so that the appliance takes it again by itself.
What it never does: count a request twice, or leave one out.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc.aio
import numpy as np

from appliance.api.proto import deployment_pb2, inference_pb2, model_pb2
from appliance.api.proto.deployment_pb2_grpc import DeploymentServiceStub
from appliance.api.proto.inference_pb2_grpc import InferenceServiceStub
from appliance.api.proto.model_pb2_grpc import ModelServiceStub
from appliance.clock import monotonic_ms
from benchmarks.bars import Bar
from benchmarks.versions.whole import OURS, box
from tests.integration.fleet import DEMO_1, DEMO_2, MODEL, STRAIGHT, Load

if TYPE_CHECKING:
    from benchmarks.versions.bench import Bench

SUITE = "rollback"
CASE, STILL = "8 streams", "no rollback"
STREAMS, STREAM_TOKENS, NEW_TOKENS = 8, 200, 4
OLD, NEW = "1", "2"
_ROLLBACKS, _ROLLBACKS_SHORT = 100, 3
_WAIT_S, _LOOK_S = 60.0, 0.05
_LOADED = ("h3", "h4")

BARS: tuple[Bar, ...] = (
    Bar(suite=SUITE, case=CASE, metric="accepted_ms_p99", side=OURS, at_most=50.0),
    Bar(suite=SUITE, case=CASE, metric="failed", side=OURS, at_most=0.0, exact=True),
    Bar(suite=SUITE, case=CASE, metric="cut", side=OURS, at_most=0.0, exact=True),
    Bar(suite=SUITE, case=CASE, metric="first_token_ms", side=OURS, over_case=STILL, at_most=2.0),
)


def measure(bench: Bench) -> None:
    """Go back so many times, and ask as often without."""
    count = _ROLLBACKS_SHORT if bench.short else _ROLLBACKS
    for number in bench.rounds(1):
        with box(bench.scratch / f"rollback-{number}", DEMO_1) as one:
            one.fleet.publish(NEW, DEMO_2, STRAIGHT)
            one.ended(NEW)
            with Load(one.daemon, STREAMS, STREAM_TOKENS) as load:
                seen = asyncio.run(_back_and_forth(one.daemon.address, count))
        bench.notes += load.failures[:5]
        cut = sum(failure.endswith(" tokens") for failure in load.failures)
        bench.keep(
            SUITE,
            CASE,
            OURS,
            number,
            accepted_ms_p99=float(np.percentile(seen.accepted_ms, 99)),
            accepted_ms=float(np.median(seen.accepted_ms)),
            answered_ms_p99=float(np.percentile(seen.answered_ms, 99)),
            first_token_ms=float(np.median([answer.first_token_ms for answer in seen.back])),
            failed=float(len(load.failures) - cut),
            cut=float(cut + seen.cut),
            rollbacks=float(len(seen.back)),
            requests=float(len(load.versions) + seen.asked),
        )
        still_ms = float(np.median([answer.first_token_ms for answer in seen.still]))
        bench.keep(SUITE, STILL, OURS, number, first_token_ms=still_ms)


@dataclass(slots=True)
class _Answer:
    """One request: by which version it was accepted, and when it began, in ms from its sending."""

    version: str = ""
    accepted_at_ms: float = 0.0
    first_token_ms: float = 0.0
    tokens: int = 0
    accepted: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Seen:
    """What a user saw without a rollback, and of the old version after one; times in ms."""

    still: list[_Answer] = field(default_factory=list)
    back: list[_Answer] = field(default_factory=list)
    accepted_ms: list[float] = field(default_factory=list)
    answered_ms: list[float] = field(default_factory=list)
    asked: int = 0
    cut: int = 0


async def _back_and_forth(address: str, count: int) -> _Seen:
    seen = _Seen()
    async with grpc.aio.insecure_channel(address) as channel:
        operator, user = DeploymentServiceStub(channel), InferenceServiceStub(channel)
        for _ in range(count):
            await _forth(channel)
            (answer,) = await _asked_until(user, NEW, seen)
            seen.still.append(answer)
            began_ms = monotonic_ms()
            order = operator.Rollback(deployment_pb2.RollbackRequest(model=MODEL), timeout=_WAIT_S)
            answers = asyncio.create_task(_asked_until(user, OLD, seen))
            await order
            seen.answered_ms.append(monotonic_ms() - began_ms)
            seen.back.append((await answers)[-1])
            seen.accepted_ms.append(seen.back[-1].accepted_at_ms - began_ms)
            forgiven = deployment_pb2.ForgiveRequest(model=MODEL, version=NEW)
            await operator.Forgive(forgiven, timeout=_WAIT_S)
    return seen


async def _asked_until(user: InferenceServiceStub, version: str, seen: _Seen) -> list[_Answer]:
    """Ask, and again as soon as another version accepted; returns all, the last of `version`."""
    answers = list[_Answer]()
    async with asyncio.timeout(_WAIT_S), asyncio.TaskGroup() as group:
        while not answers or answers[-1].version != f"{MODEL}@{version}":
            answers.append(_Answer())
            group.create_task(_read(user, answers[-1]))
            await answers[-1].accepted.wait()
    seen.asked += len(answers)
    seen.cut += sum(answer.tokens != NEW_TOKENS for answer in answers)
    return answers


async def _forth(channel: grpc.aio.Channel) -> None:
    """Wait until the new version is active, and the old one stands by, loaded."""
    operator, models = DeploymentServiceStub(channel), ModelServiceStub(channel)
    async with asyncio.timeout(_WAIT_S):
        while True:
            overview = await operator.GetOverview(deployment_pb2.GetOverviewRequest())
            listed = await models.List(model_pb2.ListRequest())
            levels = {standby.label: standby.level for standby in listed.standbys}
            (model,) = overview.models
            if model.active.version == NEW and levels.get(f"{MODEL}@{OLD}") in _LOADED:
                return
            await asyncio.sleep(_LOOK_S)


async def _read(user: InferenceServiceStub, answer: _Answer) -> None:
    """Ask for a few tokens. Raises AioRpcError if it fails: none may."""
    stop = inference_pb2.StopOptions(max_tokens=NEW_TOKENS, ignore_eos=True)
    asked = inference_pb2.GenerateInput(model=MODEL, text="3 + 4 =", stop=stop, user="operator")
    request = inference_pb2.GenerateStreamRequest(input=asked)
    began_ms = monotonic_ms()
    async for said in user.GenerateStream(request, timeout=_WAIT_S):
        if said.event.accepted.version and not answer.version:
            answer.version, answer.accepted_at_ms = said.event.accepted.version, monotonic_ms()
            answer.accepted.set()
        if said.event.delta.token_ids:
            answer.first_token_ms = answer.first_token_ms or monotonic_ms() - began_ms
        answer.tokens += len(said.event.delta.token_ids)
