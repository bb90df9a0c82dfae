"""Remember in state.db what was verified, so that nothing older is believed, whatever is on disk.

What this room does: the floors (which version of each TUF role was seen last, and by whom it was
signed), the documents that were verified, and the latest signed time.
What it knows: a floor ends only where the root took the signers' keys away, for that is how a
repository recovers from a thief who signed a version of two thousand million. A document stays
readable for ever: serving, restart and rollback ask here, never the metadata.
A release that nobody signs any more can still be rolled back to, but is not found by its name;
what was withdrawn stays withdrawn until a newer word of a publisher.
What it never does: verify a signature, or forget a release that its caller pins.

| floor of | ends when the root no longer accepts who signed |
|---|---|
| root | never |
| timestamp, snapshot | the timestamp |
| targets, publishers, the director | the snapshot |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

from appliance.contract import names
from appliance.contract.assignment import Assignment
from appliance.contract.document import decode
from appliance.contract.release import Release
from appliance.contract.standing import Standing
from appliance.errors import StoreError, Untrusted
from appliance.store import Migration, SqlValue, Store, Transaction
from appliance.sync.verified import Freshness, Seen, Verified

RELEASES_MAX = 512
_FLOORS = """CREATE TABLE trust_floors (
    role TEXT PRIMARY KEY, version INTEGER NOT NULL, signers TEXT NOT NULL) STRICT"""
_DOCUMENTS = """CREATE TABLE trust_documents (
    sha256 TEXT PRIMARY KEY, path TEXT NOT NULL, signer TEXT NOT NULL,
    learnt_utc_ms INTEGER NOT NULL, data BLOB NOT NULL) STRICT"""
_CLOCK = """CREATE TABLE trust_clock (
    id INTEGER PRIMARY KEY CHECK (id = 1), signed_utc_ms INTEGER NOT NULL,
    learnt_utc_ms INTEGER NOT NULL, expires_utc_ms INTEGER NOT NULL) STRICT"""
MIGRATIONS = (
    Migration(
        "trust.0001",
        (_FLOORS, _DOCUMENTS, "CREATE INDEX trust_paths ON trust_documents (path)", _CLOCK),
    ),
    Migration(
        "trust.0002",
        ("ALTER TABLE trust_documents ADD COLUMN is_signed INTEGER NOT NULL DEFAULT 1",),
    ),
)
_ON_THEIR_OWN = frozenset({"timestamp", "snapshot"})  # all others are named by the snapshot


class Remembered:
    """The tables of trust in state.db. Methods block; call them from a thread."""

    def __init__(self, store: Store, *, store_wait_s: float) -> None:
        """Use `store`, made with MIGRATIONS."""
        self._store = store
        self._store_wait_s = store_wait_s

    def raise_floors(self, seen: Seen) -> None:
        """Take what was seen as the least there may be from now on; durable on return.

        Raises:
            Untrusted: a role is older than was seen before, or gone; nothing was changed.
            StoreError: it can't be made durable.
        """
        self._transact(lambda transaction: _raise_floors(transaction, seen))

    def floors(self) -> dict[str, int]:
        """Tell the least version of each role."""
        rows = self._store.read("SELECT role, version FROM trust_floors")
        return {str(role): int(str(version)) for role, version in rows}

    def keep(
        self,
        documents: Collection[Verified],
        freshness: Freshness,
        pinned: Collection[str],
        unsigned: Collection[str] = (),
    ) -> None:
        """Keep documents, and how fresh they are, in one transaction. Raises StoreError.

        Of releases the latest RELEASES_MAX stay, and those whose digests are `pinned`. `unsigned`:
        patterns of paths (SQLite's GLOB) at which nothing else is believed any more.
        """

        def intent(transaction: Transaction) -> None:
            for pattern in unsigned:
                mark = "UPDATE trust_documents SET is_signed = 0 WHERE path GLOB ?"
                transaction.execute(mark, (pattern,))
            for one in documents:
                _keep(transaction, one, freshness.learnt_utc_ms)
            _prune(transaction, frozenset(pinned))
            transaction.execute(
                "INSERT INTO trust_clock VALUES (1, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " signed_utc_ms = max(signed_utc_ms, excluded.signed_utc_ms),"
                " learnt_utc_ms = excluded.learnt_utc_ms, expires_utc_ms = excluded.expires_utc_ms",
                (freshness.signed_utc_ms, freshness.learnt_utc_ms, freshness.expires_utc_ms),
            )

        self._transact(intent)

    def freshness(self) -> Freshness:
        """Tell how old our knowledge is. Raises StoreError."""
        rows = self._store.read(
            "SELECT signed_utc_ms, learnt_utc_ms, expires_utc_ms FROM trust_clock"
        )
        if not rows:
            return Freshness()
        signed, learnt, expires = (int(str(value)) for value in rows[0])
        return Freshness(signed_utc_ms=signed, learnt_utc_ms=learnt, expires_utc_ms=expires)

    def data(self, path: str) -> bytes | None:
        """Find the bytes that were last verified at `path`."""
        found = self._find("path", path)
        return found.data if found else None

    def release(self, sha256: str) -> Release | None:
        """Find a release that was verified once, by the digest of its document."""
        found = self._find("sha256", sha256)
        return decode(found.data, Release) if found else None

    def latest_release(self, model: str, version: str) -> tuple[Verified, Release] | None:
        """Find the release under this name that was signed when we last heard."""
        found = self._find("is_signed AND path", names.release_path(model, version))
        return (found, decode(found.data, Release)) if found else None

    def standing(self, model: str) -> Standing | None:
        """Find what was withdrawn of a model when we last heard."""
        found = self._find("path", names.standing_path(model))
        return decode(found.data, Standing) if found else None

    def assignment(self, cohort: str) -> Assignment | None:
        """Find what the cohort should run, as we last heard."""
        found = self._find("is_signed AND path", names.assignment_path(cohort))
        return decode(found.data, Assignment) if found else None

    def _transact(self, intent: Callable[[Transaction], None]) -> None:
        try:
            self._store.submit(intent).result(self._store_wait_s)
        except TimeoutError as error:
            raise StoreError(
                database=self._store.path.name, reason=f"no answer within {self._store_wait_s:g} s"
            ) from error

    def _find(self, where: str, value: str) -> Verified | None:
        """Read one document; a bit that flipped in the file is noticed. Raises StoreError."""
        rows = self._store.read(
            f"SELECT path, signer, sha256, data FROM trust_documents WHERE {where} = ?"  # noqa: S608 # our own words
            " ORDER BY learnt_utc_ms DESC LIMIT 1",
            (value,),
        )
        if not rows:
            return None
        path, signer, sha256, data = rows[0]
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(database=self._store.path.name, reason=f"{value} has changed in it")
        return Verified(path=str(path), signer=str(signer), sha256=str(sha256), data=data)


def _raise_floors(transaction: Transaction, seen: Seen) -> None:
    rows = transaction.execute("SELECT role, version, signers FROM trust_floors")
    for role, floor, signers in rows:
        governing = _governing(str(role))
        if governing and _lapsed(str(signers), seen.accepted.get(governing)):
            transaction.execute("DELETE FROM trust_floors WHERE role = ?", (role,))
            continue
        if role in _ON_THEIR_OWN and role not in seen.versions:
            continue  # not reached this time: the floor stays as it is
        if governing and governing not in seen.signers:
            continue  # likewise
        version, least = seen.versions.get(str(role), 0), int(str(floor))
        if version < least:
            found = f"is version {version}" if version else "is gone"
            raise Untrusted(what=str(role), reason=f"{found}; version {least} was seen before")
    for role, version in seen.versions.items():
        signed_by = " ".join(sorted(seen.signers.get(_governing(role), frozenset())))
        values: tuple[SqlValue, ...] = (role, version, signed_by)
        transaction.execute("INSERT OR REPLACE INTO trust_floors VALUES (?, ?, ?)", values)


def _governing(role: str) -> str:
    """Name the role whose signers vouch for the version of `role`; "" for the root itself."""
    if role == "root":
        return ""
    return "timestamp" if role in _ON_THEIR_OWN else "snapshot"


def _lapsed(signers: str, accepted: tuple[frozenset[str], int] | None) -> bool:
    """Tell whether what these keys signed would be refused now."""
    keys, threshold = accepted or (frozenset(), 0)
    return len(keys & frozenset(signers.split())) < threshold


def _keep(transaction: Transaction, one: Verified, now_utc_ms: int) -> None:
    if not one.path.endswith("/release.json"):  # of the others only the latest counts
        transaction.execute("DELETE FROM trust_documents WHERE path = ?", (one.path,))
    transaction.execute(
        "INSERT OR REPLACE INTO trust_documents VALUES (?, ?, ?, ?, ?, 1)",
        (one.sha256, one.path, one.signer, now_utc_ms, one.data),
    )


def _prune(transaction: Transaction, pinned: frozenset[str]) -> None:
    rows = transaction.execute(
        "SELECT sha256 FROM trust_documents WHERE path LIKE '%/release.json'"
        " ORDER BY learnt_utc_ms DESC, sha256"
    )
    for row in rows[RELEASES_MAX:]:
        if row[0] not in pinned:
            transaction.execute("DELETE FROM trust_documents WHERE sha256 = ?", row)
