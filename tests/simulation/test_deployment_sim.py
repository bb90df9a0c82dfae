"""Deployments over thousands of lives: crashes, full disks, operators, good and bad versions.

What holds at every step is in `deployment_world`; what holds at the end is here.
"""

from __future__ import annotations

import asyncio
import itertools
import random

import msgspec
import pytest

from appliance.contract.release import Strategy
from appliance.domain import Digest, HostedVersion, Loaded, NoRoom, SwitchReport, Traffic
from appliance.errors import DeploymentRefused
from appliance.sync.deployment import Deployment, Serving, Undo, plan, undoing
from appliance.sync.states import Event, State
from tests.simulation.deployment_world import NEW, NONE, OLD, STRATEGY, Chances, Crash, World

LIVES = 2500
SERVING = Serving(model="m", active=OLD)
RESTARTS = (Event.RESTARTED_CLEAN, Event.RESTARTED_DIRTY, Event.RESTARTED_REBOOTED)
QUALITIES = ("good", "good", "bad", "silent", "unloadable", "unfit", "corrupt")
STRATEGIES = (
    STRATEGY,
    msgspec.structs.replace(STRATEGY, needs_approval=True, stop_then_start=True),
    msgspec.structs.replace(STRATEGY, shadow_share=0.0, probation=None),
    msgspec.structs.replace(STRATEGY, steps_percent=()),
)


def planned(strategy: Strategy = STRATEGY, previous: Digest = OLD) -> Deployment:
    deployment = plan(
        model="m", version="1", digest=NEW, previous=previous, strategy=strategy, utc_ms=0
    )
    return msgspec.structs.replace(deployment, id=1)


def undone() -> Deployment:
    undo = undoing(
        model="m", version="1", digest=NEW, to=OLD, undo=Undo.OPERATOR, utc_ms=0, reason="by hand"
    )
    return msgspec.structs.replace(undo, id=1)


def lived(world: World, deployment: Deployment) -> Deployment:
    end = asyncio.run(world.live(deployment))
    check_end(world, end)
    return end


def check_end(world: World, end: Deployment) -> None:
    """Old or new serves, never a mix; what is written is what serves; nothing is left over."""
    assert end.has_ended
    assert world.disk_rows[1] == end
    assert world.traffic == Traffic()
    assert world.unsaved == {}
    world.boot()
    if end.state is State.STRANDED:
        assert end in world.alerts
        return
    expected = NEW if end.state is State.COMMITTED else end.previous
    assert (world.active, world.disk_serving.active) == (expected, expected)
    assert world.commits == (end.state is State.COMMITTED)
    assert end.reason or end.state is State.COMMITTED


@pytest.mark.parametrize("block", range(5))
def test_every_life_ends_with_the_old_or_the_new_version(block: int) -> None:
    for seed in range(block * LIVES // 5, (block + 1) * LIVES // 5):
        dice = random.Random(seed)
        chances = Chances(
            quality=dice.choice(
                ["good", "good", "bad", "silent", "unloadable", "unfit", "corrupt"]
            ),
            crash=dice.choice([0.0, 0.01, 0.05]),
            crashes_max=dice.randint(0, 6),
            save_fails=dice.choice([0.0, 0.0, 0.2]),
            told=dice.choice([0.0, 0.0, 0.01]),
            no_room=dice.random() < 0.2,
            restarted=dice.choice(RESTARTS),
        )
        previous = dice.choice([OLD, OLD, OLD, NONE])
        deployment = planned(dice.choice(STRATEGIES), previous)
        world = World(seed, chances, Serving(model="m", active=previous))
        end = lived(world, deployment)
        if previous and chances.quality != "good":
            assert end.state is not State.COMMITTED, seed
        if chances.quality == "silent" and end.previous and end.cause == "deadline":
            assert not end.is_blamed
        if chances == Chances(restarted=chances.restarted):
            assert end.state is State.COMMITTED, seed


@pytest.mark.parametrize("seed", range(200))
def test_undoing_ends_on_the_old_version_over_crashes_and_full_disks(seed: int) -> None:
    dice = random.Random(seed)
    chances = Chances(
        crash=0.1,
        crashes_max=dice.randint(0, 5),
        save_fails=dice.choice([0.0, 0.5]),
        restarted=dice.choice(RESTARTS),
    )
    world = World(seed, chances, Serving(model="m", active=NEW, standby=OLD, generation=3))
    end = lived(world, undone())
    assert end.state is State.ROLLED_BACK
    assert world.disk_serving == Serving(model="m", active=OLD, generation=4)


def points_of(deployment: Deployment, serving: Serving) -> int:
    world = World(0, Chances(), serving)
    lived(world, deployment)
    return world.points


@pytest.mark.parametrize(("strategy", "restarted"), list(itertools.product(STRATEGIES, RESTARTS)))
def test_a_crash_before_and_after_every_save_and_act(strategy: Strategy, restarted: Event) -> None:
    points = points_of(planned(strategy), SERVING)
    assert points > 15
    for crash_at in range(1, points + 1):
        chances = Chances(crash_at=crash_at, crashes_max=1, restarted=restarted)
        world = World(0, chances, SERVING)
        end = lived(world, planned(strategy))
        assert world.crashes == 1
        if restarted is not Event.RESTARTED_DIRTY:
            assert end.state is State.COMMITTED, crash_at


@pytest.mark.parametrize("restarted", RESTARTS)
def test_a_crash_at_every_point_of_an_undo(restarted: Event) -> None:
    serving = Serving(model="m", active=NEW, standby=OLD)
    points = points_of(undone(), serving)
    for crash_at in range(1, points + 1):
        chances = Chances(crash_at=crash_at, crashes_max=1, restarted=restarted)
        end = lived(World(0, chances, serving), undone())
        assert end.state is State.ROLLED_BACK


def test_a_disk_that_is_full_from_some_point_on_never_keeps_users_on_a_bad_version() -> None:
    """The way forward waits with its reason; the way back is gone; all is written once it heals."""
    for fills_at in range(1, 40):
        world = Filling(fills_at, Chances(), SERVING)
        world.fills_at = fills_at
        lived(world, planned())


class Filling(World):
    """Has a full disk for a while, and loses the candidate's worker as soon as users are on it."""

    fills_at = 0
    lost_ms = 0.0

    def poke(self) -> None:
        assert self.conductor is not None
        self.disk_full = self.points >= self.fills_at and self.now_ms < 1_400_000
        if self.disk_full and self.traffic.percent > 0 and not self.lost_ms:
            self.conductor.tell(Event.WORKER_LOST, "it crashed")
            self.lost_ms = self.now_ms
        if self.lost_ms and self.now_ms > self.lost_ms + 5_000:
            assert self.traffic.percent == 0
        super().poke()


def test_a_candidate_that_kills_the_machine_is_given_up() -> None:
    """Each loading ends in a crash: the budget breaks the loop, and the version is left alone."""
    for restarted in RESTARTS:
        chances = Chances(crash=1.0, crashes_max=0, restarted=restarted)
        world = Loop(0, chances, SERVING)
        end = lived(world, planned())
        assert (end.state, end.cause) == (State.ABORTED, "budget_spent")
        assert end.is_blamed


class Loop(World):
    """Crashes whenever the candidate is loaded."""

    async def load(self, hosted: HostedVersion, instead_of: Digest | None) -> Loaded | NoRoom:
        if hosted.digest == NEW:
            raise Crash
        return await super().load(hosted, instead_of)


def test_the_simulation_reaches_every_end() -> None:
    ends = set()
    for seed in range(60):
        dice = random.Random(seed)
        chances = Chances(
            quality=dice.choice(["good", "bad", "unfit"]), told=dice.choice([0.0, 0.02])
        )
        ends.add(lived(World(seed, chances, SERVING), planned()).state)
    assert {State.COMMITTED, State.ABORTED, State.ROLLED_BACK} <= ends


class Stuck(World):
    """Has a host that can't switch."""

    async def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        del to, expecting
        raise DeploymentRefused(model=model, action="switch", reason="it can't")


def test_a_way_back_that_fails_is_left_to_a_person() -> None:
    world = Stuck(0, Chances(), Serving(model="m", active=NEW, standby=OLD))
    end = lived(world, undone())
    assert end.state is State.STRANDED
    assert world.disk_serving.active == NEW


def test_a_commit_that_can_not_be_switched_to_says_that_it_must_be_undone() -> None:
    world = Stuck(0, Chances(), SERVING)
    end = asyncio.run(world.live(planned()))
    assert end.state is State.COMMITTED
    assert world.conductor is not None
    assert "it can't" in world.conductor.fault
