"""Put pending versions out so that readers see all of a change or nothing of it.

What this room does: chooses the largest set of pending versions that a reader would believe,
makes the snapshot and timestamp over it, and writes everything in the one safe order.
What it knows: a reader takes the next root as soon as it lies there, and everything else through
timestamp.json. Where a root changes the keys of what is online, the new files are signed by the
old and the new keys and come before the root, so that readers with either root believe them. Where
the old keys are gone the root comes first, and the timestamp at once after it.
What it never does: put out a version that lacks signatures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

from appliance.errors import PublishRefused
from appliance.hub.blob_files import blob_fault
from appliance.hub.placed import check_placed
from appliance.hub.signing.disk import Disk
from appliance.hub.signing.role_keys import expiry
from appliance.hub.signing.state import (
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Files,
    State,
    lacking,
)

_LEFT_OUT = (frozenset[str](), frozenset({ROOT}), frozenset({ROOT, TARGETS}))


def largest(current: Files, pending: Files) -> frozenset[str]:
    """Choose the pending versions that readers would believe together, as many as can be."""
    for left_out in _LEFT_OUT:
        roles = frozenset(pending) - left_out
        if roles and _is_well(current, pending, roles):
            return roles
    held = frozenset[str]()
    for role in sorted(pending):
        if _is_well(current, pending, held | {role}):
            held |= {role}
    return held


def online_files(
    state: State,
    current: Files,
    signers: Sequence[Signer],
    *,
    now_utc_ms: int,
    is_snapshot_needed: bool,
) -> dict[str, bytes]:
    """Make the new snapshot, where one is needed, and the new timestamp.

    Raises:
        PublishRefused: they lack signatures.
    """
    old = State(current)
    files: dict[str, bytes] = {}
    snapshot: Snapshot | None = old.metadata(SNAPSHOT).signed if SNAPSHOT in old else None
    if is_snapshot_needed or snapshot is None:
        # A role that was there once stays (TUF spec 5.5.5).
        meta = dict(snapshot.meta) if snapshot else {}
        for role in (TARGETS, *state.delegated):
            if role in state:
                meta[f"{role}.json"] = MetaFile(state.metadata(role).signed.version)
        snapshot = Snapshot(version=snapshot.version + 1 if snapshot else 1, meta=meta)
        snapshot.expires = expiry(state.validity, SNAPSHOT, now_utc_ms)
        files[SNAPSHOT] = _signed(state, SNAPSHOT, snapshot, signers)
    before = old.metadata(TIMESTAMP).signed.version if TIMESTAMP in old else 0
    timestamp = Timestamp(version=before + 1, snapshot_meta=MetaFile(snapshot.version))
    timestamp.expires = expiry(state.validity, TIMESTAMP, now_utc_ms)
    files[TIMESTAMP] = _signed(state, TIMESTAMP, timestamp, signers)
    return files


def put_out(disk: Disk, state: State, current: Files, chosen: Iterable[str], files: Files) -> State:
    """Write `chosen` of `state` and the online files; returns what readers see then.

    A crash within leaves readers what they had, or all of it; then `chosen` is still pending, and
    doing it again ends it.
    """
    for role in sorted(set(chosen) - {ROOT}):
        disk.put_version(role, state.metadata(role).signed.version, state.files[role])
    after = State({**current, **state.files, **files})
    if SNAPSHOT in files:
        disk.put_version(SNAPSHOT, after.metadata(SNAPSHOT).signed.version, files[SNAPSHOT])
    if ROOT not in chosen:
        disk.put_timestamp(files[TIMESTAMP])
    elif _is_believed({**current, **files, TARGETS: state.files[TARGETS]}):
        disk.put_timestamp(files[TIMESTAMP])
        disk.put_version(ROOT, after.root.version, state.files[ROOT])
    else:
        disk.put_version(ROOT, after.root.version, state.files[ROOT])
        disk.put_timestamp(files[TIMESTAMP])
    return after


def check_documents(disk: Disk, state: State, old: State, roles: Iterable[str]) -> None:
    """Hold every new document of these roles, and every blob that it names, to be here whole.

    Hashing a blob takes as long as reading it; one that an earlier version of the role names has
    been hashed then.

    Raises:
        PublishRefused: a document or a blob is missing, or another than was signed.
        DocumentRefused: a document is not what its path says.
    """
    for role in roles:
        if role not in state.delegated:
            continue
        known = old.metadata(role).signed.targets if role in old else {}
        for path, target in state.metadata(role).signed.targets.items():
            if path in known and known[path].hashes == target.hashes:
                continue
            data = disk.document(path, target.hashes["sha256"], target.length)
            for blob in check_placed(path, data):
                fault = blob_fault(disk.blob_place(blob.sha256), blob)
                if fault:
                    reason = f"its file sha256:{blob.sha256[:12]} {fault}"
                    raise PublishRefused(what=path, reason=reason)


def add_signatures(role: str, metadata: Metadata[Any], signers: Iterable[Signer]) -> None:
    """Sign with each of `signers`, beside the signatures that are there.

    Raises:
        PublishRefused: a signer failed.
    """
    for signer in signers:
        try:
            metadata.sign(signer, append=True)
        except UnsignedMetadataError as error:
            raise PublishRefused(what=role, reason=str(error)) from error


def _is_well(current: Files, pending: Files, roles: frozenset[str]) -> bool:
    before = current.get(ROOT) if ROOT in roles else None
    state = State({**current, **{role: pending[role] for role in roles}}, before)
    if state.fault():
        return False
    old = State(current)
    for role in roles:
        version = old.metadata(role).signed.version if role in old else 0
        if not state.knows(role) or state.metadata(role).signed.version != version + 1:
            return False
    return True


def _is_believed(files: Files) -> bool:
    """Tell whether a reader with the root of this set believes its online files and targets."""
    if ROOT not in files:
        return False
    state = State(files)
    return not any(state.signing(one).missing_count for one in (TARGETS, SNAPSHOT, TIMESTAMP))


def _signed(
    state: State, role: str, signed: Snapshot | Timestamp, signers: Sequence[Signer]
) -> bytes:
    """Sign for readers of the new root and, where such signers are here, of the old one."""
    allowed = state.keys(role)
    metadata: Metadata[Any] = Metadata(signed)
    add_signatures(role, metadata, [one for one in signers if one.public_key.keyid in allowed])
    data = metadata.to_bytes()
    signing = State({**state.files, role: data}).signing(role)
    if signing.missing_count:
        raise PublishRefused(what=role, reason=lacking(signing))
    return data
