"""Keep in touch with the hub that this appliance is enrolled with, if it is.

What this room does: loads the certificate as soon as there is one, has it renewed in time, and
dials the hub for its hints.
What it knows: an appliance that was never enrolled, or whose identity is damaged, has no contact:
it serves, and takes bundles. `appliance enrol` writes files, while we run too.
What it never does: fetch a version, or hold anything up because the hub is away.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path

from appliance import logs
from appliance.access.device import DeviceIdentity
from appliance.clock import utc_ms
from appliance.config import Config
from appliance.errors import ConfigError
from appliance.store import Store
from appliance.sync.enrolment import Renewal
from appliance.sync.link import Link
from appliance.sync.outbox import Outbox


class Contact:
    """The hub, as this appliance reaches it. Belongs to one loop; `run` once.

    identity: None while this appliance is not enrolled, or its identity can't be used. on_hint: may
    be set before `run`; see `Link`. on_enrolled: is told once when there is an identity. outbox:
    what the hub is to be told.
    """

    def __init__(self, state: Store, config: Config, program: str) -> None:
        """Keep reports in `state`; `program` is our own version."""
        self.identity: DeviceIdentity | None = None
        self.on_hint: Callable[[], None] = lambda: None
        self.on_enrolled: Callable[[DeviceIdentity], None] = lambda _: None
        self.outbox = Outbox(state, config.link.outbox_reports, utc_ms)
        self._config = config
        self._program = program
        self._link: Link | None = None
        self._fault = ""

    async def find(self) -> DeviceIdentity | None:
        """Load the identity of this appliance; None where there is none that can be used."""
        state_dir = Path(self._config.server.state_dir)
        try:
            self.identity = await asyncio.to_thread(DeviceIdentity.load, state_dir)
        except ConfigError as error:
            if self._fault != error.message:
                logs.event("hub_identity_unusable", level=logging.ERROR, reason=error.message)
            self._fault = error.message
        return self.identity

    async def run(self) -> None:
        """Wait until we are enrolled, then renew and dial, until cancelled."""
        identity = self.identity
        while identity is None:
            await asyncio.sleep(self._config.deployments.tick_s)
            identity = await self.find()
            if identity is not None:
                logs.event("enrolled", level=logging.INFO, hub=identity.hub.url)
                self.on_enrolled(identity)
        settings, rng = self._config.link, random.SystemRandom()
        async with asyncio.TaskGroup() as group:
            group.create_task(Renewal(identity, settings, utc_ms=utc_ms, rng=rng).run())
            if settings.enabled:
                self._link = self._dialling(identity, rng)
                group.create_task(self._link.run())

    @property
    def is_linked(self) -> bool:
        """Tell whether the hub's hints come."""
        return self._link is not None and self._link.connected

    @property
    def reason(self) -> str:
        """Say why they don't; empty while they do."""
        if self.identity is None:
            return self._fault or "not enrolled with a hub"
        if not self._config.link.enabled:
            return "link.enabled is false"
        return "not dialled yet" if self._link is None else self._link.reason

    def _dialling(self, identity: DeviceIdentity, rng: random.Random) -> Link:
        settings = self._config.link
        return Link(
            identity,
            self.outbox,
            settings,
            program=self._program,
            on_hint=self._hinted,
            rng=rng,
        )

    def _hinted(self, version: int) -> None:
        logs.event("hub_hint", timestamp_version=version)
        self.on_hint()
