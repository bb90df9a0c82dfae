"""Keep a repository's files so that a reader never sees half of a change.

What this room does: reads what readers see now, keeps pending versions, puts out new ones.
What it knows: every file but timestamp.json has its version or digest in its name and is written
once; so a change is there when timestamp.json is renamed into place, and not before. A reader
takes the next root as soon as it lies there.
What it never does: parse more than it needs to find a file, verify, or delete what was put out.

    metadata/N.root.json N.targets.json N.ROLE.json N.snapshot.json timestamp.json
    targets/models/MODEL/VERSION/SHA256.release.json
    blobs/sha256/HH/HEX
    pending/ROLE.json      versions that are being signed: not for readers
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.clock import monotonic_ms
from appliance.contract.document import DOCUMENT_BYTES_MAX
from appliance.contract.names import blob_path
from appliance.errors import PublishRefused
from appliance.hub.signing.state import ROOT, SNAPSHOT, TIMESTAMP, bytes_max, parsed
from appliance.store import make_directory, write_durably

ROOTS_MAX = 4096
_LOCK_STEP_S = 0.05
_MODE = 0o644


class Disk:
    """The directory of a repository. Every OSError becomes a `PublishRefused` with its path."""

    def __init__(self, directory: Path, *, lock_wait_s: float) -> None:
        """Keep files under `directory`, which need not be there yet."""
        self.directory = directory
        self._lock_wait_ms = lock_wait_s * 1000
        self._metadata = directory / "metadata"
        self._pending = directory / "pending"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who edits; waits `lock_wait_s` at most.

        Raises:
            PublishRefused: another process edits, or a file can't be read or written.
        """
        try:
            for directory in (self._metadata, self._pending, self.directory / "targets"):
                make_directory(directory)
            descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._lock(descriptor)
                yield
            finally:
                os.close(descriptor)
        except BlockingIOError as error:
            reason = "another process is changing it; try again"
            raise PublishRefused(what=str(self.directory), reason=reason) from error
        except OSError as error:
            raise _refused(self.directory, error) from error

    def _lock(self, descriptor: int) -> None:
        deadline = monotonic_ms() + self._lock_wait_ms
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if monotonic_ms() >= deadline:
                    raise
            time.sleep(_LOCK_STEP_S)

    def current(self) -> dict[str, bytes]:
        """Read what a reader sees now, by role; empty before the first timestamp."""
        files: dict[str, bytes] = {}
        root = self.root_version()
        if not root:
            return files
        files[ROOT] = self.root(root)
        timestamp = self._read(self._metadata / "timestamp.json", bytes_max(TIMESTAMP))
        if timestamp is None:
            return files
        files[TIMESTAMP] = timestamp
        version = parsed(TIMESTAMP, timestamp).signed.snapshot_meta.version
        files[SNAPSHOT] = self._numbered(version, SNAPSHOT)
        for name, meta in parsed(SNAPSHOT, files[SNAPSHOT]).signed.meta.items():
            role = name.removesuffix(".json")
            files[role] = self._numbered(meta.version, role)
        return files

    def root_version(self) -> int:
        """Count the roots, which are kept for ever and have no gap."""
        for version in itertools.count(1):
            if not (self._metadata / f"{version}.root.json").exists():
                return version - 1
            if version > ROOTS_MAX:
                raise PublishRefused(what=ROOT, reason=f"more than {ROOTS_MAX} versions")
        raise AssertionError

    def root(self, version: int) -> bytes:
        """Read one root."""
        return self._numbered(version, ROOT)

    def pending(self) -> dict[str, bytes]:
        """Read the versions that are being signed, by role."""
        found: dict[str, bytes] = {}
        for path in sorted(self._pending.glob("*.json")):
            role = path.stem
            data = self._read(path, bytes_max(role))
            if data is not None:
                found[role] = data
        return found

    def keep_pending(self, role: str, data: bytes) -> None:
        """Keep a version that is being signed."""
        if len(data) > bytes_max(role):
            reason = f"would be {len(data)} bytes; readers take {bytes_max(role)}"
            raise PublishRefused(what=role, reason=reason)
        write_durably(self._pending / f"{role}.json", data, mode=_MODE)

    def drop_pending(self, role: str) -> None:
        """Forget a version that was being signed."""
        (self._pending / f"{role}.json").unlink(missing_ok=True)

    def put_version(self, role: str, version: int, data: bytes) -> None:
        """Put out a role's version; readers of the snapshot before do not look at it."""
        write_durably(self._metadata / f"{version}.{role}.json", data, mode=_MODE)

    def put_timestamp(self, data: bytes) -> None:
        """Let readers see everything that was put out before."""
        write_durably(self._metadata / "timestamp.json", data, mode=_MODE)

    def put_document(self, path: str, data: bytes) -> None:
        """Put a target beside those of the same path; its digest is in its name."""
        place = self.document_place(path, hashlib.sha256(data).hexdigest())
        if not place.exists():
            make_directory(place.parent)
            write_durably(place, data, mode=_MODE)

    def document_place(self, path: str, sha256: str) -> Path:
        """Find where a target lies (TUF spec 6.2, consistent snapshots)."""
        directory, _, name = path.rpartition("/")
        return self.directory / "targets" / directory / f"{sha256}.{name}"

    def document(self, path: str, sha256: str, length: int) -> bytes:
        """Read a target whose digest and length are known.

        Raises:
            PublishRefused: it is not there, or is another.
        """
        data = self._read(self.document_place(path, sha256), DOCUMENT_BYTES_MAX)
        if data is None:
            raise PublishRefused(what=path, reason="its document is not in the repository")
        if len(data) != length or hashlib.sha256(data).hexdigest() != sha256:
            raise PublishRefused(what=path, reason="its document is not the one that was signed")
        return data

    def blob_place(self, sha256: str) -> Path:
        """Find where a blob lies."""
        return self.directory / blob_path(sha256)

    def _numbered(self, version: int, role: str) -> bytes:
        path = self._metadata / f"{version}.{role}.json"
        data = self._read(path, bytes_max(role))
        if data is None:
            raise PublishRefused(what=str(path), reason="is missing from the repository")
        return data

    @staticmethod
    def _read(path: Path, limit: int) -> bytes | None:
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error) from error
        if len(data) > limit:
            raise PublishRefused(what=str(path), reason=f"is larger than {limit} bytes")
        return data


def _refused(path: Path, error: OSError) -> PublishRefused:
    name = error.filename if isinstance(error.filename, str) else str(path)
    return PublishRefused(what=name, reason=error.strerror or str(error))
