"""Sign again, on line, what would expire, and settle what the others have signed.

What this room does: the online keys from their directory; one look at what is due; a refresh.
What it knows: `hub.signing` says what is due, and who may sign it. What only offline keys may sign
is named, so that a person sees it long before it is over.
What it never does: open a key that asks for a passphrase, or an offline key: those lie elsewhere.
"""

from __future__ import annotations

import logging
from pathlib import Path

from appliance import logs
from appliance.errors import PublishRefused
from appliance.hub.key_files import PRIVATE_SUFFIX, PUBLIC_SUFFIX, open_signer, read_public
from appliance.hub.signing import Repository

KEYS_MAX = 64
ONLINE_KEYS_DIRECTORY = "online-keys"


class OnlineSigning:
    """The hub's standing order to sign."""

    def __init__(self, repository: Path, keys: Path) -> None:
        """Sign in `repository` with the keys that lie in `keys`."""
        self._repository = Repository(repository)
        self._keys = keys

    def refresh(self, now_utc_ms: int) -> dict[str, int]:
        """Sign what is due; returns role → version of what was put out. Blocks for some fsyncs.

        Raises:
            PublishRefused: a key can't be opened or is missing, or somebody else holds the
                repository now.
        """
        due = self._repository.due(now_utc_ms)
        for one in due:
            if not one.is_online:
                logs.event(
                    "offline_signature_due",
                    level=logging.WARNING,
                    role=one.role,
                    expires_utc_ms=one.expires_utc_ms,
                    reason=one.reason,
                )
        if not any(one.is_online for one in due):
            return {}
        signers = [open_signer(path) for path in self._key_files()]
        return self._repository.refresh(signers, now_utc_ms=now_utc_ms).versions

    def _key_files(self) -> list[Path]:
        """List the keys of the directory: files, and hardware that a public key names."""
        try:
            found = sorted(self._keys.iterdir())[: 2 * KEYS_MAX]
        except OSError as error:
            raise PublishRefused(
                what=str(self._keys), reason=error.strerror or str(error)
            ) from error
        private = [path for path in found if path.suffix == PRIVATE_SUFFIX]
        hardware = [
            path for path in found if path.suffix == PUBLIC_SUFFIX and read_public(path).uri
        ]
        return [*private, *hardware]
