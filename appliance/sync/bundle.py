"""Read a bundle that somebody brought: a directory, or an uncompressed tar, with the hub's folders.

What this room does: opens either as a source for `trust`, and finds blobs in it by their digests.
What it knows: a tar is read where it lies, nothing is unpacked: so a path in it is only ever
compared. A bundle is as untrusted as a mirror; all that counts in it is signed.
What it never does: follow a link, open a device, or read more of an index than its bounds.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from appliance.contract import names
from appliance.domain.value import Value
from appliance.errors import DocumentRefused, HubUnreachable, Untrusted
from appliance.sync.fetcher import DirectoryMetadata, Reader, open_below
from appliance.sync.trust import Trust, Trusted

MEMBERS_MAX = 20_000
HEADER_BYTES_MAX = 64 << 10
_NAME = re.compile(
    r"metadata/[A-Za-z0-9%][A-Za-z0-9%._-]{0,254}\.json"
    r"|targets(/[A-Za-z0-9][A-Za-z0-9._-]{0,254}){1,6}"
    r"|blobs/sha256/[0-9a-f]{2}/[0-9a-f]{64}"
)
_FOLDER = re.compile(r"\.?|(metadata|targets|blobs)(/[A-Za-z0-9][A-Za-z0-9._-]{0,254}){0,5}")


class Place(Value):
    """Where a file lies: the bytes of `path` from `offset` on, `length` of them."""

    path: str
    offset: int
    length: int


class Bundle(Protocol):
    """A source that also has blobs."""

    @property
    def name(self) -> str:
        """Name it: its path."""
        ...

    def opened(self) -> AbstractContextManager[Reader]:
        """Open it for one refresh."""
        ...

    def blob(self, sha256: str) -> Place | None:
        """Find a blob, unverified; None where it has none. Raises DocumentRefused: no digest."""
        ...


def open_bundle(path: Path) -> Bundle:
    """Look at a bundle; of a tar, go through all headers.

    Raises:
        HubUnreachable: nothing is there, or it can't be read.
        DocumentRefused: it is neither, or holds what no bundle holds.
    """
    return DirectoryBundle(path) if path.is_dir() else TarBundle(path)


def import_bundle(
    path: Path, trust: Trust, cohort: str, models: Collection[str], pinned: Collection[str]
) -> tuple[Bundle, Trusted]:
    """Learn from a bundle through exactly the checks that a hub goes through.

    Raises:
        SyncError: as `open_bundle` and `Trust.refresh`.
    """
    bundle = open_bundle(path)
    return bundle, trust.refresh(bundle, cohort, models, pinned)


class DirectoryBundle(DirectoryMetadata):
    """A directory with the three folders."""

    def blob(self, sha256: str) -> Place | None:
        """Find a blob; a link in its place is none."""
        path = names.blob_path(sha256)
        with contextlib.suppress(OSError):
            directory = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with open_below(directory, path) as descriptor:
                    length = os.fstat(descriptor).st_size
                return Place(path=str(Path(self.name, path)), offset=0, length=length)
            finally:
                os.close(directory)
        return None


class TarBundle:
    """A tar, indexed once."""

    def __init__(self, path: Path) -> None:
        """Read the headers; see `open_bundle`."""
        self.name = str(path)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._index = dict(_members(_Bounded(file), size))
        except OSError as error:
            raise HubUnreachable(source=self.name, reason=error.strerror or str(error)) from error
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise _refused("", f"is no tar that can be read: {error}") from error

    @contextlib.contextmanager
    def opened(self) -> Iterator[Reader]:
        """Hold the file open."""
        try:
            file = Path(self.name).open("rb")  # noqa: SIM115 # what the caller does inside is not ours to catch
        except OSError as error:
            raise HubUnreachable(source=self.name, reason=error.strerror or str(error)) from error
        with file:
            yield _TarReader(file, self._index)

    def blob(self, sha256: str) -> Place | None:
        """Find a blob inside the tar."""
        found = self._index.get(names.blob_path(sha256))
        return Place(path=self.name, offset=found[0], length=found[1]) if found else None


class _TarReader:
    def __init__(self, file: BinaryIO, index: dict[str, tuple[int, int]]) -> None:
        self._file = file
        self._index = index

    def read(self, path: str, bytes_max: int) -> bytes | None:
        if path not in self._index:
            return None
        offset, length = self._index[path]
        if length > bytes_max:
            raise Untrusted(what=path, reason=f"has {length} bytes; at most {bytes_max}")
        return os.pread(self._file.fileno(), length, offset)


class _Bounded(io.RawIOBase):
    """A file of which tarfile may not read much at once: a header can ask for any length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= HEADER_BYTES_MAX:
            raise tarfile.ReadError(f"a header of {size} bytes; at most {HEADER_BYTES_MAX}")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _members(file: _Bounded, size: int) -> Iterator[tuple[str, tuple[int, int]]]:
    seen: set[str] = set()
    with tarfile.open(fileobj=file, mode="r:") as tar:  # a compressed one has no places
        for count, member in enumerate(tar, start=1):
            name = member.name.removeprefix("./")
            if count > MEMBERS_MAX:
                raise _refused(name, f"is beyond {MEMBERS_MAX} members")
            if member.isdir() and _FOLDER.fullmatch(name):
                continue
            _check_member(member, name, size)
            if name in seen:
                raise _refused(name, "is there twice")
            seen.add(name)
            yield name, (member.offset_data, member.size)


def _check_member(member: tarfile.TarInfo, name: str, size: int) -> None:
    plain = member.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not member.issparse()
    if not plain or not _NAME.fullmatch(name):
        raise _refused(name, "is no file of metadata, targets or blobs")
    if not 0 <= member.size <= size - member.offset_data:
        raise _refused(name, f"has {member.size} bytes, and the file ends before them")


def _refused(field: str, reason: str) -> DocumentRefused:
    shown = field[:128].encode("ascii", "backslashreplace").decode()
    return DocumentRefused(document="bundle", field=shown, reason=reason)
