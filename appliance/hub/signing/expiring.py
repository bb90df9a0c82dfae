"""Say which roles should be signed again by now.

What this room does: holds each role's expiry against the time, and its signatures against its keys.
What it knows: online roles are signed again at half of their validity, so that a hub that was down
for a while is still in time; offline ones are asked for two months before.
What it never does: sign, or read the clock.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec

from appliance.hub.signing.role_keys import time_of
from appliance.hub.signing.state import ONLINE, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, State

_OFFLINE_WINDOW = timedelta(days=60)


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A role that should be signed again. `is_online`: `refresh` can do it."""

    role: str
    expires_utc_ms: int
    is_online: bool
    reason: str


def due(state: State, now_utc_ms: int) -> tuple[Due, ...]:
    """List what should be signed again by now."""
    now, found = time_of(now_utc_ms), []
    for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP, *state.delegated):
        if role not in state:
            continue
        half = state.validity.of(role) / 2
        window = half if role in ONLINE else min(half, _OFFLINE_WINDOW)
        expires = state.metadata(role).signed.expires
        if state.signing(role).missing_count:
            reason = "its keys have changed"
        elif now >= expires - window:
            reason = "has expired" if now >= expires else "expires soon"
        else:
            continue
        one = Due(
            role=role,
            expires_utc_ms=int(expires.timestamp() * 1000),
            is_online=role in ONLINE,
            reason=reason,
        )
        found.append(one)
    return tuple(found)
