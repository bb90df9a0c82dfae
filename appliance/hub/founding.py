"""Found a repository, and say who may sign what.

What this room does: the keys of every role at the beginning; publishers; new keys for old.
What it knows: root and targets are offline and come as public keys; the online ones are made here.
What it never does: open a private key, or sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.contract.names import PUBLISHER_ROLE_PREFIX, publisher_role
from appliance.errors import PublishRefused
from appliance.hub.key_files import PublicKey
from appliance.hub.online import make_keys
from appliance.hub.signing import Repository, RoleKeys, Validity

KEYS_MAX = 32


class Holders(msgspec.Struct, frozen=True, kw_only=True):
    """The public keys of a role, and how many of them must sign."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1

    def role_keys(self) -> RoleKeys:
        """Give them as the repository wants them.

        Raises:
            PublishRefused: there are too many, or one is of no known kind.
        """
        if len(self.keys) > KEYS_MAX:
            raise PublishRefused(what="keys", reason=f"more than {KEYS_MAX} for one role")
        pairs = tuple((one.owner, one.verifier()) for one in self.keys)
        return RoleKeys(keys=pairs, threshold=self.threshold)


def found(
    repository: Repository,
    *,
    root: Holders,
    targets: Holders,
    online_directory: Path,
    validity: Validity,
    now_utc_ms: int,
) -> None:
    """Draft the first root, targets and director; root and targets wait for their signatures.

    Raises:
        PublishRefused: there is a repository already, or a threshold can't be reached.
    """
    for role, holders in (("root", root), ("targets", targets)):
        holders.role_keys().check(role)
    made = make_keys(online_directory, "ed25519")
    keys = {role: Holders(keys=(key,)).role_keys() for role, key in made.items()}
    keys |= {"root": root.role_keys(), "targets": targets.role_keys()}
    repository.found(keys, now_utc_ms=now_utc_ms, validity=validity)


def set_publisher(
    repository: Repository,
    publisher: str,
    models: Sequence[str],
    holders: Holders,
    *,
    now_utc_ms: int,
) -> str:
    """Let a publisher sign for these models besides those it has; returns its role.

    Without keys it keeps those it has.

    Raises:
        PublishRefused: a model is another publisher's, or it has no keys and none are given.
    """
    role = publisher_role(publisher)
    known = {path.split("/")[1]: None for path in repository.delegated().get(role, ())}
    wanted = tuple(known | dict.fromkeys(models))
    keys = holders.role_keys() if holders.keys else repository.role_keys(role)
    repository.set_publisher(publisher, wanted, keys, now_utc_ms=now_utc_ms)
    return role


def publishers(repository: Repository) -> dict[str, tuple[str, ...]]:
    """List the publishers and the models for which each may sign."""
    return {
        role.removeprefix(PUBLISHER_ROLE_PREFIX): tuple(
            dict.fromkeys(path.split("/")[1] for path in paths)
        )
        for role, paths in repository.delegated().items()
        if role.startswith(PUBLISHER_ROLE_PREFIX)
    }
