"""What was found outlives a restart, and stands until the same went well."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from appliance.config import Deployments
from appliance.config import Store as StoreSettings
from appliance.hub_versions import runs as table
from appliance.hub_versions.alerts import DRILL, SCRUB, Alerts
from appliance.hub_versions.chores import FIRST_AFTER_S, SETTLE_S, first_wait_s
from appliance.hub_versions.runs import RUNS_KEPT, Run, Runs
from appliance.observe.metrics import Metrics
from appliance.store import Store
from appliance.sync.deployment import plan
from appliance.sync.states import State
from tests.unit.sync.agent_world import MODEL, QUICK, Box, until

WEEK_S = 7 * 86_400.0
NOW = 1_800_000_000_000


def _store(directory: Path) -> Store:
    return Store(directory / "chores.db", table.MIGRATIONS, StoreSettings())


def test_runs_outlive_a_restart_and_only_the_last_stay(tmp_path: Path) -> None:
    async def write() -> None:
        store = _store(tmp_path)
        runs = Runs(store)
        await runs.load()
        for number in range(RUNS_KEPT + 3):
            await runs.note("drill_times", "demo/3", Run(utc_ms=number, took_ms=float(number)))
        await runs.note(SCRUB, "", Run(utc_ms=7, reason="one file is damaged"))
        assert await asyncio.to_thread(store.close, 10.0)

    async def read() -> Runs:
        store = _store(tmp_path)
        runs = Runs(store)
        await runs.load()
        assert len(store.read("SELECT id FROM chore_runs")) == RUNS_KEPT + 1
        assert await asyncio.to_thread(store.close, 10.0)
        return runs

    asyncio.run(write())
    runs = asyncio.run(read())
    assert [one.utc_ms for one in runs.known("drill_times", "demo/3")] == list(range(3, 19))
    assert runs.latest(SCRUB) == {"": Run(utc_ms=7, reason="one file is damaged")}


def test_a_restart_neither_hastens_nor_delays_a_chore() -> None:
    def wait_s(ago_s: float) -> float:
        return first_wait_s(WEEK_S, NOW - int(ago_s * 1000), NOW)

    assert wait_s(6 * 86_400) == 86_400
    assert wait_s(30 * 86_400) == SETTLE_S
    assert wait_s(-5) == first_wait_s(WEEK_S, None, NOW) == FIRST_AFTER_S
    assert first_wait_s(10.0, NOW - 1000, NOW) == 10.0


def test_an_alert_stands_until_the_same_went_well(tmp_path: Path) -> None:
    async def test() -> None:
        store, metrics = _store(tmp_path), Metrics(version="1", series_max=16)
        runs, box = Runs(store), Box(tmp_path, Deployments())
        async with box.running() as (agent, _):
            await agent.booted()
            alerts = Alerts(agent, runs, metrics)

            async def found(utc_ms: int, reason: str) -> list[tuple[str, str, int]]:
                await runs.note(DRILL, MODEL, Run(utc_ms=utc_ms, took_ms=9.0, reason=reason))
                await alerts.look()
                return [(one.kind, one.reason, one.since_utc_ms) for one in alerts.standing]

            assert await found(1, "") == []
            assert await found(2, "took 90 ms") == [(DRILL, "took 90 ms", 2)]
            assert await found(3, "took 80 ms") == [(DRILL, "took 80 ms", 2)]
            labels = {"kind": DRILL, "subject": MODEL}
            assert metrics.value("appliance_alert_standing", **labels) == 1
            assert await found(4, "") == []
            assert metrics.value("appliance_alert_standing", **labels) == 0
        assert await asyncio.to_thread(store.close, 10.0)

    asyncio.run(test())


def test_a_stranded_model_and_a_refused_release_stand_too(tmp_path: Path) -> None:
    async def test() -> None:
        store, metrics = _store(tmp_path), Metrics(version="1", series_max=16)
        box = Box(tmp_path, Deployments())
        async with box.running() as (agent, _):
            await agent.booted()
            box.hub.publish("1")
            offer = box.hub.releases["1"]
            begun = plan(
                model="other",
                version="1",
                digest=offer.digest,
                previous=offer.digest,
                strategy=QUICK,
                utc_ms=5,
            )
            stranded = msgspec.structs.replace(
                begun, id=agent.journal.new_id(), state=State.STRANDED, reason="no way back"
            )
            await agent.journal.save(stranded, offer, must=True)
            box.hub.assign("1")
            box.hub.revoke("1")
            await agent.look()
            await until(lambda: MODEL in agent.refusals)
            alerts = Alerts(agent, Runs(store), metrics)
            await alerts.look()
            seen = {one.kind: (one.subject, one.reason) for one in alerts.standing}
            assert seen["stranded"] == ("other", "version 1 can't be left: no way back")
            assert seen["release_refused"][0] == MODEL
            assert "it lies" in seen["release_refused"][1]
        assert await asyncio.to_thread(store.close, 10.0)

    asyncio.run(test())
