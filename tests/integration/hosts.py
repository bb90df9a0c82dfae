"""A host over two versions of the demo model, with memory as a test says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from appliance.config import Hosting, Limits
from appliance.domain import HostedAdapter, HostedVersion, StandbyStatus
from appliance.runtime.host import Host
from appliance.runtime.placement import Room
from appliance.runtime.standby import Standbys, machine_room
from appliance.sync.host import Examiner, ModelHost
from tests.integration.bench import DEMO_MODEL
from tests.integration.trial import Trial, edition, on_trial

MUCH = Room(available_bytes=2**40, lockable_bytes=2**40, pressure_percent=0.0)


class Hosted:
    """A host whose memory the test says."""

    def __init__(self, t: Trial, settings: Hosting) -> None:
        self.room = msgspec.structs.replace(MUCH, lockable_bytes=machine_room().lockable_bytes)
        self.standbys = Standbys(t.router, settings, t.metrics, read_room=lambda: self.room)
        self.host = Host(
            t.router, self.standbys, (), settings, limits=Limits(), memory_reserve_bytes=0
        )
        self.as_deployments_see_it: tuple[ModelHost, Examiner] = (self.host, self.host)

    @property
    def standby(self) -> StandbyStatus:
        (status,) = self.standbys.statuses()
        return status


@contextlib.asynccontextmanager
async def hosting(
    place: Path, settings: Hosting | None = None
) -> AsyncIterator[tuple[Trial, Hosted]]:
    settings = settings or Hosting(spare_worker=False, standby_rise_s=0.0)
    async with on_trial(place, hosting=settings) as t:
        yield t, Hosted(t, settings)


def hosted(
    number: int, path: Path = DEMO_MODEL, adapters: Mapping[str, HostedAdapter] | None = None
) -> HostedVersion:
    return HostedVersion(version=edition(number), weights=(str(path),), adapters=adapters or {})
