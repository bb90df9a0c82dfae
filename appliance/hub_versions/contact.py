"""Keep in touch with the hub that this appliance is enrolled with, if it is.

What this room does: loads the certificate, has it renewed in time, and dials the hub for its hints.
What it knows: an appliance that was never enrolled, or whose identity is damaged, has no contact:
it serves, and takes bundles.
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
    """The hub, as this appliance reaches it. `on_hint` may be set before `run`; see `Link`."""

    def __init__(
        self, identity: DeviceIdentity, state: Store, config: Config, program: str
    ) -> None:
        """Dial as `identity`, and keep reports in `state`; `program` is our own version."""
        self.identity = identity
        self.on_hint: Callable[[], None] = lambda: None
        rng = random.SystemRandom()
        self._renewal = Renewal(identity, config.link, utc_ms=utc_ms, rng=rng)
        self._link = Link(
            identity,
            Outbox(state, config.link.outbox_reports, utc_ms),
            config.link,
            program=program,
            on_hint=self._hinted,
            rng=rng,
        )
        self._is_dialling = config.link.enabled

    @classmethod
    async def find(cls, state: Store, config: Config, program: str) -> Contact | None:
        """Load the identity of this appliance; None where there is none that can be used."""
        state_dir = Path(config.server.state_dir)
        try:
            identity = await asyncio.to_thread(DeviceIdentity.load, state_dir)
        except ConfigError as error:
            logs.event("hub_identity_unusable", level=logging.ERROR, reason=error.message)
            return None
        return None if identity is None else cls(identity, state, config, program)

    async def run(self) -> None:
        """Renew and dial, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renewal.run())
            if self._is_dialling:
                group.create_task(self._link.run())

    @property
    def is_linked(self) -> bool:
        """Tell whether the hub's hints come."""
        return self._link.connected

    @property
    def reason(self) -> str:
        """Say why they don't; empty while they do."""
        return self._link.reason if self._is_dialling else "link.enabled is false"

    def _hinted(self, version: int) -> None:
        logs.event("hub_hint", timestamp_version=version)
        self.on_hint()
