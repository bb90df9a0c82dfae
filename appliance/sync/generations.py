"""Keep the metadata that was verified last in a directory that is never half written.

What this room does: a refresh works on a fresh copy, `gen-NNNNNN`; adopting it syncs every file and
directory in it and then moves the pointer `current`; older ones go.
What it knows: python-tuf writes its files without syncing them, so after a power cut any of them
may be there with no bytes in it. A generation that `current` names was synced before it was named.
What it never does: change a generation that was adopted, or believe what is in it: a lost pointer
or a damaged file means that the refresh begins from the bootstrap root, below which the floors of
`remembered` still hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import HubUnreachable, StoreError
from appliance.store.files import remove_unfinished, sync_directory, write_durably

KEPT = 2
POINTER = "current"
_NAME = re.compile(r"gen-(\d{6,9})")
_POINTER_BYTES_MAX = 64


class Generations:
    """The directory `tuf/`. All methods block."""

    def __init__(self, directory: Path) -> None:
        """Keep generations below `directory`, which is made when it is first needed."""
        self._directory = directory

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory alone, among all processes; two refreshes would take turns at a file.

        Raises:
            HubUnreachable: somebody else holds it.
            StoreError: the directory can't be made.
        """
        with translated_disk():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise HubUnreachable(
                source=str(self._directory), reason="another refresh is running"
            ) from error
        finally:
            os.close(descriptor)

    def current(self) -> Path | None:
        """Find the generation that was adopted last; None where there is none, or no pointer."""
        with contextlib.suppress(OSError):
            with (self._directory / POINTER).open("rb") as file:
                name = file.read(_POINTER_BYTES_MAX).decode(errors="replace").strip()
            path = self._directory / name
            if _NAME.fullmatch(name) and path.is_dir():
                return path
        return None

    def fresh(self) -> Path:
        """Copy the current generation into a new one, and remove what is neither.

        Raises:
            StoreError: it can't be copied.
        """
        with translated_disk():
            current = self.current()
            numbers = self._numbers()
            self._remove(numbers, current)
            remove_unfinished(self._directory / POINTER)
            path = self._directory / f"gen-{max(numbers, default=0) + 1:06d}"
            if current is None:
                path.mkdir(mode=0o700)
            else:
                shutil.copytree(current, path, symlinks=True)
            return path

    def adopt(self, path: Path) -> None:
        """Make `path` durable, then current.

        Raises:
            StoreError: it is not; what was current still is.
        """
        with translated_disk():
            for directory, _, names in os.walk(path):
                for name in names:
                    _sync(Path(directory, name))
                sync_directory(Path(directory))
            sync_directory(self._directory)
            write_durably(self._directory / POINTER, f"{path.name}\n".encode(), mode=0o600)

    def discard(self, path: Path) -> None:
        """Remove a generation that is not adopted."""
        shutil.rmtree(path, ignore_errors=True)

    def _numbers(self) -> list[int]:
        found = (_NAME.fullmatch(entry.name) for entry in self._directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _remove(self, numbers: list[int], current: Path | None) -> None:
        """Keep the current one and the one before; what is later was never adopted."""
        kept = [number for number in numbers if current and number <= int(current.name[4:])]
        for number in set(numbers) - set(kept[-KEPT:]):
            self.discard(self._directory / f"gen-{number:06d}")


def _sync(path: Path) -> None:
    if path.is_symlink():
        return  # the directory holds it
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated_disk() -> Iterator[None]:
    """Turn what the disk refuses into StoreError."""
    try:
        yield
    except OSError as error:  # shutil.Error is one
        raise StoreError(database="tuf", reason=error.strerror or str(error)) from error
