"""Let in the appliances that the inventory knows, on every way they come.

What this room does: from a certificate's URIs to the device, or a refusal; how many connections
each device has.
What it knows: TLS has checked that the certificate is of our CA and not over. The inventory may
revoke a device while it is connected, so each request asks again; an answer is good for
`hub.status_s`.
What it never does: read a certificate, or close a connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from appliance.contract.enrolment import DeviceName, device_name
from appliance.errors import EnrolmentRefused, QueueFull, Unauthenticated
from appliance.hub import inventory
from appliance.hub.inventory import Device, DeviceStatus
from appliance.store import Store

ANSWERS_KEPT_MAX = 65_536
_RETRY_AFTER_S = 5.0


class Admission:
    """The door. Lives in one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        monotonic_ms: Callable[[], float],
        answer_ms: float,
        device_connections_max: int,
    ) -> None:
        """Ask the inventory in `store`; an answer is good for `answer_ms`."""
        self._store = store
        self._monotonic_ms = monotonic_ms
        self._answer_ms = answer_ms
        self._connections_max = device_connections_max
        self._answers: dict[str, tuple[float, Device | None]] = {}
        self._connections: Counter[str] = Counter()

    async def admit(self, uris: tuple[str, ...]) -> Device:
        """Name the device that shows a certificate with these URIs.

        Raises:
            Unauthenticated: there is no certificate, or it is not a device's.
            EnrolmentRefused: the device is not known, revoked, or was enrolled again since.
            StoreError: the inventory can't be read.
        """
        name = device_name(uris)
        if name is None:
            raise Unauthenticated
        device = await self._known(name)
        if device is None:
            raise EnrolmentRefused(reason="it does not know this appliance")
        if device.status is DeviceStatus.REVOKED:
            raise EnrolmentRefused(reason="the appliance was revoked")
        if device.name != name:
            raise EnrolmentRefused(reason="the appliance was enrolled again since")
        return device

    def connected(self, uris: tuple[str, ...]) -> str:
        """Count a connection; returns the device to give back to `gone`, "" for a stranger.

        Raises:
            QueueFull: the device has as many as it may have.
        """
        name = device_name(uris)
        if name is None:
            return ""
        if self._connections[name.device] >= self._connections_max:
            raise QueueFull(
                bound="hub.device_connections_max",
                limit=self._connections_max,
                retry_after_s=_RETRY_AFTER_S,
            )
        self._connections[name.device] += 1
        return name.device

    def gone(self, device: str) -> None:
        """Count a connection no more."""
        if device:
            self._connections[device] -= 1
            if self._connections[device] <= 0:
                del self._connections[device]

    async def _known(self, name: DeviceName) -> Device | None:
        now_ms = self._monotonic_ms()
        asked_ms, device = self._answers.get(name.device, (now_ms - self._answer_ms - 1, None))
        if now_ms - asked_ms < self._answer_ms:
            return device
        device = await asyncio.to_thread(inventory.device_of, self._store, name.device)
        if len(self._answers) >= ANSWERS_KEPT_MAX:
            self._answers.clear()
        self._answers[name.device] = (now_ms, device)
        return device
