"""Put files among the repository's blobs, under their digests.

What this room does: copies a file or bytes to their place, checked against the digest on the way.
What it knows: a blob is written once, is read-only, and is there whole or not at all.
What it never does: overwrite a blob, or read a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from appliance.contract.release import BlobRef
from appliance.errors import PublishRefused
from appliance.store import make_directory, sync_directory

_MODE = 0o444
_READ_BYTES = 1024 * 1024


def take_file(place: Path, source: Path, sha256: str, length: int) -> None:
    """Copy `source` to `place` unless it is there; blocks for as long as copying takes.

    Raises:
        PublishRefused: it is not what the digest says any more, or can't be read or written.
    """
    try:
        with source.open("rb") as file:
            _take(place, iter(lambda: file.read(_READ_BYTES), b""), source, sha256, length)
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else str(source)
        raise PublishRefused(what=name, reason=error.strerror or str(error)) from error


def take_bytes(place: Path, data: bytes) -> None:
    """Write `data` to `place` unless it is there. Raises PublishRefused as `take_file`."""
    try:
        _take(place, iter((data,)), place, hashlib.sha256(data).hexdigest(), len(data))
    except OSError as error:
        raise PublishRefused(what=str(place), reason=error.strerror or str(error)) from error


def blob_fault(place: Path, blob: BlobRef) -> str:
    """Say why the file at `place` is not this blob; "" if it is. Blocks while it is hashed."""
    try:
        with place.open("rb") as file:
            if os.fstat(file.fileno()).st_size != blob.length:
                return "is of another length"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "is not in the repository"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return "" if digest == blob.sha256 else "is corrupt"


def _take(place: Path, parts: Iterator[bytes], source: Path, sha256: str, length: int) -> None:
    if place.is_file() and place.stat().st_size == length:
        return
    make_directory(place.parent)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        digest, written = hashlib.sha256(), 0
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                written += len(part)
                if written > length:
                    break
                digest.update(part)
                file.write(part)
            if written != length or digest.hexdigest() != sha256:
                raise PublishRefused(what=str(source), reason="changed while it was published")
            os.fchmod(file.fileno(), _MODE)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(place)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    sync_directory(place.parent)
