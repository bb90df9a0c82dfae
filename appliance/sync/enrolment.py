"""Enrol this appliance with a hub, and renew its certificate in time.

What this room does: the three calls of enrolment over HTTPS, each bounded in time and size; the
chore that renews at two thirds of a certificate's life, and after its end.
What it knows: the hub's CA is fetched first, over a connection that trusts nobody, and is checked
against the digest in the token; only then is the token sent, over a connection that trusts that CA.
What it never does: send a private key, follow a redirect, or keep what was not checked.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec

from appliance import logs
from appliance.access.device import (
    DeviceIdentity,
    adopt,
    device_directory,
    pinned,
    request,
)
from appliance.config import Link
from appliance.contract import enrolment as desk
from appliance.contract.enrolment import Enrolled, EnrolRequest
from appliance.errors import (
    ApplianceError,
    DocumentRefused,
    EnrolmentRefused,
    HubUnreachable,
    InvalidRequest,
)

_URL = re.compile(r"https://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
_OK = 200
_REFUSED = range(400, 500)
_TOO_MANY = 429


class _Said(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Said


async def enrol(url: str, token: str, state_dir: Path, timeout_s: float) -> DeviceIdentity:
    """Enrol with the hub at `url`, by a one-time token; may be repeated if it was cut off.

    Raises:
        InvalidRequest: `url` is not https://HOST:PORT.
        DocumentRefused: the token is none.
        EnrolmentRefused: the hub refuses it, or is not the one that the token names.
        HubUnreachable: it does not answer, or not in time.
        ConfigError: the identity can't be kept.
    """
    url = checked_url(url)
    secret, ca_sha256 = desk.parse_token(token)
    directory = await asyncio.to_thread(device_directory, state_dir)
    ca_pem = pinned(await _call(url, desk.CA_PATH, b"", _trusting_nobody(), timeout_s), ca_sha256)
    csr_pem = await asyncio.to_thread(request, directory, "appliance")
    body = desk.encode_body(EnrolRequest(secret=secret, csr_pem=csr_pem))
    answer = await _call(url, desk.ENROL_PATH, body, _trusting(ca_pem), timeout_s)
    enrolled = _enrolled(url, answer)
    await asyncio.to_thread(adopt, directory, url, enrolled, ca_pem)
    return await asyncio.to_thread(DeviceIdentity, directory)


async def renew(identity: DeviceIdentity, timeout_s: float) -> None:
    """Replace the certificate by its successor, for a new key. Raises as `enrol`."""
    asked = await asyncio.to_thread(identity.renewal)
    url = identity.hub.url
    tls = _trusting(identity.pems()[0].decode("ascii"))
    answer = await _call(url, desk.RENEW_PATH, desk.encode_body(asked), tls, timeout_s)
    await asyncio.to_thread(identity.renewed, _enrolled(url, answer))


class Renewal:
    """The chore that keeps a certificate fresh. `reason`: why it could not, or ""."""

    def __init__(
        self,
        identity: DeviceIdentity,
        settings: Link,
        *,
        utc_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        """Renew `identity`, as often as it needs it."""
        self._identity = identity
        self._settings = settings
        self._utc_ms = utc_ms
        self._rng = rng
        self.reason = ""

    async def run(self) -> None:
        """Look at the certificate's age now and then; goes on until cancelled."""
        attempt = 0
        while True:
            wait_s = self._settings.renew_check_s
            if self._utc_ms() >= self._identity.renew_utc_ms:
                try:
                    await renew(self._identity, self._settings.dial_timeout_s)
                    attempt, self.reason = 0, ""
                    logs.event("certificate_renewed", ends_utc_ms=self._identity.ends_utc_ms)
                except ApplianceError as error:
                    attempt, self.reason = attempt + 1, error.message
                    logs.event("certificate_not_renewed", level=logging.WARNING, reason=self.reason)
                    wait_s = min(wait_s, jittered_s(self._settings, attempt, self._rng))
            await asyncio.sleep(wait_s)


def jittered_s(settings: Link, attempt: int, rng: random.Random) -> float:
    """Draw how long to wait before the next attempt: anything up to a bound that doubles."""
    doublings = min(attempt - 1, 32)
    return rng.uniform(0.0, min(settings.retry_s_max, settings.retry_s_min * 2.0**doublings))


def checked_url(url: str) -> str:
    """Give back https://HOST:PORT without a slash at its end.

    Raises:
        InvalidRequest: it is none.
    """
    trimmed = url.rstrip("/")
    if _URL.fullmatch(trimmed) is None:
        raise InvalidRequest(field="hub", reason=f"must be https://HOST:PORT, not {url[:80]!r}")
    return trimmed


def _trusting_nobody() -> ssl.SSLContext:
    """Make TLS that checks no certificate: for the CA's own, which its digest proves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trusting(ca_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


async def _call(url: str, path: str, body: bytes, tls: ssl.SSLContext, timeout_s: float) -> bytes:
    """POST a body, or GET without one; returns the answer's body."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    method = "POST" if body else "GET"
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.request(
                method, url + path, data=body or None, ssl=tls, allow_redirects=False
            ) as answer,
        ):
            data = await answer.content.read(desk.BODY_BYTES_MAX + 1)
            while len(data) <= desk.BODY_BYTES_MAX and (more := await answer.content.read(65_536)):
                data += more
            status = answer.status
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = f"does not answer: {error or type(error).__name__}"
        raise HubUnreachable(source=url, reason=reason) from error
    if status == _OK and len(data) <= desk.BODY_BYTES_MAX:
        return data
    if status in _REFUSED and status != _TOO_MANY:
        raise EnrolmentRefused(reason=_reason(data, status))
    raise HubUnreachable(source=url, reason=_reason(data, status))


def _reason(data: bytes, status: int) -> str:
    try:
        said = msgspec.json.decode(data, type=_Refusal).error.message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"it answers with status {status}"
    return said[:512].removeprefix("the hub refuses: ")


def _enrolled(url: str, data: bytes) -> Enrolled:
    try:
        return desk.decode_body(data, Enrolled)
    except DocumentRefused as error:
        raise HubUnreachable(source=url, reason=f"answers strangely: {error}") from error
