"""The version that served before stays near, is given up for memory, and comes back."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import msgspec
import psutil
import pytest

from appliance.cli.main import main
from appliance.config import Hosting, Model
from appliance.contract.release import Expectation
from appliance.domain import (
    DrillReport,
    Loaded,
    NoRoom,
    Role,
    StandbyLevel,
    Traffic,
)
from appliance.errors import DeploymentRefused, ModelNotReady, ModelUnloadable
from appliance.runtime.loadable import Loadable
from tests.integration.bench import DEMO_MODEL
from tests.integration.hosts import MUCH, hosted, hosting
from tests.integration.stack import Stack
from tests.integration.stack import demo_version as stack_version
from tests.integration.trial import NEW, OLD, edition

SHORT = msgspec.structs.replace(MUCH, available_bytes=0)


def test_who_was_active_stands_by_loaded_and_the_way_back_is_one_call(tmp_path: Path) -> None:
    async def run() -> None:
        async with hosting(tmp_path) as (t, h):
            report = await h.host.switch("demo", NEW.digest, OLD.digest)
            assert (report.previous, report.to) == (OLD.digest, NEW.digest)
            await h.standbys.look()
            assert (h.standby.version, h.standby.level) == (OLD, StandbyLevel.LOADED)
            assert h.standby.resident_ratio == 1.0
            roles = {s.version.label: s.role for s in t.router.models()}
            assert roles == {"demo@1": Role.STANDBY, "demo@2": Role.ACTIVE}
            pid = t.pid(OLD)
            await h.host.switch("demo", OLD.digest, NEW.digest)
            await h.standbys.look()
            assert t.pid(OLD) == pid  # no worker was started for it
            assert h.standby.version == NEW

    asyncio.run(run())


def test_levels_are_given_up_in_order_when_memory_is_short_and_rise_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with hosting(tmp_path) as (t, h):
            await h.host.switch("demo", NEW.digest, OLD.digest)
            pid, held = t.pid(OLD), []
            h.room = msgspec.structs.replace(SHORT, lockable_bytes=h.room.lockable_bytes)
            for _ in range(3):
                await h.standbys.look()
                held.append((h.standby.level, h.standby.locked_bytes))
                assert "are to stay free" in h.standby.reason
                assert not psutil.pid_exists(pid)
            weights = DEMO_MODEL.stat().st_size
            assert weights <= h.room.lockable_bytes, "this machine must let tests lock the model"
            assert held == [
                (StandbyLevel.LOCKED, weights),
                (StandbyLevel.CACHED, 0),
                (StandbyLevel.DISK, 0),
            ]
            assert [s.version for s in t.router.models()] == [NEW]
            assert (await h.host.switch("demo", OLD.digest, NEW.digest)).to == OLD.digest
            await h.standbys.look()
            h.room = MUCH
            await h.standbys.look()
            assert (h.standby.version, h.standby.level) == (NEW, StandbyLevel.LOADED)

    asyncio.run(run())


def test_pages_of_a_standby_that_left_memory_come_back(tmp_path: Path) -> None:
    async def run() -> None:
        settings = Hosting(spare_worker=False, standby_level="h1")
        copy = tmp_path / "copy.gguf"
        copy.write_bytes(DEMO_MODEL.read_bytes())
        async with hosting(tmp_path, settings) as (_, h):
            await h.host.stand_by("demo", hosted(3, copy))
            await h.standbys.look()
            assert (h.standby.level, h.standby.resident_ratio) == (StandbyLevel.CACHED, 1.0)
            with copy.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            await h.standbys.look()
            assert h.standby.resident_ratio == 1.0
            copy.unlink()  # what is mapped stays
            await h.standbys.look()
            assert h.standby.level is StandbyLevel.CACHED

    asyncio.run(run())


def test_a_standby_is_replaced_and_its_worker_goes_once_it_is_idle(tmp_path: Path) -> None:
    async def run() -> None:
        async with hosting(tmp_path) as (t, h):
            stream = t.ask(tokens=300)
            await stream.has(tokens=1)
            await h.host.switch("demo", NEW.digest, OLD.digest)
            await h.host.load(hosted(3), None)
            await h.host.switch("demo", edition(3).digest, NEW.digest)
            await h.standbys.look()
            assert h.standby.version == NEW
            await stream.done()
            assert stream.error is None
            await h.standbys.look()
            assert {s.version.label for s in t.router.models()} == {"demo@2", "demo@3"}
            await h.host.stand_by("demo", None)
            await h.standbys.look()
            assert {s.version.label for s in t.router.models()} == {"demo@3"}
            assert h.standbys.statuses() == ()

    asyncio.run(run())


def test_a_standby_that_can_not_be_loaded_is_held_lower_with_its_reason(tmp_path: Path) -> None:
    async def run() -> None:
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(DEMO_MODEL.read_bytes()[:100_000])
        async with hosting(tmp_path) as (_, h):
            await h.host.stand_by("demo", hosted(3, broken))
            await h.standbys.look()
            assert h.standby.level is StandbyLevel.DISK
            assert "broken.gguf" in h.standby.reason
            with pytest.raises(ModelUnloadable):
                await h.host.switch("demo", edition(3).digest, OLD.digest)

    asyncio.run(run())


@pytest.mark.parametrize("level", ["h1", "h3"])
def test_a_drill_measures_the_way_back_and_puts_all_back(tmp_path: Path, level: str) -> None:
    async def run() -> None:
        settings = msgspec.convert({"spare_worker": False, "standby_level": level}, Hosting)
        async with hosting(tmp_path, settings) as (t, h):
            with pytest.raises(DeploymentRefused):
                await h.host.drill("demo")
            await h.host.switch("demo", NEW.digest, OLD.digest)
            await h.standbys.look()
            row, before = t.router.row("demo"), [s.version for s in t.router.models()]
            report = await h.host.drill("demo")
            assert report.reason == ""
            assert (report.load_ms > 0) is (level == "h1")
            assert 0 < report.accepted_ms < report.first_token_ms
            assert t.router.row("demo") == row
            assert [s.version for s in t.router.models()] == before
            assert h.standby.rollback_ms == report.load_ms + report.accepted_ms
            expected = StandbyLevel.PROVEN if level == "h3" else StandbyLevel.CACHED
            await h.standbys.look()
            assert h.standby.level is expected
            assert t.router.window(OLD.digest).samples == ()

    asyncio.run(run())


def test_a_host_loads_asks_and_directs_and_every_act_may_be_said_twice(tmp_path: Path) -> None:
    async def run() -> None:
        async with hosting(tmp_path) as (t, h):
            with pytest.raises(ModelNotReady):
                await h.host.direct("demo", Traffic(candidate=edition(3).digest, percent=5))
            for _ in range(2):
                loaded = await h.host.load(hosted(3), None)
                assert isinstance(loaded, Loaded)
                assert loaded.memory_bytes > 0
                assert len(loaded.tokenizer_sha256) == 64
            answer = await h.host.ask(
                edition(3).digest, Expectation(prompt="hello", max_tokens=8, tokens_min=1)
            )
            assert answer.text
            assert 0 < answer.token_count <= 8
            for _ in range(2):
                await h.host.direct("demo", Traffic(candidate=edition(3).digest, percent=100))
            asked = t.ask(tokens=2)
            await asked.done()
            assert asked.versions == ["demo@3"]
            assert len(h.host.window(edition(3).digest).samples) == 1
            with pytest.raises(DeploymentRefused):
                await h.host.unload(edition(3).digest)
            await h.host.direct("demo", Traffic())
            for _ in range(2):
                await h.host.unload(edition(3).digest)
            too_much = msgspec.structs.replace(hosted(4), memory_bytes=2**50)
            assert isinstance(await h.host.load(too_much, None), NoRoom)

    asyncio.run(run())


def test_status_says_how_a_standby_is_held(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    former = Loadable(
        version=stack_version("demo", 9), path=DEMO_MODEL, settings=Model(path=str(DEMO_MODEL))
    )
    stack.call(lambda: stack.standbys.keep(former))
    try:
        assert main(["status", "--json", "--address", stack.grpc_target]) == 0
        (standby,) = json.loads(capsys.readouterr().out)["standbys"]
        assert (standby["label"], standby["level"]) == ("demo@2", "h0")
        assert standby["rollback_ms"] is None
        assert main(["status", "--address", stack.grpc_target]) == 0
        assert "demo@2: stands by on disk (h0), 0% of its file in memory" in capsys.readouterr().out
        report = DrillReport(
            version="demo@2", level=StandbyLevel.CACHED, utc_ms=1, load_ms=300.0, accepted_ms=1.2,
            first_token_ms=9.0,
        )  # fmt: skip
        stack.call(lambda: stack.standbys.drilled("demo", report))
        assert main(["status", "--address", stack.grpc_target]) == 0
        assert "the way back took 301 ms" in capsys.readouterr().out
    finally:
        stack.call(lambda: stack.standbys.drop("demo"))
    assert stack.call(stack.standbys.statuses) == ()
