"""Write into root and targets who signs a role.

What this room does: sets a role's keys, threshold and paths in metadata that is being drafted.
What it knows: a key carries its owner's name, so that what is missing can be asked for by name.
What it never does: touch a private key.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Role, Root, Targets

from appliance.errors import PublishRefused
from appliance.hub.signing.state import OWNER, Validity


class RoleKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Who signs a role: public keys with their owners' names, and how many must sign."""

    keys: tuple[tuple[str, Key], ...]
    threshold: int = 1

    def check(self, role: str) -> None:
        """Refuse keys that can never reach the threshold."""
        count = len({key.keyid for _, key in self.keys})
        if count != len(self.keys):
            raise PublishRefused(what=role, reason="a key is given twice")
        if not 1 <= self.threshold <= count:
            reason = f"a threshold of {self.threshold} can't be reached with {count} keys"
            raise PublishRefused(what=role, reason=reason)


def set_root_role(root: Root, role: str, keys: RoleKeys) -> None:
    """Let these keys, and no others, sign a top-level role."""
    for keyid in tuple(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    root.roles[role] = Role([], keys.threshold)
    for owner, key in keys.keys:
        root.add_key(_named(owner, key), role)


def delegate(targets: Targets, role: str, keys: RoleKeys, paths: Iterable[str]) -> None:
    """Let these keys, and no others, sign a delegated role for these paths."""
    undelegate(targets, role)
    delegations = targets.delegations
    assert delegations is not None
    assert delegations.roles is not None
    delegations.roles[role] = DelegatedRole(
        role, [], keys.threshold, terminating=True, paths=list(paths)
    )
    for owner, key in keys.keys:
        targets.add_key(_named(owner, key), role)


def undelegate(targets: Targets, role: str) -> None:
    """Let nobody sign a delegated role any more."""
    delegations = targets.delegations
    assert delegations is not None
    assert delegations.roles is not None
    if role in delegations.roles:
        for keyid in tuple(delegations.roles[role].keyids):
            targets.revoke_key(keyid, role)
        del delegations.roles[role]


def time_of(utc_ms: int) -> datetime:
    """Turn UTC milliseconds into a time of whole seconds, as metadata has them."""
    return datetime.fromtimestamp(utc_ms // 1000, UTC)


def expiry(validity: Validity, role: str, now_utc_ms: int) -> datetime:
    """Tell until when a version of a role holds that is made now."""
    return time_of(now_utc_ms) + validity.of(role)


def _named(owner: str, key: Key) -> Key:
    named = copy.deepcopy(key)
    named.unrecognized_fields[OWNER] = owner
    return named
