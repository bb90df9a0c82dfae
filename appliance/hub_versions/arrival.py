"""Take versions from a hub from the moment on that somebody says whom to believe.

What this room does: looks now and then whether versions of a hub are wanted, and has what takes
them built and run; before that, nothing of it is there.
What it knows: `appliance trust` writes a file, and a daemon that runs already must not be started
again for it. What can't be built then is built later: who is served by now goes on being served.
What it never does: build it twice, or take it down while the appliance runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from appliance import logs
from appliance.errors import ConfigError, SyncError
from appliance.hub_versions.assembly import HubVersions


class Arrival:
    """What takes versions, once it is wanted. Belongs to one loop; `run` once, `stop` once."""

    def __init__(
        self,
        are_wanted: Callable[[], bool],
        build: Callable[[], HubVersions],
        look_s: float,
        on_arrived: Callable[[HubVersions], None],
    ) -> None:
        """Build by `build` when `are_wanted`, which blocks; `look_s` between two looks."""
        self._are_wanted = are_wanted
        self._build = build
        self._look_s = look_s
        self._on_arrived = on_arrived
        self._versions: HubVersions | None = None
        self._begun = asyncio.Event()
        self._fault = ""

    async def look(self) -> None:
        """Build what takes versions, if they are wanted. Raises as `HubVersions`."""
        if not await asyncio.to_thread(self._are_wanted):
            return
        versions = self._build()
        self._on_arrived(versions)
        self._versions = versions

    async def run(self) -> None:
        """Once it may `begin`: look until they are wanted, then take versions until `stop`."""
        await self._begun.wait()
        while self._versions is None:
            await asyncio.sleep(self._look_s)
            await self._look_again()
        self._versions.begin()
        await self._versions.run()

    def begin(self) -> None:
        """Let `run` begin: the operator's own files have their names."""
        self._begun.set()
        if self._versions is not None:
            self._versions.begin()

    async def booted(self) -> None:
        """Wait until what is written down is served; where nothing is wanted, that is now."""
        if self._versions is not None:
            await self._versions.booted()

    async def stop(self) -> None:
        """End `run`; deployments under way stay as they are saved."""
        if self._versions is not None:
            await self._versions.stop()

    async def _look_again(self) -> None:
        try:
            await self.look()
        except (ConfigError, SyncError) as error:
            if self._fault != error.message:
                logs.event("versions_not_taken", level=logging.ERROR, reason=error.message)
            self._fault = error.message
        else:
            if self._versions is not None:
                logs.event("versions_taken", level=logging.INFO)
