"""Say what a signature would vouch for: how one version of a role differs from another.

What this room does: compares documents, delegations, keys and thresholds, in words for a person.
What it knows: whoever signs vouches for the whole version, also for what somebody else wrote into
it on the way. What the signer's own key has signed before is known to it, and nothing else is.
What it never does: verify who else signed, or decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Role, Root, Targets

from appliance.hub.signing.state import shown

_ALWAYS_NEW = ("version", "expires")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is new in a version. `subject`: a path, or a role."""

    subject: str
    text: str


def is_signed_by(metadata: Metadata[Any], signers: Iterable[Signer]) -> bool:
    """Tell whether one of these keys signed exactly this."""
    payload = metadata.signed_bytes
    for signer in signers:
        key = signer.public_key
        if key.keyid in metadata.signatures:
            try:
                key.verify_signature(metadata.signatures[key.keyid], payload)
                return True
            except UnverifiedSignatureError:
                continue
    return False


def changes(new: Metadata[Any], base: Metadata[Any] | None) -> tuple[Change, ...]:
    """List what `new` says that `base` does not, and the other way round; base None: all of it."""
    parts, known = _parts(new.signed), _parts(base.signed) if base else {}
    found = []
    for subject in sorted(parts.keys() | known.keys()):
        if subject not in parts:
            found.append(Change(subject=subject, text=f"- {subject}"))
        elif parts[subject] != known.get(subject):
            sign = "~" if subject in known else "+"
            found.append(Change(subject=subject, text=f"{sign} {subject}: {parts[subject]}"))
    return tuple(found)


def _parts(signed: Any) -> dict[str, str]:  # noqa: ANN401 - root, targets or another role
    """Cut a version into what it says, one sentence for each subject."""
    rest = {key: value for key, value in signed.to_dict().items() if key not in _ALWAYS_NEW}
    parts: dict[str, str] = {}
    if isinstance(signed, Root):
        for role, one in signed.roles.items():
            parts[role] = _signers(one, signed)
        for key in ("keys", "roles"):
            rest.pop(key)
    if isinstance(signed, Targets):
        for path, target in signed.targets.items():
            digests = ", ".join(f"{name}:{value}" for name, value in target.hashes.items())
            extra = f", and {target.unrecognized_fields}" if target.unrecognized_fields else ""
            parts[path] = f"{target.length} bytes, {digests}{extra}"
        roles = signed.delegations.roles if signed.delegations else None
        for role, delegated in (roles or {}).items():
            paths = ", ".join(delegated.paths or ())
            parts[role] = f"{_signers(delegated, signed)}, for {paths}"
        for key in ("targets", "delegations"):
            rest.pop(key, None)
    for key, value in rest.items():
        if key not in {"_type", "spec_version"}:
            parts[key] = str(value)
    return parts


def _signers(role: Role, delegator: Root | Targets) -> str:
    keys = sorted(shown(delegator.get_key(keyid)) for keyid in role.keyids)
    return f"{role.threshold} of {', '.join(keys)}"
