"""Learn what was signed in a TUF repository, and believe nothing else and nothing older.

What this room does: refreshes the metadata in a fresh generation, holds it against the floors, and
opens the repository for documents, each read by its signed length and hash.
What it knows: the only importer of tuf on the appliance's side. What python-tuf verified is kept
even where a later step fails, as its specification wants: the floors are durable before a document
is read, the generation before it is current.
What it never does: fetch weights; need fresh metadata for what was learnt before (`remembered` has
it); look at what a document says (`agreement` does).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from appliance.contract.document import DOCUMENT_BYTES_MAX
from appliance.domain.value import Value
from appliance.errors import HubUnreachable, SyncError, Untrusted
from appliance.sync.agreement import Agreement, agree
from appliance.sync.clock_rules import TrustedNow, believable_utc_ms, expired, trusted_now
from appliance.sync.fetcher import MetadataSource, Reader
from appliance.sync.generations import Generations, translated_disk
from appliance.sync.remembered import Remembered
from appliance.sync.verified import Freshness, Seen, Verified

ROOT_BYTES_MAX: Final = 512_000
CONFIG: Final = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=32,
    root_max_length=ROOT_BYTES_MAX,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
)


class RootFacts(Value):
    """What a root says of itself. `keys_count`, `threshold`: of those who may sign the next one."""

    version: int
    expires_utc_ms: int
    keys_count: int
    threshold: int


class Trusted(Value):
    """What one refresh has verified. `clock_is_behind`: see `clock_rules`."""

    agreement: Agreement
    freshness: Freshness
    clock_is_behind: bool


class Trust:
    """What this appliance believes of one repository. Methods block; call them from a thread."""

    def __init__(
        self,
        directory: Path,
        bootstrap: bytes,
        remembered: Remembered,
        *,
        clock: Callable[[], int],
        built_utc_ms: int,
    ) -> None:
        """Keep generations below `directory`; begin from the root `bootstrap`, at every refresh.

        `clock`: UTC milliseconds. `built_utc_ms`: it can't be earlier than this.
        """
        self._generations = Generations(directory)
        self._bootstrap = bootstrap
        self._remembered = remembered
        self._clock = clock
        self._built_utc_ms = built_utc_ms

    def refresh(
        self,
        source: MetadataSource,
        cohort: str,
        models: Collection[str] = (),
        pinned: Collection[str] = (),
    ) -> Trusted:
        """Learn what holds for `cohort`, and what is withdrawn of its models and of `models`.

        `pinned`: digests of releases that must stay in `remembered`. What was verified before an
        error is kept, and is never less than what was known.

        Raises:
            HubUnreachable: the source does not answer, or another refresh is running.
            Untrusted: what it says is forged, expired, older than what is known, or too long.
            ClockUntrusted: by our clock all of it has expired.
            DocumentRefused: the assignment is not one.
            StoreError: what was learnt can't be made durable.
        """
        with self.learning(source, held=self._remembered.data) as learning:
            agreement = agree(learning, cohort, models)
        issued = [one.release.issued_utc_ms for one in agreement.genuine]
        freshness = learning.freshness(max(issued, default=0))
        self._remembered.keep(agreement.consistent, freshness, pinned, _unsigned(agreement))
        return Trusted(
            agreement=agreement, freshness=freshness, clock_is_behind=learning.now.is_behind
        )

    @contextlib.contextmanager
    def learning(
        self, source: MetadataSource, *, held: Callable[[str], bytes | None]
    ) -> Iterator[Learning]:
        """Refresh from `source` and hold it open for documents. Raises as `refresh` does.

        `held`: finds the bytes that were last read at a path; they are not fetched while they are
        what is signed.
        """
        now = trusted_now(
            system_utc_ms=self._clock(),
            signed_utc_ms=self._remembered.freshness().signed_utc_ms,
            built_utc_ms=self._built_utc_ms,
        )
        with self._generations.locked(), source.opened() as reader:
            learning = Learning(self._generations.fresh(), source.name, reader, now, held)
            learning.begin(self._bootstrap)
            failure = learning.advance()
            self._remembered.raise_floors(learning.seen())  # else the generation is never adopted
            try:
                if failure is not None:
                    raise failure
                yield learning
            finally:
                self._generations.adopt(learning.path)


def _unsigned(agreement: Agreement) -> list[str]:
    """Name where only what this refresh has found is believed: also of a model without standing."""
    silent = [one.model for one in agreement.refusals if not one.version]
    return [*agreement.answered, *(f"models/{model}/*/release.json" for model in silent)]


def read_root(data: bytes) -> RootFacts:
    """Check that a root is signed as it demands itself.

    Raises:
        Untrusted: it is none, or is not.
    """
    try:
        if len(data) > ROOT_BYTES_MAX:
            raise Untrusted(what="the root", reason=f"is longer than {ROOT_BYTES_MAX} bytes")
        metadata = Metadata[Root].from_bytes(data)
        if not isinstance(metadata.signed, Root):
            raise Untrusted(what="the root", reason="is metadata of another role")
        root: Root = metadata.signed
        root.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except tuf_errors.RepositoryError as error:
        raise Untrusted(what="the root", reason=str(error)) from error
    role = root.roles[Root.type]
    return RootFacts(
        version=root.version,
        expires_utc_ms=_utc_ms(root),
        keys_count=len(role.keyids),
        threshold=role.threshold,
    )


class Learning:
    """One refresh, in a generation of its own."""

    def __init__(
        self,
        path: Path,
        name: str,
        reader: Reader,
        now: TrustedNow,
        held: Callable[[str], bytes | None],
    ) -> None:
        """Work in the generation `path`."""
        self.path = path
        self.now = now
        self._name = name
        self._reader = reader
        self._held = held

    def begin(self, bootstrap: bytes) -> None:
        """Load the root that came with the appliance; a damaged copy on disk is passed over."""
        with self._translated():
            self._updater = Updater(
                str(self.path),
                "metadata",
                fetcher=_Fetcher(self._name, self._reader),
                config=CONFIG,
                bootstrap=bootstrap,
            )
        moment = datetime.fromtimestamp(self.now.utc_ms / 1000, UTC)
        self._updater._trusted_set.reference_time = moment  # noqa: SLF001 # has no public way in

    def advance(self) -> SyncError | None:
        """Refresh root, timestamp, snapshot and targets; returns why it got no further."""
        try:
            with self._translated():
                self._updater.refresh()
        except SyncError as failure:
            return failure
        return None

    def document(self, path: str, bytes_max: int = DOCUMENT_BYTES_MAX) -> Verified | None:
        """Read a signed document; None where nobody who may has signed one. Blocks.

        Raises:
            HubUnreachable: it is signed, and the source does not give it.
            Untrusted: the source gives another, or it is longer than `bytes_max`.
        """
        with self._translated():
            target = self._updater.get_targetinfo(path)
            if target is None:
                return None
            data = self._bytes(target, path, bytes_max)
            signer = self._signer(path)
        digest = sha256(data).hexdigest()
        return Verified(path=path, signer=signer, sha256=digest, data=data)

    def seen(self) -> Seen:
        """Tell which versions this generation holds, by whom they are signed, and who may sign."""
        root = self._root()
        versions = {Root.type: root.version}
        signers: dict[str, frozenset[str]] = {}
        for name, kind in ((Timestamp.type, Timestamp), (Snapshot.type, Snapshot)):
            signed, keys = self._signed(root, name, kind)
            if signed is None:
                continue
            versions[name], signers[name] = signed.version, keys
            if isinstance(signed, Snapshot):
                for file, meta in signed.meta.items():
                    versions[file.removesuffix(".json")] = meta.version
        accepted = {
            name: (frozenset(root.roles[name].keyids), root.roles[name].threshold)
            for name in (Timestamp.type, Snapshot.type)
        }
        return Seen(versions=versions, signers=signers, accepted=accepted)

    def freshness(self, issued_utc_ms: int) -> Freshness:
        """Tell how fresh this is. `issued_utc_ms`: the latest in a release."""
        ends = self._ends()
        return Freshness(
            signed_utc_ms=believable_utc_ms(issued_utc_ms, root_expires_utc_ms=ends[Root.type]),
            learnt_utc_ms=self.now.utc_ms,
            expires_utc_ms=min(ends.values()),
        )

    def _bytes(self, target: TargetFile, path: str, bytes_max: int) -> bytes:
        if target.length > bytes_max:
            reason = f"is signed with {target.length} bytes; at most {bytes_max}"
            raise Untrusted(what=path, reason=reason)
        known = self._held(path)
        if known is not None:
            with contextlib.suppress(tuf_errors.LengthOrHashMismatchError):
                target.verify_length_and_hashes(known)
                return known
        prefixed = self._root().consistent_snapshot
        place = target.get_prefixed_paths()[0] if prefixed else target.path
        data = self._reader.read(f"targets/{place}", target.length)
        if data is None:
            raise HubUnreachable(source=self._name, reason=f"has no {path}, though it is signed")
        target.verify_length_and_hashes(data)
        return data

    def _signer(self, path: str) -> str:
        """Name the role that has signed a document; python-tuf found it, and does not say where."""
        waiting, seen = [Targets.type], set[str]()
        while waiting:
            role = waiting.pop()
            if role in seen:
                continue
            seen.add(role)
            file = self.path / f"{quote(role, '')}.json"
            signed = Metadata[Targets].from_bytes(file.read_bytes()).signed
            if path in signed.targets:
                return role
            if signed.delegations:
                children = signed.delegations.get_roles_for_target(path)
                waiting += [child for child, _ in children][::-1]
        return ""

    def _root(self) -> Root:
        """Read the root that python-tuf has verified: it moves this name after each."""
        return Metadata[Root].from_bytes((self.path / "root.json").read_bytes()).signed

    def _signed(
        self, root: Root, name: str, kind: type[Signed]
    ) -> tuple[Signed | None, frozenset[str]]:
        """Read what the generation holds of a role, if the root vouches for it still."""
        nothing: tuple[None, frozenset[str]] = (None, frozenset())
        try:
            metadata = Metadata.from_bytes((self.path / f"{name}.json").read_bytes())
        except (OSError, tuf_errors.RepositoryError):
            return nothing
        result = root.get_verification_result(name, metadata.signed_bytes, metadata.signatures)
        if not result.verified or not isinstance(metadata.signed, kind):
            return nothing
        return metadata.signed, frozenset(result.signed)

    def _ends(self) -> dict[str, int]:
        root = self._root()
        found: dict[str, Signed | None] = {Root.type: root}
        for name, kind in ((Timestamp.type, Timestamp), (Snapshot.type, Snapshot)):
            found[name], _ = self._signed(root, name, kind)
        return {name: _utc_ms(signed) for name, signed in found.items() if signed}

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn python-tuf's refusals into ours; those of a source pass through."""
        try:
            with translated_disk():
                yield
        except tuf_errors.ExpiredMetadataError as error:
            raise expired(str(error), self.now.utc_ms, self._ends()) from error
        except tuf_errors.RepositoryError as error:
            raise Untrusted(what="the repository", reason=str(error)) from error
        except tuf_errors.DownloadError as error:
            raise HubUnreachable(source=self._name, reason=str(error)) from error


def _utc_ms(signed: Signed) -> int:
    return int(signed.expires.timestamp() * 1000)


class _Fetcher(FetcherInterface):
    """What python-tuf reads with: relative paths, from the open source."""

    def __init__(self, name: str, reader: Reader) -> None:
        self._name = name
        self._reader = reader

    def download_bytes(self, url: str, max_length: int) -> bytes:
        data = self._reader.read(url, max_length)
        if data is None:
            raise tuf_errors.DownloadHTTPError(f"has no {url}", HTTPStatus.NOT_FOUND)
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, CONFIG.targets_max_length)
