"""Where two versions do not fit in memory together, one is stopped for the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from appliance.config import Hosting, Limits
from appliance.domain import HostedVersion, Loaded, NoRoom, StandbyLevel, StandbyStatus, Traffic
from appliance.errors import DeploymentRefused, ModelNotReady, ModelUnloadable
from appliance.runtime.host import Host
from appliance.runtime.standby import Standbys
from tests.integration.bench import DEMO_MODEL
from tests.integration.trial import NEW, OLD, Trial, edition, on_trial

SETTINGS = Hosting(spare_worker=False)
ALL_BYTES = 2**60


class Narrow:
    """A host on which nothing has room beside anything; OLD is active, and alone."""

    def __init__(self, t: Trial) -> None:
        self.standbys = Standbys(t.router, SETTINGS, t.metrics)
        self.host = Host(
            t.router, self.standbys, (), SETTINGS, limits=Limits(), memory_reserve_bytes=ALL_BYTES
        )
        self._t = t

    @property
    def standby(self) -> StandbyStatus:
        (status,) = self.standbys.statuses()
        return status

    @property
    def loaded(self) -> list[str]:
        return [status.version.label for status in self._t.router.models()]

    async def answered_by(self) -> str:
        asked = self._t.ask(tokens=2)
        await asked.done()
        assert asked.error is None
        return asked.versions[-1]

    async def refuses(self, model: str = "demo") -> None:
        """Ask for the model, and be told to ask again."""
        asked = self._t.ask(model=model)
        await asked.done()
        assert isinstance(asked.error, ModelNotReady)
        assert asked.error.retryable
        assert asked.error.retry_after_s > 0
        assert asked.versions == []


@contextlib.asynccontextmanager
async def narrow(place: Path) -> AsyncIterator[tuple[Trial, Narrow]]:
    async with on_trial(place, hosting=SETTINGS) as t:
        await t.router.unload(NEW.digest, drain_s=0.0)
        yield t, Narrow(t)


def test_what_leaves_too_little_memory_once_it_is_loaded_goes_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with narrow(tmp_path) as (t, n):
            size = DEMO_MODEL.stat().st_size
            modest = msgspec.structs.replace(
                hosted(2),
                version=msgspec.structs.replace(edition(2), blob_bytes=size),
                memory_bytes=size + 1,  # as its publisher says; a worker takes far more
            )
            host = Host(
                *(t.router, n.standbys, (), SETTINGS),
                limits=Limits(),
                memory_reserve_bytes=size,
                read_available=iter((3 * size, size // 2)).__next__,  # before it is loaded, after
            )
            said = await host.load(modest, None)
            assert isinstance(said, NoRoom)
            assert said.free_bytes < said.needed_bytes, said
            assert n.loaded == [OLD.label]
            assert await n.answered_by() == OLD.label

    asyncio.run(run())


def hosted(number: int, path: Path = DEMO_MODEL) -> HostedVersion:
    return HostedVersion(version=edition(number), weights=(str(path),))


def test_the_active_version_is_stopped_for_another_and_who_asks_meanwhile_asks_again(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with narrow(tmp_path) as (t, n):
            assert isinstance(await n.host.load(hosted(2), None), NoRoom)
            assert await n.answered_by() == OLD.label
            stream = t.ask(tokens=200)
            await stream.has(tokens=1)
            loading = t.group.create_task(n.host.load(hosted(2), OLD.digest))
            await n.refuses()
            await n.refuses("")
            await stream.done()
            assert (stream.error, len(stream.token_ids)) == (None, 200)
            assert isinstance(await loading, Loaded)
            assert n.loaded == [NEW.label]
            assert (n.standby.version, n.standby.level) == (OLD, StandbyLevel.CACHED)
            assert n.standby.resident_ratio == 1.0
            assert "no room" in n.standby.reason
            await n.refuses()
            await n.host.direct("demo", Traffic(candidate=NEW.digest, percent=100))
            assert await n.answered_by() == NEW.label
            report = await n.host.switch("demo", NEW.digest, OLD.digest)
            assert (report.previous, report.to) == (OLD.digest, NEW.digest)
            await n.standbys.look()
            assert (n.standby.version, n.standby.level) == (OLD, StandbyLevel.CACHED)
            assert await n.answered_by() == NEW.label
            with pytest.raises(DeploymentRefused, match="no room"):
                await n.host.drill("demo")

    asyncio.run(run())


def test_the_way_back_to_a_version_that_only_fits_alone_stops_the_active_one(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with narrow(tmp_path) as (t, n):
            await n.host.load(hosted(2), OLD.digest)
            await n.host.switch("demo", NEW.digest, OLD.digest)
            stream = t.ask(tokens=200)
            await stream.has(tokens=1)
            going_back = t.group.create_task(n.host.switch("demo", OLD.digest, NEW.digest))
            looking = t.group.create_task(n.standbys.look())
            await n.refuses()
            assert (await going_back).to == OLD.digest
            await looking
            assert (stream.error, len(stream.token_ids)) == (None, 200)
            assert n.loaded == [OLD.label]
            assert await n.answered_by() == OLD.label
            assert (n.standby.version, n.standby.level) == (NEW, StandbyLevel.CACHED)

    asyncio.run(run())


def test_a_version_that_failed_its_trial_alone_makes_room_for_the_one_before(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with narrow(tmp_path) as (_, n):
            await n.host.load(hosted(2), OLD.digest)
            await n.host.direct("demo", Traffic(candidate=NEW.digest, percent=100))
            await n.host.direct("demo", Traffic())
            await n.refuses()
            assert isinstance(await n.host.load(hosted(1), NEW.digest), Loaded)
            await n.standbys.look()
            assert n.loaded == [OLD.label]
            assert await n.answered_by() == OLD.label
            assert n.standbys.statuses() == ()

    asyncio.run(run())


def test_who_was_stopped_for_a_standby_that_can_not_be_loaded_serves_again(tmp_path: Path) -> None:
    async def run() -> None:
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(DEMO_MODEL.read_bytes()[:100_000])
        async with narrow(tmp_path) as (_, n):
            await n.host.stand_by("demo", hosted(3, broken))
            with pytest.raises(ModelUnloadable):
                await n.host.switch("demo", edition(3).digest, OLD.digest)
            assert await n.answered_by() == OLD.label

    asyncio.run(run())
