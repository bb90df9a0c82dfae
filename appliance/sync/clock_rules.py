"""Say what time it is to somebody whose clock may lie, from what was signed.

What this room does: the time by which expiry is judged, and whether "expired" means the source or
the clock.
What it knows: time is at least what the program was built at and what the last release was issued
at, by a publisher's offline key. Online keys can't move it: whoever stole one would freeze the
appliance for good.
What it never does: read a clock; or end what runs: it is asked only when something new is learnt.

| the system clock | by what is expiry judged | what is learnt |
|---|---|---|
| agrees | the clock | everything that has not expired |
| is behind what was signed | the latest signed time | the same; `is_behind` says so |
| is where even the root has expired, and all the rest | the clock | nothing: `ClockUntrusted` |
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from appliance.domain.value import Value
from appliance.errors import ClockUntrusted, Untrusted

_ROOT = "root"
_TIMESTAMP = "timestamp"


class TrustedNow(Value):
    """The time by which expiry is judged; `is_behind`: the system clock showed less."""

    utc_ms: int
    is_behind: bool = False


def trusted_now(*, system_utc_ms: int, signed_utc_ms: int, built_utc_ms: int) -> TrustedNow:
    """Take the latest of what is known."""
    floor = max(signed_utc_ms, built_utc_ms)
    return TrustedNow(utc_ms=max(system_utc_ms, floor), is_behind=system_utc_ms < floor)


def believable_utc_ms(issued_utc_ms: int, *, root_expires_utc_ms: int) -> int:
    """Take an issue time for the floor; 0 where it lies after the root's own end: an error."""
    return issued_utc_ms if issued_utc_ms <= root_expires_utc_ms else 0


def expired(
    what: str, now_utc_ms: int, expires_utc_ms: Mapping[str, int]
) -> Untrusted | ClockUntrusted:
    """Say why something new is refused as expired.

    `expires_utc_ms`: of the roles that were verified. The root lives for a year and the timestamp
    for days: where a clock has passed both, it is likelier wrong than every signer silent.
    """
    now = shown(now_utc_ms)
    root_end = expires_utc_ms.get(_ROOT)
    timestamp_end = expires_utc_ms.get(_TIMESTAMP, 0)
    if root_end is not None and max(root_end, timestamp_end) <= now_utc_ms:
        return ClockUntrusted(
            reason=f"by {now} even the root has expired, on {shown(root_end)}:"
            " the clock is ahead, or nobody signs there any more"
        )
    return Untrusted(what="the repository", reason=f"{what} at {now}: frozen, or not signed again")


def shown(utc_ms: int) -> str:
    """Write a time for people, in UTC."""
    return datetime.fromtimestamp(utc_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
