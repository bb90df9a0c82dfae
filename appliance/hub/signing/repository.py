"""Change a repository: found it, delegate, put documents, sign, and put all of it out at once.

What this room does: drafts the next version of a role from the newest one, adds signatures to it,
and settles what is complete.
What it knows: signers are handed in; each signs what its key may sign and nothing else.
What it never does: load a key, or read the clock; the time is an argument.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.signer import Signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from appliance.contract.names import DIRECTOR_PATHS, DIRECTOR_ROLE, publisher_paths, publisher_role
from appliance.errors import PublishRefused
from appliance.hub.placed import check_placed
from appliance.hub.signing import expiring, settling
from appliance.hub.signing.changes import Change, changes, is_signed_by
from appliance.hub.signing.disk import Disk
from appliance.hub.signing.expiring import Due
from appliance.hub.signing.role_keys import (
    RoleKeys,
    delegate,
    expiry,
    set_root_role,
    undelegate,
)
from appliance.hub.signing.state import (
    OWNER,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    Signing,
    State,
    Validity,
    parsed,
    shown,
    with_validity,
)

PUBLISHERS_MAX = 31  # python-tuf's reader visits 32 delegated roles, and one is the director's
_UNNUMBERED = (ROOT, TIMESTAMP)  # every root is named; the timestamp has no number
LOCK_WAIT_S = 5.0  # for another process that changes the same repository


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What was put out: role → version, snapshot and timestamp among them; empty if nothing."""

    versions: dict[str, int]


class Repository:
    """One repository's directory. Every act but reading holds the directory's lock."""

    def __init__(self, directory: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        """Work on `directory`; `found` makes one there."""
        self._disk = Disk(directory, lock_wait_s=lock_wait_s)
        self.directory = directory

    # --- founding and who may sign ---------------------------------------------------------------

    def found(
        self, keys: dict[str, RoleKeys], *, now_utc_ms: int, validity: Validity | None = None
    ) -> None:
        """Draft the first root, targets and director; `keys` for these, snapshot and timestamp.

        Raises:
            PublishRefused: there is a repository already, or a role has no sufficient keys.
        """
        roles = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP, DIRECTOR_ROLE)
        for role in roles:
            if role not in keys:
                raise PublishRefused(what=role, reason="no keys are given for it")
            keys[role].check(role)
        with self._disk.locked():
            if self._disk.root_version() or self._disk.pending():
                reason = "there is a repository already"
                raise PublishRefused(what=str(self.directory), reason=reason)
            validity = validity or Validity()
            root = Root(consistent_snapshot=True)
            with_validity(root, validity)
            for role in roles[:-1]:
                set_root_role(root, role, keys[role])
            targets = Targets(delegations=Delegations({}, roles={}))
            delegate(targets, DIRECTOR_ROLE, keys[DIRECTOR_ROLE], DIRECTOR_PATHS)
            drafts: dict[str, Any] = {ROOT: root, TARGETS: targets, DIRECTOR_ROLE: Targets()}
            for role, signed in drafts.items():
                signed.expires = expiry(validity, role, now_utc_ms)
                self._disk.keep_pending(role, Metadata(signed).to_bytes())

    def set_keys(self, role: str, keys: RoleKeys, *, now_utc_ms: int) -> None:
        """Draft a change of who signs a role, in root or in targets; the rest is `sign`, `settle`.

        A role whose keys change is drafted again too, for its new keys to sign.

        Raises:
            PublishRefused: no such role, or no sufficient keys.
        """
        keys.check(role)
        if role == DIRECTOR_ROLE:
            self.drop_unsigned(role)
        with self._disk.locked():
            state = self._newest()
            if role in state.root.roles:
                with self._draft(state, ROOT, now_utc_ms) as root:
                    set_root_role(root, role, keys)
                if role == TARGETS:
                    with self._draft(state, TARGETS, now_utc_ms):
                        pass
                return
            paths = tuple(_delegation(state, role).paths or ())
            with self._draft(state, TARGETS, now_utc_ms) as targets:
                delegate(targets, role, keys, paths)
            if role in state:
                with self._draft(state, role, now_utc_ms):
                    pass

    def set_publisher(
        self, publisher: str, models: Sequence[str], keys: RoleKeys, *, now_utc_ms: int
    ) -> None:
        """Draft targets in which `publisher` may sign for `models`, and its empty first version.

        Raises:
            PublishRefused: a model is another publisher's, too many publishers, or bad keys.
            DocumentRefused: a name is none.
        """
        role = publisher_role(publisher)
        keys.check(role)
        paths = tuple(path for model in models for path in publisher_paths(model))
        if not paths:
            raise PublishRefused(what=role, reason="no model is given")
        with self._disk.locked():
            state = self._newest()
            for other, delegation in state.delegated.items():
                for path in set(delegation.paths or ()) & set(paths):
                    if other != role:
                        raise PublishRefused(what=role, reason=f"{path} is for {other} to sign")
            if role not in state.delegated and len(state.delegated) > PUBLISHERS_MAX:
                reason = f"there are {PUBLISHERS_MAX} publishers, the most that readers take"
                raise PublishRefused(what=role, reason=reason)
            with self._draft(state, TARGETS, now_utc_ms) as targets:
                delegate(targets, role, keys, paths)
            with self._draft(state, role, now_utc_ms):
                pass

    def drop_publisher(self, publisher: str, *, now_utc_ms: int) -> None:
        """Draft targets without a publisher; its documents stay, and nobody believes them."""
        role = publisher_role(publisher)
        with self._disk.locked():
            state = self._newest()
            _delegation(state, role)
            with self._draft(state, TARGETS, now_utc_ms) as targets:
                undelegate(targets, role)
            self._disk.drop_pending(role)

    # --- documents -------------------------------------------------------------------------------

    def put(self, role: str, documents: dict[str, bytes], *, now_utc_ms: int) -> None:
        """Draft a version of a delegated role with these documents, by path, beside its others.

        Raises:
            PublishRefused: the role may not sign there, or there is no such role.
            DocumentRefused: a document is not what its path says.
        """
        with self._disk.locked():
            state = self._newest()
            delegation = _delegation(state, role)
            for path, data in documents.items():
                if not delegation.is_delegated_path(path):
                    raise PublishRefused(what=role, reason=f"{path} is not among its paths")
                check_placed(path, data)
            with self._draft(state, role, now_utc_ms) as targets:
                for path, data in documents.items():
                    self._disk.put_document(path, data)
                    targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])

    def redraft(self, role: str, *, now_utc_ms: int) -> None:
        """Draft a version that changes nothing but its expiry."""
        with self._disk.locked(), self._draft(self._newest(), role, now_utc_ms):
            pass

    # --- signing and putting out -----------------------------------------------------------------

    def sign(self, role: str, signers: Iterable[Signer]) -> Signing:
        """Add signatures to a pending version by those of `signers` whose keys may sign it.

        Raises:
            PublishRefused: nothing is pending, none of them may, or a signer failed.
        """
        with self._disk.locked():
            state = self._newest()
            if role not in self._pending():
                raise PublishRefused(what=role, reason="no version of it is being signed")
            allowed = state.keys(role)
            chosen = [one for one in signers if one.public_key.keyid in allowed]
            if not chosen:
                raise PublishRefused(what=role, reason=f"none of these keys: {_names(state, role)}")
            metadata = copy.deepcopy(state.metadata(role))
            settling.add_signatures(role, metadata, chosen)
            self._disk.keep_pending(role, metadata.to_bytes())
            return self._newest().signing(role)

    def changes(self, role: str, signers: Sequence[Signer]) -> tuple[Change, ...]:
        """List what a signature by these keys would newly vouch for; to be shown before `sign`.

        Where none of them signed the version that readers see, that is everything in it: whoever
        keeps the repository may have written anything there.

        Raises:
            PublishRefused: nothing is pending.
        """
        if role not in self._pending():
            raise PublishRefused(what=role, reason="no version of it is being signed")
        current = State(self._disk.current())
        base = current.metadata(role) if role in current else None
        if base is not None and not is_signed_by(base, signers):
            base = None
        return changes(self._newest().metadata(role), base)

    def is_signed_by(self, role: str, signers: Sequence[Signer]) -> bool:
        """Tell whether one of these keys signed the pending version as it is."""
        return role in self._pending() and is_signed_by(self._newest().metadata(role), signers)

    def drop_unsigned(self, role: str) -> None:
        """Forget a pending version that has not enough signatures, so that nothing builds on it."""
        if any(one.role == role and one.missing_count for one in self.pending()):
            self.cancel(role)

    def sign_all(self, signers: Sequence[Signer]) -> tuple[Signing, ...]:
        """Sign every pending version that any of `signers` may sign; returns these, as they are.

        What the online keys' roles hold is signed by nothing but `refresh` and who drafted it.

        Raises:
            PublishRefused: a signer failed.
        """
        done = []
        for signing in self.pending():
            allowed = self.signers_of(signing.role)
            if any(signer.public_key.keyid in allowed for signer in signers):
                done.append(self.sign(signing.role, signers))
        return tuple(done)

    def pending(self) -> tuple[Signing, ...]:
        """Tell how far the signatures of every pending version are."""
        pending = self._pending()
        if not pending:
            return ()
        state = self._newest()
        return tuple(state.signing(role) for role in pending if state.knows(role))

    def stale(self) -> tuple[str, ...]:
        """Name the roles whose pending version was made from an older one: to be made again."""
        return tuple(sorted(set(self._disk.pending()) - set(self._pending())))

    def cancel(self, role: str) -> None:
        """Forget a pending version."""
        with self._disk.locked():
            self._disk.drop_pending(role)

    def settle(
        self, signers: Sequence[Signer], *, now_utc_ms: int, renew: Iterable[str] = ()
    ) -> Settled:
        """Put out every pending version that is complete, with a new snapshot and timestamp.

        Durable when it returns; readers see all of it or nothing. `signers`: at least those of
        snapshot and timestamp. `renew`: put out these again although nothing changed.

        Raises:
            PublishRefused: snapshot or timestamp lack signatures, or a document or blob is missing.
        """
        with self._disk.locked():
            current, pending = self._disk.current(), self._disk.pending()
            chosen, renewed = settling.largest(current, pending), frozenset(renew)
            if not chosen and not renewed:
                return Settled(versions={})
            before = current.get(ROOT) if ROOT in chosen else None
            state = State(current | {role: pending[role] for role in chosen}, before)
            settling.check_documents(self._disk, state, State(current), chosen)
            files = settling.online_files(
                state,
                current,
                signers,
                now_utc_ms=now_utc_ms,
                is_snapshot_needed=bool(chosen) or SNAPSHOT in renewed,
            )
            after = settling.put_out(self._disk, state, current, chosen, files)
            for role in chosen:
                self._disk.drop_pending(role)
            names = [*sorted(chosen), *files]
            return Settled(versions={one: after.metadata(one).signed.version for one in names})

    def due(self, now_utc_ms: int) -> tuple[Due, ...]:
        """List what should be signed again by now: the online roles at half of their validity."""
        current = self._disk.current()
        if TIMESTAMP not in current:
            return ()
        return expiring.due(State(current), now_utc_ms)

    def refresh(self, signers: Sequence[Signer], *, now_utc_ms: int) -> Settled:
        """Sign again what online keys sign and what is due, and settle what is pending.

        Raises: as `settle`.
        """
        renew = {due.role for due in self.due(now_utc_ms) if due.is_online}
        if DIRECTOR_ROLE in renew:
            self.drop_unsigned(DIRECTOR_ROLE)  # a publisher may have carried one here
            self.redraft(DIRECTOR_ROLE, now_utc_ms=now_utc_ms)
            self.sign(DIRECTOR_ROLE, signers)
        return self.settle(signers, now_utc_ms=now_utc_ms, renew=renew - {DIRECTOR_ROLE})

    # --- reading ---------------------------------------------------------------------------------

    def roots(self) -> tuple[bytes, ...]:
        """Read every root that was put out, the first one first."""
        return tuple(self._disk.root(n + 1) for n in range(self._disk.root_version()))

    def versions(self) -> dict[str, int]:
        """Tell the version of each role that readers see now."""
        state = State(self._disk.current())
        return {role: state.metadata(role).signed.version for role in state.files}

    def delegated(self) -> dict[str, tuple[str, ...]]:
        """Tell which paths each delegated role may sign, pending changes among them."""
        return {role: tuple(one.paths or ()) for role, one in self._newest().delegated.items()}

    def signers_of(self, role: str) -> dict[str, str]:
        """Name the keys that may sign a role, by their id, pending changes among them."""
        return {keyid: shown(key) for keyid, key in self._newest().keys(role).items()}

    def role_keys(self, role: str) -> RoleKeys:
        """Find who signs a role, pending changes among them.

        Raises:
            PublishRefused: there is no such role.
        """
        state = self._newest()
        found, delegator = state.role(role), state.delegator(role)
        keys = (delegator.get_key(keyid) for keyid in found.keyids)
        named = tuple((str(key.unrecognized_fields.get(OWNER, "")), key) for key in keys)
        return RoleKeys(keys=named, threshold=found.threshold)

    def documents(self, role: str, *, pending: bool = False) -> dict[str, tuple[str, int]]:
        """List a delegated role's documents: path → SHA-256 and length, as readers see them.

        `pending`: as they will be when what is pending is put out.
        """
        state = self._newest() if pending else State(self._disk.current())
        if role not in state:
            return {}
        targets = state.metadata(role).signed.targets
        return {path: (one.hashes["sha256"], one.length) for path, one in targets.items()}

    def document(self, role: str, path: str, *, pending: bool = False) -> bytes | None:
        """Read a document; None where the role has none at `path`. Raises PublishRefused."""
        found = self.documents(role, pending=pending).get(path)
        return None if found is None else self._disk.document(path, *found)

    def metadata_places(self) -> tuple[tuple[str, Path], ...]:
        """Find every metadata file that a reader may ask for now: its name in the repository."""
        versions = self.versions()
        names = [f"{n + 1}.{ROOT}.json" for n in range(self._disk.root_version())]
        names += [f"{n}.{role}.json" for role, n in versions.items() if role not in _UNNUMBERED]
        names.append(f"{TIMESTAMP}.json")
        return tuple((f"metadata/{one}", self.directory / "metadata" / one) for one in names)

    def document_place(self, path: str, sha256: str) -> Path:
        """Find where a document lies, or should lie."""
        return self._disk.document_place(path, sha256)

    def blob_place(self, sha256: str) -> Path:
        """Find where a blob lies, or should lie."""
        return self._disk.blob_place(sha256)

    # --- within ----------------------------------------------------------------------------------

    def _newest(self) -> State:
        """Read what readers see, with everything pending laid over it."""
        current, pending = self._disk.current(), self._pending()
        if ROOT not in current and ROOT not in pending:
            raise PublishRefused(what=str(self.directory), reason="there is no repository yet")
        return State(current | pending, current.get(ROOT) if ROOT in pending else None)

    def _pending(self) -> dict[str, bytes]:
        """Read the pending versions that follow what readers see; others can never be put out."""
        pending, current = self._disk.pending(), State(self._disk.current())
        found = {}
        for role, data in pending.items():
            before = current.metadata(role).signed.version if role in current else 0
            if parsed(role, data).signed.version == before + 1:
                found[role] = data
        return found

    @contextlib.contextmanager
    def _draft(self, state: State, role: str, now_utc_ms: int) -> Iterator[Any]:
        """Hand out the next version of a role to be changed, and keep it, unsigned."""
        current = self._disk.current()
        signed = copy.deepcopy(state.metadata(role).signed) if role in state else Targets()
        if role in current:
            signed.version = State(current).metadata(role).signed.version + 1
        signed.expires = expiry(state.validity, role, now_utc_ms)
        yield signed
        self._disk.keep_pending(role, Metadata(signed).to_bytes())


def _names(state: State, role: str) -> str:
    signing = state.signing(role)
    return f"may sign it; those who may: {', '.join((*signing.signed, *signing.unsigned))}"


def _delegation(state: State, role: str) -> DelegatedRole:
    if role not in state.delegated:
        raise PublishRefused(what=role, reason="the repository delegates to no such role")
    return state.delegated[role]
