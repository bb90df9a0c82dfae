"""Notice that something was published, without being told.

What this room does: the version of the repository's timestamp, read again when its file changed.
What it knows: publishing replaces `timestamp.json` last and at once: it changes when all is there.
What it never does: verify a signature; appliances do. What it says is a hint.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

TIMESTAMP_BYTES_MAX = 64 * 1024


class _Signed(msgspec.Struct):
    version: int = 0


class _Timestamp(msgspec.Struct):
    signed: _Signed


class RepositoryWatch:
    """What is known of the timestamp. `version`: 0 while there is none that can be read."""

    def __init__(self, repository: Path) -> None:
        """Watch `repository`/metadata/timestamp.json; see `look`."""
        self._path = repository / "metadata" / "timestamp.json"
        self._seen: tuple[int, ...] = ()
        self.version = 0

    def look(self) -> bool:
        """Tell whether the version changed since the last look; blocks for a small file."""
        try:
            found = self._path.stat()
            key = (found.st_ino, found.st_size, found.st_mtime_ns)
            if key == self._seen:
                return False
            with self._path.open("rb") as file:
                data = file.read(TIMESTAMP_BYTES_MAX)
            version = msgspec.json.decode(data, type=_Timestamp).signed.version
        except (OSError, msgspec.DecodeError):
            return False
        self._seen = key
        changed, self.version = version != self.version, version
        return changed
