"""The edition that was chosen stays the same one, over restarts and as a standby."""

from __future__ import annotations

import asyncio
from pathlib import Path

from appliance.config import Deployments
from appliance.sync.agent import Agent
from appliance.sync.eligibility import Refusal
from appliance.sync.states import State
from tests.unit.sync.agent_world import MODEL, Box, digest_of, until


def box_with(tmp_path: Path, free_bytes: int) -> Box:
    box = Box(tmp_path, Deployments(tick_s=0.5, attempt_wait_s=60.0))
    box.hub.publish("1", smaller=True)
    box.hub.assign("1")
    box.free_bytes = free_bytes
    return box


async def taken(box: Box, agent: Agent) -> None:
    await agent.look()
    await until(lambda: box.host.serves[0] == "1" and not agent.conductors)


def loaded(box: Box) -> str:
    return Path(box.host.loaded[digest_of("1")].weights[0]).name


def test_what_was_chosen_is_written_down_and_fetched_alone(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, free_bytes=50)
        async with box.running() as (agent, orders):
            await taken(box, agent)
            assert loaded(box) == "m.gguf"
            assert box.host.roots == {f"{1:064d}"}  # nothing of the other edition
            assert [one.quantisation for one in await orders.history(1)] == ["Q4_0"]
        box.free_bytes = 1000  # a restart does not choose anew
        box.host.loaded.clear()
        box.host.active = None
        async with box.running() as (agent, _):
            await agent.booted()
            assert loaded(box) == "m.gguf"

    asyncio.run(test())


def test_what_was_chosen_is_not_chosen_anew_in_the_midst_of_a_deployment(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, free_bytes=50)
        box.closed = "not now"
        async with box.running() as (agent, _):
            await agent.look()
            await until(lambda: agent.conductors[MODEL].deployment.state is State.STAGED)
        box.free_bytes, box.closed = 1000, ""
        async with box.running() as (agent, _):
            await until(lambda: box.host.serves[0] == "1" and not agent.conductors)
            assert loaded(box) == "m.gguf"

    asyncio.run(test())


def test_what_does_not_fit_is_asked_again_and_taken_once_it_does(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, free_bytes=0)
        async with box.running() as (agent, _):
            await agent.look()
            refused = agent.refusals[MODEL]
            assert refused.refusal is Refusal.TOO_LITTLE_MEMORY
            assert refused.reason == "it needs 1 bytes of memory, 0 are available"
            box.free_bytes = 100
            await until(lambda: box.host.serves[0] == "1" and not agent.conductors)
            assert loaded(box) == "large.gguf"

    asyncio.run(test())


def test_an_operator_names_the_edition(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, free_bytes=1000)
        box.editions[MODEL] = "Q4_0"
        async with box.running() as (agent, _):
            await taken(box, agent)
            assert loaded(box) == "m.gguf"

    asyncio.run(test())
