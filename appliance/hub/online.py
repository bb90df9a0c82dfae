"""Sign what the hub signs by itself: snapshot, timestamp, and the director's choices.

What this room does: opens the online keys, puts out what is complete, signs again what is due.
What it knows: online keys have no passphrase, for the hub starts by itself; each is its owner's
alone to read. Where the directory is empty, this is no hub but a publisher's copy.
What it never does: open an offline key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from appliance import logs
from appliance.contract.names import DIRECTOR_ROLE
from appliance.errors import PublishRefused
from appliance.hub import key_files
from appliance.hub.key_files import PublicKey
from appliance.hub.signing import Due, Repository, Settled, Signer

ONLINE_ROLES = ("snapshot", "timestamp", DIRECTOR_ROLE)
KEYS_DIRECTORY = "online"  # in hub.state_dir, unless hub.online_keys_dir says otherwise
KEYS_MAX = 16


def make_keys(directory: Path, algorithm: str) -> dict[str, PublicKey]:
    """Make a key for each online role that has none in `directory`; blocks for some fsyncs.

    Raises:
        PublishRefused: they can't be written.
    """
    found = {}
    for role in ONLINE_ROLES:
        public = directory / f"{role}{key_files.PUBLIC_SUFFIX}"
        if public.exists():
            found[role] = key_files.read_public(public)
        else:
            found[role] = key_files.make(directory, role, algorithm=algorithm, passphrase="")
    return found


def open_keys(directory: Path) -> tuple[Signer, ...]:
    """Open every online key in `directory`; none where this is no hub. Blocks for small files.

    Raises:
        PublishRefused: others may read one, one has a passphrase, or there are too many.
    """
    paths = sorted(directory.glob(f"*{key_files.PRIVATE_SUFFIX}"))
    if len(paths) > KEYS_MAX:
        raise PublishRefused(what=str(directory), reason=f"more than {KEYS_MAX} keys")
    return tuple(key_files.open_signer(path) for path in paths)


def resigner(repository: Repository, directory: Path) -> Callable[[int], str]:
    """Make what a running hub calls from time to time: it signs again, and says what it did.

    Pending versions that have become complete are put out on the way. It raises PublishRefused, and
    names in the log what only offline keys can sign again, long before that is over.
    """

    def resign(now_utc_ms: int) -> str:
        signers = open_keys(directory)
        if not repository.roots():
            return ""
        for one in repository.due(now_utc_ms):
            if not one.is_online:
                logs.event("offline_signature_due", level=logging.WARNING, **_fields(one))
            elif not signers:
                reason = f"{one.role} {one.reason}, and there is no key here"
                raise PublishRefused(what=str(directory), reason=reason)
        if not signers:
            return ""
        return shown(repository.refresh(signers, now_utc_ms=now_utc_ms))

    return resign


def _fields(due: Due) -> dict[str, object]:
    return {"role": due.role, "expires_utc_ms": due.expires_utc_ms, "reason": due.reason}


def shown(settled: Settled) -> str:
    """Say what was put out; "" for nothing."""
    return ", ".join(f"{role} {version}" for role, version in settled.versions.items())
