"""An appliance takes what is signed for it, keeps what is good, and does as its operator says."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path

import msgspec
import pytest
from pysqlite3 import dbapi2 as sqlite

from appliance.config import Deployments
from appliance.contract.release import Expectation, HealthPack
from appliance.errors import DeploymentRefused, HubUnreachable
from appliance.sync.agent import Agent
from appliance.sync.eligibility import Refusal, Wish
from appliance.sync.inbox import Inbox
from appliance.sync.states import State
from tests.unit.sync.agent_world import MODEL, QUICK, Box, digest_of, until

SETTINGS = Deployments(tick_s=0.5)
CAREFUL = msgspec.structs.replace(QUICK, needs_approval=True)


def run(work: Coroutine[None, None, None]) -> None:
    asyncio.run(work)


def box_with(tmp_path: Path, *versions: str, settings: Deployments = SETTINGS) -> Box:
    """Make a box whose hub has published some versions."""
    box = Box(tmp_path, settings)
    for version in versions:
        box.hub.publish(version)
    return box


async def take(box: Box, agent: Agent, *versions: str) -> None:
    """Have versions deployed, one after another."""
    for version in versions:
        box.hub.assign(version)
        await agent.look()
        await until(lambda wanted=version: box.host.serves[0] == wanted)  # type: ignore[misc]
        await until(lambda: not agent.conductors)


def test_a_signed_version_is_taken_and_the_one_before_stands_by(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, orders):
            await take(box, agent, "1", "2")
            assert box.host.serves == ("2", "1", 0.0)
            states = [(one.version, one.state) for one in await orders.history(10)]
            assert states == [("2", State.COMMITTED), ("1", State.COMMITTED)]
            assert box.host.roots == {f"{1:064d}", f"{2:064d}"}
            assert agent.refusals[MODEL].refusal is Refusal.ACTIVE

    run(test())


def test_a_restart_serves_what_is_written_down_without_the_hub(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, _):
            await take(box, agent, "1", "2")
        again = Box(tmp_path, SETTINGS)
        again.hub.is_down = True
        async with again.running() as (agent, _):
            await until(lambda: again.host.serves == ("2", "1", 0.0))
            with pytest.raises(HubUnreachable):
                await agent.look()
            assert "no route" in agent.news_fault
            assert again.host.serves == ("2", "1", 0.0)
        hosted.append(again.host.loaded[digest_of("2")].weights[0])

    hosted: list[str] = []
    run(test())
    assert Path(hosted[0]).readlink() == Path(f"blobs/{2:064d}")


def test_what_nobody_names_any_more_is_let_go_at_an_end_and_at_the_start(tmp_path: Path) -> None:
    def laid_out() -> set[str]:
        return {entry.name for entry in (tmp_path / "versions").iterdir()}

    async def test() -> None:
        box = box_with(tmp_path, "1", "2", "3")
        async with box.running() as (agent, _):
            await take(box, agent, "1", "2", "3")
            assert laid_out() == {f"{2:064d}", f"{3:064d}"}
        left = tmp_path / "versions" / f".{3:064d}.4711"  # by a process that was killed
        left.mkdir()
        again = Box(tmp_path, SETTINGS)
        async with again.running() as (agent, _):
            await agent.look()
            assert again.host.roots == {f"{2:064d}", f"{3:064d}"}
            assert laid_out() == {f"{2:064d}", f"{3:064d}"}

    run(test())


def test_a_version_that_gives_errors_is_left_alone_and_users_never_see_it(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        box.host.bad.add(digest_of("2"))
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: not agent.conductors)
            assert box.host.serves == ("1", "", 0.0)
            assert set(box.host.loaded) == {digest_of("1")}
            assert agent.refusals[MODEL].refusal is Refusal.QUARANTINED
            assert (await orders.history(1))[0].state is State.ABORTED
            box.host.bad.clear()
            await orders.forgive("admin", MODEL, "2")
            await until(lambda: box.host.serves == ("2", "1", 0.0))

    run(test())


def test_a_version_that_fails_its_health_pack_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")
        pack = HealthPack(prompts=(Expectation(prompt="2 + 2?", contains="four"),))
        box.hub.publish("2", health=pack)
        box.host.answers[digest_of("2")] = "five"
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: not agent.conductors)
            ended = (await orders.history(1))[0]
            assert (ended.state, ended.cause) == (State.ABORTED, "check_failed")
            assert "answer 1" in ended.reason

    run(test())


def test_a_version_that_takes_far_more_memory_than_was_signed_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            box.host.memory_bytes = 1 << 40
            box.hub.assign("2")
            await agent.look()
            await until(lambda: not agent.conductors)
            ended = (await orders.history(1))[0]
            assert (ended.state, ended.cause) == (State.ABORTED, "check_failed")
            assert f"takes {1 << 40} bytes" in ended.reason
            assert box.host.serves == ("1", "", 0.0)

    run(test())


def test_an_operator_rolls_back_and_it_is_recorded(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, orders):
            await take(box, agent, "1", "2")
            done = await orders.rollback("admin", MODEL)
            assert (done.deployment.state, done.is_durable) == (State.ROLLED_BACK, True)
            assert box.host.serves == ("1", "", 0.0)
            with pytest.raises(DeploymentRefused):
                await orders.rollback("admin", MODEL)
            await agent.look()
            assert agent.refusals[MODEL].refusal is Refusal.QUARANTINED
            assert box.record == [
                ("admin", "rollback", MODEL, "ok"),
                ("admin", "rollback", MODEL, "DEPLOYMENT_REFUSED"),
            ]
        again = Box(tmp_path, SETTINGS)
        async with again.running():
            await until(lambda: again.host.serves == ("1", "", 0.0))

    run(test())


def test_a_rollback_during_a_trial_ends_the_trial(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")
        box.hub.publish("2", CAREFUL)
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
            done = await orders.rollback("admin", MODEL)
            assert done.deployment.state is State.ABORTED
            assert box.host.serves == ("1", "", 0.0)

    run(test())


def state_of(agent: Agent) -> State | None:
    live = agent.conductors.get(MODEL)
    return live.deployment.state if live else None


def test_a_person_approves_and_only_what_waits_for_it(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")
        box.hub.publish("2", CAREFUL)
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            with pytest.raises(DeploymentRefused):
                await orders.approve("admin", MODEL)
            box.closed = "the window opens later"
            box.hub.assign("2")
            await agent.look()
            await until(lambda: state_of(agent) is State.STAGED)
            with pytest.raises(DeploymentRefused):
                await orders.approve("admin", MODEL)
            await until(lambda: orders.outlook()[0].waiting_for == box.closed)
            box.closed = ""
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
            await orders.approve("admin", MODEL)
            await until(lambda: box.host.serves == ("2", "1", 0.0))

    run(test())


def test_a_cancelled_version_is_left_alone(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")
        box.hub.publish("2", CAREFUL)
        async with box.running() as (agent, orders):
            with pytest.raises(DeploymentRefused):
                await orders.cancel("admin", MODEL)
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
            await orders.cancel("admin", MODEL)
            await until(lambda: not agent.conductors)
            assert agent.refusals[MODEL].refusal is Refusal.QUARANTINED

    run(test())


def test_a_newer_assignment_supersedes_what_is_under_way(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "3")
        box.hub.publish("2", CAREFUL)
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
            await take(box, agent, "3")
            ends = [(one.version, one.state, one.cause) for one in await orders.history(2)]
            assert ends == [
                ("3", State.COMMITTED, ""),
                ("2", State.ABORTED, "superseded"),
            ]

    run(test())


def test_a_halted_assignment_stops_what_has_begun(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")
        box.hub.publish("2", CAREFUL)
        async with box.running() as (agent, _):
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
            box.hub.assign("2", halt=True)
            agent.hint()
            await until(lambda: not agent.conductors)
            assert agent.refusals[MODEL].refusal is Refusal.HALTED

    run(test())


def test_a_revoked_standby_is_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, orders):
            await take(box, agent, "1", "2")
            box.hub.revoke("1")
            await agent.look()
            assert box.host.serves == ("2", "", 0.0)
            with pytest.raises(DeploymentRefused):
                await orders.rollback("admin", MODEL)

    run(test())


@pytest.mark.parametrize(("policy", "expected"), [("warn", "2"), ("switch", "1"), ("stop", "1")])
def test_a_revoked_active_version_follows_the_sites_policy(
    tmp_path: Path, policy: str, expected: str
) -> None:
    async def test() -> None:
        settings = msgspec.convert({"tick_s": 0.5, "revoked_active": policy}, Deployments)
        box = box_with(tmp_path, "1", "2", settings=settings)
        async with box.running() as (agent, _):
            await take(box, agent, "1", "2")
            box.hub.revoke("2")
            await agent.look()
            await until(lambda: not agent.conductors)
            assert box.host.serves[0] == expected

    run(test())


def test_a_revoked_version_without_another_is_stopped_where_policy_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        settings = Deployments(tick_s=0.5, revoked_active="stop")
        box = box_with(tmp_path, "1", settings=settings)
        async with box.running() as (agent, _):
            await take(box, agent, "1")
            box.hub.revoke("1")
            await agent.look()
            assert box.host.serves == ("", "", 0.0)

    run(test())


def test_a_revoked_candidate_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")
        box.hub.publish("2", CAREFUL)
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
            box.hub.revoke("2")
            await agent.look()
            await until(lambda: not agent.conductors)
            assert (await orders.history(1))[0].cause == "revoked"

    run(test())


def test_pins_and_holds_keep_what_is_there(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, orders):
            await take(box, agent, "1")
            await orders.pin("admin", MODEL, "1")
            box.hub.assign("2")
            await agent.look()
            assert agent.refusals[MODEL].refusal is Refusal.PINNED
            await orders.pin("admin", MODEL, "")
            await orders.hold("admin", MODEL, is_held=True)
            assert orders.outlook()[0].wish == Wish(is_held=True)
        async with box.running() as (agent, orders):
            await until(lambda: MODEL in agent.refusals)
            assert agent.refusals[MODEL].refusal is Refusal.HELD

    run(test())


def test_a_version_that_can_not_be_loaded_any_more_is_undone_at_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, _):
            await take(box, agent, "1", "2")
        again = box_with(tmp_path, "1", "2")
        again.host.unloadable.add(digest_of("2"))
        async with again.running() as (agent, orders):
            await until(lambda: again.host.serves == ("1", "", 0.0))
            await until(lambda: not agent.conductors)
            ended = (await orders.history(1))[0]
            assert (ended.state, ended.cause) == (State.ROLLED_BACK, "crash_loop")

    run(test())


def test_a_version_that_does_not_stay_up_is_left_for_its_standby(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, _):
            await take(box, agent, "1", "2")
            agent.version_failed(digest_of("2"), "5 restarts in 10 minutes")
            await until(lambda: box.host.serves == ("1", "", 0.0))
            await until(lambda: digest_of("2") in agent.journal.memory.quarantine)

    run(test())


def test_a_version_that_turns_bad_after_its_commit_is_regretted(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, orders):
            await take(box, agent, "1", "2")
            box.host.bad.add(digest_of("2"))
            await until(lambda: box.host.serves == ("1", "", 0.0))
            await until(lambda: not agent.conductors)
            assert (await orders.history(1))[0].cause == "regret"

    run(test())


@pytest.mark.parametrize("is_past", [False, True], ids=["within", "past"])
def test_a_version_is_regretted_over_a_restart_for_as_long_as_it_may_be(
    tmp_path: Path, *, is_past: bool
) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, _):
            await take(box, agent, "1", "2")
        again = Box(tmp_path, SETTINGS)
        again.hub, again.now_ms = box.hub, box.now_ms
        again.now_ms += 1000 * SETTINGS.regret_s if is_past else 0
        again.host.bad.add(digest_of("2"))
        async with again.running() as (agent, orders):
            if is_past:
                ten_ticks_on = again.now_ms + 10_000 * SETTINGS.tick_s
                await until(lambda: again.now_ms > ten_ticks_on)
                assert again.host.serves == ("2", "1", 0.0)
                return
            await until(lambda: again.host.serves == ("1", "", 0.0))
            await until(lambda: not agent.conductors)
            assert (await orders.history(1))[0].cause == "regret"

    run(test())


def test_a_deployment_under_way_goes_on_after_a_clean_restart(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")
        box.hub.publish("2", CAREFUL)
        async with box.running() as (agent, _):
            await take(box, agent, "1")
            box.hub.assign("2")
            await agent.look()
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
        again = Box(tmp_path, SETTINGS)
        again.hub = box.hub
        async with again.running() as (agent, orders):
            await until(lambda: state_of(agent) is State.AWAITING_APPROVAL)
            await orders.approve("admin", MODEL)
            await until(lambda: again.host.serves == ("2", "1", 0.0))

    run(test())


def test_what_a_dropped_bundle_says_is_acted_on(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1")

        async def take_in(path: Path) -> None:
            box.hub.assign(path.stem)

        async with box.running(Inbox(tmp_path / "inbox", take_in, retry_ms_max=1000)):
            (tmp_path / "inbox" / "1.tar").write_bytes(b"signed")
            await until(lambda: box.host.serves == ("1", "", 0.0))

    (tmp_path / "inbox").mkdir()
    run(test())


def test_a_rollback_does_not_wait_for_a_disk_that_can_not_be_written(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, orders):
            await take(box, agent, "1", "2")
            other = sqlite.connect(str(tmp_path / "state.db"), isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.TaskGroup() as group:
                order = group.create_task(orders.rollback("admin", MODEL))
                await until(lambda: box.host.serves[0] == "1")
                assert not order.done()
                other.execute("ROLLBACK")
            other.close()
            assert order.result().is_durable
        again = Box(tmp_path, SETTINGS)
        async with again.running():
            await until(lambda: again.host.serves == ("1", "", 0.0))

    run(test())


def test_nothing_is_begun_before_what_is_written_down_is_known(tmp_path: Path) -> None:
    async def test() -> None:
        box = box_with(tmp_path, "1", "2")
        async with box.running() as (agent, _):
            await take(box, agent, "1", "2")
        box.hub.assign("2")
        async with box.running() as (agent, orders):
            await agent.consider()
            assert agent.refusals == {}
            await agent.look()
            assert agent.refusals[MODEL].refusal is Refusal.ACTIVE
            assert len(await orders.history(10)) == 2

    run(test())
