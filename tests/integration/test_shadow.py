"""A candidate is measured on copies of real requests that nobody waits for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from appliance.config import Engine, Hosting
from appliance.domain import Traffic
from appliance.runtime.yielding import may_return, set_yielding
from tests.integration.trial import NEW, OLD, Trial, on_trial

POLL_S = 0.01


async def until_compared(t: Trial, count: int) -> None:
    async with asyncio.timeout(60.0):
        while t.router.window(NEW.digest).compared_count < count:  # noqa: ASYNC110 - no event
            await asyncio.sleep(POLL_S)


def test_copies_are_compared_and_measured_and_users_never_meet_the_candidate(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with on_trial(tmp_path, hosting=Hosting(spare_worker=False)) as t:
            t.router.direct("demo", Traffic(candidate=NEW.digest, shadow_share=1.0))
            for number in range(3):
                asked = t.ask(f"hello {number}", tokens=20)
                await asked.done()
                assert asked.versions == ["demo@1"]
                await until_compared(t, number + 1)
            candidate, active = t.router.window(NEW.digest), t.router.window(OLD.digest)
            assert candidate.identical_count == candidate.compared_count == 3
            assert candidate.agreed_ratio == 1.0
            assert [sample.is_shadow for sample in candidate.samples] == [True] * 3
            assert [sample.is_shadow for sample in active.samples] == [False] * 3
            assert {sample.error for sample in (*candidate.samples, *active.samples)} == {""}
            assert all(sample.completion_tokens == 20 for sample in candidate.samples)
            t.router.direct("demo", Traffic(candidate=NEW.digest, percent=1))
            assert t.router.window(NEW.digest).samples == ()

    asyncio.run(run())


def test_only_the_share_that_is_asked_for_is_repeated(tmp_path: Path) -> None:
    async def run() -> None:
        async with on_trial(tmp_path) as t:
            t.router.direct("demo", Traffic(candidate=NEW.digest, shadow_share=0.0))
            await t.ask(tokens=2).done()
            assert t.router.window(NEW.digest).samples == ()
            assert len(t.router.window(OLD.digest).samples) == 1

    asyncio.run(run())


def test_copies_are_the_first_to_go_under_load(tmp_path: Path) -> None:
    async def run() -> None:
        engine = Engine(context_tokens=512, threads=1, sequences_max=2)
        async with on_trial(tmp_path, engine=engine) as t:
            t.router.direct("demo", Traffic(candidate=NEW.digest, shadow_share=1.0))
            asked = [t.ask(tokens=60) for _ in range(12)]
            for one in asked:
                await one.done()
            assert all(one.error is None for one in asked)
            await until_compared(t, 1)
            window = t.router.window(NEW.digest)
            assert window.shadows_dropped > 0
            assert window.shadows_dropped + len(window.samples) <= 12

    asyncio.run(run())


def test_a_candidate_without_users_runs_on_idle_cores_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with on_trial(tmp_path) as t:

            def policies() -> set[int]:
                tasks = psutil.Process(t.pid(NEW)).threads()
                return {os.sched_getscheduler(task.id) for task in tasks}

            assert policies() == {os.SCHED_OTHER}
            t.router.direct("demo", Traffic(candidate=NEW.digest, shadow_share=1.0))
            assert policies() == {os.SCHED_IDLE if may_return() else os.SCHED_OTHER}
            t.router.direct("demo", Traffic(candidate=NEW.digest, percent=10))
            assert policies() == {os.SCHED_OTHER}

    asyncio.run(run())


def test_a_process_that_has_gone_does_not_yield() -> None:
    assert not set_yielding(2**22 + 1, yields=True)


def test_a_spare_worker_waits_for_whatever_loads_next_and_is_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        async with on_trial(tmp_path, hosting=Hosting()) as t:

            async def spare() -> int:
                async with asyncio.timeout(60.0):
                    while not (pid := t.router.spare_pid):  # noqa: ASYNC110 - no event
                        await asyncio.sleep(POLL_S)
                return pid

            first = await spare()
            psutil.Process(t.pid(NEW)).kill()
            async with asyncio.timeout(60.0):
                while t.pid(NEW) != first:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(POLL_S)
            asked = t.ask(model="demo@2", tokens=4)
            await asked.done()
            assert asked.error is None
            second = await spare()
            assert second != first
            psutil.Process(second).kill()  # a spare that has died is not handed over
            async with asyncio.timeout(60.0):
                while t.router.spare_pid:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(POLL_S)
            psutil.Process(t.pid(NEW)).kill()
            again = t.ask(model="demo@2", tokens=4)
            await again.done()
            assert again.error is None
            third = await spare()
        for pid in (first, third):
            assert not psutil.pid_exists(pid)

    asyncio.run(run())


@pytest.mark.parametrize("streams", [1, 3])
def test_no_more_copies_are_asked_at_a_time_than_are_allowed(tmp_path: Path, streams: int) -> None:
    async def run() -> None:
        hosting = Hosting(spare_worker=False, shadow_streams=streams)
        async with on_trial(tmp_path, hosting=hosting) as t:
            t.router.direct("demo", Traffic(candidate=NEW.digest, shadow_share=1.0))
            asked = [t.ask(tokens=100) for _ in range(6)]
            for one in asked:
                await one.has(tokens=1)
            running = next(s for s in t.router.models() if s.version.digest == NEW.digest)
            assert running.running_count + running.waiting_count <= streams
            for one in asked:
                await one.done()

    asyncio.run(run())
