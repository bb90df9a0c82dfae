"""Take appliances in: tokens for them, certificates for those who show one, and renewals.

What this room does: the use case behind `/enrol`, `/renew` and `appliance hub token`.
What it knows: a token is good for one key and one cohort, for a while; a renewal is good for an
active device of the present generation, also some time after its certificate ended, so that an
appliance that was off for months is not lost.
What it never does: see a device's private key, or keep a secret that it made.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from appliance.contract.enrolment import (
    DeviceName,
    Enrolled,
    EnrolRequest,
    RenewRequest,
    token_text,
)
from appliance.contract.names import checked
from appliance.errors import EnrolmentRefused
from appliance.hub import inventory
from appliance.hub.authority import Authority, Request, read_request
from appliance.hub.inventory import DeviceStatus
from appliance.store import Store

_SECRET_BYTES = 32


class Enrolment:
    """The desk where appliances come in. `push_address`: what they are told to dial."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        utc_ms: Callable[[], int],
        life_ms: int,
        grace_ms: int,
    ) -> None:
        """Keep the inventory in `store`, made with `inventory.MIGRATIONS`.

        `life_ms`: of a certificate; `grace_ms`: how long after its end it can be renewed.
        """
        self._store = store
        self._authority = authority
        self._utc_ms = utc_ms
        self._life_ms = life_ms
        self._grace_ms = grace_ms
        self.push_address = ""

    async def enrol(self, asked: EnrolRequest) -> Enrolled:
        """Spend a token on a certificate.

        Raises:
            EnrolmentRefused: the token or the request for a certificate is not good.
            StoreError: the inventory can't be written.
        """
        request = read_request(asked.csr_pem)
        now = self._utc_ms()
        name, cohort = await asyncio.wrap_future(
            self._store.submit(
                lambda transaction: inventory.take_token(
                    transaction, asked.secret, request.key_sha256, now
                )
            )
        )
        return await self._certified(request, name, cohort)

    async def renew(self, asked: RenewRequest) -> Enrolled:
        """Give a device its next certificate.

        Raises:
            EnrolmentRefused: the certificate is not ours, too old, revoked or of an earlier life.
            StoreError: the inventory can't be read or written.
        """
        request = read_request(asked.csr_pem)
        name = self._authority.renewing(asked, self._utc_ms(), self._grace_ms)
        device = await asyncio.to_thread(inventory.device_of, self._store, name.device)
        if device is None or device.status is DeviceStatus.REVOKED:
            raise EnrolmentRefused(reason="the appliance was revoked")
        if device.name != name:
            raise EnrolmentRefused(reason="the appliance was enrolled again since")
        return await self._certified(request, name, device.cohort)

    async def _certified(self, request: Request, name: DeviceName, cohort: str) -> Enrolled:
        pem, ends_utc_ms = self._authority.issue_device(
            request, name, self._utc_ms(), self._life_ms
        )
        await asyncio.wrap_future(
            self._store.submit(
                lambda transaction: inventory.certified(
                    transaction, name.device, request.key_sha256, ends_utc_ms
                )
            )
        )
        return Enrolled(
            device=name.device,
            cohort=cohort,
            certificate_pem=pem,
            push_address=self.push_address,
        )


def new_token(
    store: Store, authority: Authority, cohort: str, device: str, times: tuple[int, int]
) -> str:
    """Make a token and remember its digest; blocks. `times`: now and its end, UTC in ms.

    `device`: the name the appliance is to have, also one that is known and comes again; "" for a
    name after its key.

    Raises:
        DocumentRefused: a name is none.
        StoreError: the inventory can't be written.
    """
    cohort = checked(cohort, "cohort")
    device = checked(device, "device") if device else ""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    store.submit(
        lambda transaction: inventory.add_token(transaction, secret, cohort, device, times)
    ).result()
    return token_text(secret, authority.fingerprint)
