"""Hold one set of metadata that belongs together, and tell whether a reader would believe it.

What this room does: parses the roles' files, says who signed each and who is missing, and what is
wrong with the set.
What it knows: root signs the top-level roles, targets delegates to publishers and the director;
one root follows another when both sign it (TUF spec 5.3).
What it never does: I/O, or change a file: bytes come in and are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeAlias

import msgspec
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Role, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from appliance.contract.names import DIRECTOR_ROLE, PUBLISHER_ROLE_PREFIX
from appliance.errors import PublishRefused

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
ONLINE = (SNAPSHOT, TIMESTAMP, DIRECTOR_ROLE)
OWNER = "x-appliance-owner"
_VALIDITY = "x-appliance-validity-days"
# What a reader takes at most (tuf.ngclient.UpdaterConfig).
_BYTES_MAX = {ROOT: 512_000, TIMESTAMP: 16_384, SNAPSHOT: 2_000_000}
_TARGETS_BYTES_MAX = 5_000_000
_KINDS: dict[str, type] = {ROOT: Root, SNAPSHOT: Snapshot, TIMESTAMP: Timestamp}

Files: TypeAlias = Mapping[str, bytes]


class Validity(msgspec.Struct, frozen=True, kw_only=True):
    """How many days a new version of each role holds; kept in the signed root."""

    root: int = 365
    targets: int = 180
    publisher: int = 180
    director: int = 30
    snapshot: int = 30
    timestamp: int = 7

    def __post_init__(self) -> None:
        """Refuse days out of bounds."""
        for name, days in msgspec.structs.asdict(self).items():
            if not 1 <= days <= 3660:  # noqa: PLR2004 - ten years
                raise PublishRefused(
                    what=f"validity of {name}", reason=f"is {days} days; 1 to 3660 are possible"
                )

    def of(self, role: str) -> timedelta:
        """Tell how long a version of `role` holds."""
        name = "publisher" if role.startswith(PUBLISHER_ROLE_PREFIX) else role
        return timedelta(days=getattr(self, name))


class Signing(msgspec.Struct, frozen=True, kw_only=True):
    """How far the signatures of one version are. Keys by owner and the first digits of their id."""

    role: str
    version: int
    threshold: int
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]
    missing_count: int


def bytes_max(role: str) -> int:
    """Tell how large a reader lets a role's file be."""
    return _BYTES_MAX.get(role, _TARGETS_BYTES_MAX)


def parsed(role: str, data: bytes) -> Metadata[Any]:
    """Read one role's file.

    Raises:
        PublishRefused: it is too large, no metadata, or that of another kind of role.
    """
    if len(data) > bytes_max(role):
        reason = f"is {len(data)} bytes; readers take {bytes_max(role)}"
        raise PublishRefused(what=role, reason=reason)
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except (DeserializationError, RepositoryError) as error:
        raise PublishRefused(what=role, reason="is not metadata") from error
    if not isinstance(metadata.signed, _KINDS.get(role, Targets)):
        raise PublishRefused(what=role, reason=f"holds a {metadata.signed.type}")
    return metadata


def shown(key: Key) -> str:
    """Name a key for a person."""
    owner = str(key.unrecognized_fields.get(OWNER, ""))
    return f"{owner}:{key.keyid[:8]}" if owner else key.keyid[:8]


def with_validity(root: Root, validity: Validity) -> None:
    """Write how long versions hold into a root that is being made."""
    root.unrecognized_fields[_VALIDITY] = msgspec.structs.asdict(validity)


class State:
    """The files of one moment. `before`: the root that readers have now, None at the founding."""

    def __init__(self, files: Files, before: bytes | None = None) -> None:
        """Parse the files. Raises PublishRefused as `parsed`."""
        self.files = dict(files)
        self._metadata = {role: parsed(role, data) for role, data in files.items()}
        self._before = parsed(ROOT, before).signed if before is not None else None

    def __contains__(self, role: str) -> bool:
        """Tell whether the role has a file here."""
        return role in self._metadata

    def metadata(self, role: str) -> Metadata[Any]:
        """Give a role's metadata; the caller must not change it."""
        return self._metadata[role]

    @property
    def root(self) -> Root:
        """The root of this set."""
        root = self._metadata[ROOT].signed
        assert isinstance(root, Root)
        return root

    @property
    def validity(self) -> Validity:
        """How long new versions hold, as the root says."""
        try:
            return msgspec.convert(self.root.unrecognized_fields.get(_VALIDITY, {}), Validity)
        except msgspec.ValidationError as error:
            raise PublishRefused(what=f"{ROOT}.{_VALIDITY}", reason=str(error)) from error

    @property
    def delegated(self) -> dict[str, DelegatedRole]:
        """The roles to which targets delegates."""
        if TARGETS not in self:
            return {}
        delegations = self._metadata[TARGETS].signed.delegations
        return dict(delegations.roles or {}) if delegations else {}

    def delegator(self, role: str) -> Root | Targets:
        """Find who says by whom a role is signed.

        Raises:
            PublishRefused: there is no such role.
        """
        if role in self.root.roles:
            return self.root
        if role in self.delegated:
            targets = self._metadata[TARGETS].signed
            assert isinstance(targets, Targets)
            return targets
        raise PublishRefused(what=role, reason="the repository has no such role")

    def keys(self, role: str) -> dict[str, Key]:
        """Find the keys that may sign a role, by their id, those of the root before among them."""
        delegator = self.delegator(role)
        keys = {one: delegator.get_key(one) for one in delegator.get_delegated_role(role).keyids}
        if self._before is not None and role in self._before.roles:
            keys |= {one: self._before.keys[one] for one in self._before.roles[role].keyids}
        return keys

    def knows(self, role: str) -> bool:
        """Tell whether anybody may sign such a role."""
        return role in self.root.roles or role in self.delegated

    def role(self, role: str) -> Role:
        """Find a role's keys and threshold. Raises as `delegator`."""
        return self.delegator(role).get_delegated_role(role)

    def signing(self, role: str) -> Signing:
        """Tell who signed a role's version and who is missing. Raises as `delegator`."""
        metadata, delegator = self._metadata[role], self.delegator(role)
        payload, signatures = metadata.signed_bytes, metadata.signatures
        result = delegator.get_verification_result(role, payload, signatures)
        signed, unsigned, missing = dict(result.signed), dict(result.unsigned), result.missing
        if role == ROOT and self._before is not None:
            old = self._before.get_verification_result(ROOT, payload, signatures)
            signed, unsigned = signed | old.signed, unsigned | old.unsigned
            missing = max(missing, old.missing)
        return Signing(
            role=role,
            version=metadata.signed.version,
            threshold=self.role(role).threshold,
            signed=tuple(map(shown, signed.values())),
            unsigned=tuple(map(shown, unsigned.values())),
            missing_count=missing,
        )

    def fault(self) -> str:
        """Say why a reader would refuse what offline keys and the director signed; "" if none."""
        for role in (ROOT, TARGETS):
            if role not in self:
                return f"{role}: there is none"
        for role in (ROOT, TARGETS, *self.delegated):
            if role not in self:
                continue  # a publisher that has not signed anything yet
            signing = self.signing(role)
            if signing.missing_count:
                return f"{role}: {lacking(signing)}"
        return self._fault_of_paths()

    def _fault_of_paths(self) -> str:
        for role, delegation in self.delegated.items():
            if role not in self:
                continue
            for path in self._metadata[role].signed.targets:
                if not delegation.is_delegated_path(path):
                    return f"{role}: {path} is not among its paths"
        return ""


def lacking(signing: Signing) -> str:
    """Say which signatures a version waits for."""
    names = ", ".join(signing.unsigned)
    return f"version {signing.version} needs {signing.missing_count} more signatures of {names}"
