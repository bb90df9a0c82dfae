"""Publish versions of models as their publisher does, with keys that live as long as this program.

What this room does: founds a repository in a folder, with one publisher; publishes and puts out.
What it knows: the real signing and publishing; every key is held here, in memory.
What it never does: serve, or measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer

from appliance.clock import utc_ms
from appliance.contract.names import DIRECTOR_ROLE, publisher_role
from appliance.contract.release import Release
from appliance.hub.publish import Intent, prepare, publish
from appliance.hub.signing import Repository, RoleKeys

PUBLISHER = "bench"
_OFFLINE, _ONLINE = ("root", "targets"), ("snapshot", "timestamp", DIRECTOR_ROLE)


class Desk:
    """A repository and all of its keys."""

    def __init__(self, directory: Path, models: Sequence[str]) -> None:
        """Found it; the publisher may sign for these models."""
        self.repository = Repository(directory)
        self.directory = directory
        role = publisher_role(PUBLISHER)
        self._signers = {
            name: CryptoSigner.generate_ed25519() for name in (*_OFFLINE, *_ONLINE, role)
        }
        self.publisher = self._signers[role]
        keys = {name: self._keys(name) for name in (*_OFFLINE, *_ONLINE)}
        self.repository.found(keys, now_utc_ms=utc_ms(), validity=None)
        self._put_out(*_OFFLINE, DIRECTOR_ROLE)
        self.repository.set_publisher(PUBLISHER, models, self._keys(role), now_utc_ms=utc_ms())
        self._put_out("targets", role)

    def publish(self, intent: Intent) -> Release:
        """Publish a version, and put it out; blocks while files are hashed and copied."""
        prepared = prepare(self.repository, intent, now_utc_ms=utc_ms())
        publish(self.repository, prepared, [self.publisher], now_utc_ms=utc_ms())
        self._put_out()
        return prepared.release

    def _put_out(self, *roles: str) -> None:
        for role in roles:
            self.repository.sign(role, [self._signers[role]])
        online: list[Signer] = [self._signers[role] for role in _ONLINE]
        self.repository.settle(online, now_utc_ms=utc_ms())

    def _keys(self, role: str) -> RoleKeys:
        return RoleKeys(keys=((role, self._signers[role].public_key),), threshold=1)
