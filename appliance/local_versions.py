"""Turn a file of the operator's own into a signed version of a model, or a signed adapter of one.

What this room does: names the version, hashes the file, has the device's `local` key sign it, and
remembers both in state.db, so that an unchanged file is not hashed again.
What it knows: a file is unchanged while its path, inode, size and times are; the times include the
one of its last status change, which nobody can set back.
What it never does: serve the file, copy it, or fail because the database does: then it hashes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from appliance import logs
from appliance.access.identity import Identity
from appliance.clock import utc_ms
from appliance.config import Adapter, Limits, Model
from appliance.domain import AdapterVersion, Digest, ModelVersion
from appliance.errors import AdapterUnloadable, ModelUnloadable, StoreError
from appliance.gguf import GgufFault, GgufHead, read_head
from appliance.runtime.adapter_head import AdapterFacts, check_adapter
from appliance.runtime.adapters import AdapterFile, file_key
from appliance.runtime.devices import available_bytes
from appliance.store import Migration, SqlValue, Store, Transaction

CHUNK_BYTES = 4 * 1024 * 1024
_MIB = 1024 * 1024
NAME_CHARS_MAX = 128
VERSION_DIGITS = 12

_BLOBS = """CREATE TABLE local_blobs (
    path TEXT PRIMARY KEY, inode INTEGER NOT NULL, bytes INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL, digest TEXT NOT NULL) STRICT"""
_VERSIONS = """CREATE TABLE local_versions (
    model TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, bytes INTEGER NOT NULL,
    key_id TEXT NOT NULL, signature TEXT NOT NULL, signed_utc_ms INTEGER NOT NULL,
    PRIMARY KEY (model, version, digest, key_id)) STRICT"""
_ADAPTERS = """CREATE TABLE local_adapters (
    model TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, bytes INTEGER NOT NULL,
    scale REAL NOT NULL, key_id TEXT NOT NULL, signature TEXT NOT NULL,
    signed_utc_ms INTEGER NOT NULL,
    PRIMARY KEY (model, name, digest, scale, key_id)) STRICT"""
MIGRATIONS = (
    Migration("local_versions.0001", (_BLOBS, _VERSIONS)),
    Migration("local_versions.0002", (_ADAPTERS,)),
)


class Reading:
    """A file being read on another thread: how far it is, and whether to stop."""

    def __init__(self) -> None:
        self.done_bytes = 0
        self.total_bytes = 0
        self.stop = False

    @property
    def ratio(self) -> float:
        """Tell how much is read, 0 to 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0


class LocalVersions:
    """The register of versions that this device vouches for itself."""

    def __init__(
        self, store: Store, identity: Identity, limits: Limits, *, store_wait_s: float
    ) -> None:
        """Remember in `store`, made with MIGRATIONS; sign with the device's key."""
        self._store = store
        self._limits = limits
        self._store_wait_s = store_wait_s
        self._identity = identity

    async def register(self, settings: Model, reading: Reading) -> tuple[Path, ModelVersion]:
        """Sign the file of `settings` as a version; return it with the file's absolute path.

        Reads the whole file unless it is known.

        The file is read on another thread; cancelling ends that at its next chunk.

        Raises:
            ModelUnloadable: the file is missing, cut off, no GGUF, too big, or changed while read.
        """
        path, head = await asyncio.to_thread(_whole_head, settings.path)
        digest, _ = await self._digest(path, reading)
        name = settings.name or model_name(head, path)
        version = version_name(head, path, digest)
        signed = self._identity.sign_local(name, version, digest, head.file_bytes)
        await self._try(lambda transaction: _remember_version(transaction, signed))
        return path, signed

    async def register_adapter(
        self, model: ModelVersion, model_path: Path, settings: Adapter
    ) -> AdapterFile:
        """Sign the file of `settings` as an adapter of `model`; reads it as `register` does.

        Raises:
            AdapterUnloadable: missing, cut off, no LoRA adapter, not for this model, over a bound.
        """
        reading = Reading()
        try:
            path, facts = await asyncio.to_thread(self._adapter_facts, settings.path, model_path)
            digest, key = await self._digest(path, reading)
        except GgufFault as fault:
            raise AdapterUnloadable(path=settings.path, reason=str(fault)) from fault
        except ModelUnloadable as error:
            raise AdapterUnloadable(path=settings.path, reason=error.reason) from error
        signed = self._identity.sign_adapter(
            model.label, settings.name, digest, facts.file_bytes, settings.scale
        )
        await self._try(lambda transaction: _remember_adapter(transaction, signed))
        return AdapterFile(path=str(path), version=signed, rank=facts.rank, file_key=key)

    def _adapter_facts(self, name: str, model_path: Path) -> tuple[Path, AdapterFacts]:
        path = Path(name).absolute()
        facts = check_adapter(
            read_head(path),
            read_head(model_path),
            rank_max=self._limits.adapter_rank,
            bytes_max=self._limits.adapter_bytes,
        )
        available = available_bytes()
        if available is not None and facts.file_bytes > available:
            raise GgufFault(_too_big(facts.file_bytes, available))
        return path, facts

    async def _digest(self, path: Path, reading: Reading) -> tuple[Digest, tuple[int, ...]]:
        known = await asyncio.to_thread(self._recall, path)
        if known is not None:
            return known
        try:
            digest, key = await asyncio.to_thread(hash_file, path, reading)
        finally:
            reading.stop = True
        await self._try(lambda transaction: _remember_blob(transaction, path, key, digest))
        return digest, key

    def _recall(self, path: Path) -> tuple[Digest, tuple[int, ...]] | None:
        """Find the digest of an unchanged file, and what it is recognised by; blocks."""
        try:
            key = file_key(path.stat())
            rows = self._store.read(
                "SELECT digest FROM local_blobs WHERE path = ? AND inode = ? AND bytes = ?"
                " AND modified_ns = ? AND changed_ns = ?",
                (str(path), *key),
            )
        except (StoreError, OSError):
            return None
        return (Digest(str(rows[0][0])), key) if rows else None

    async def _try(self, intent: Callable[[Transaction], None]) -> None:
        """Write, or go on without: a database that fails costs a hash at the next start."""
        try:
            async with asyncio.timeout(self._store_wait_s):
                await asyncio.wrap_future(self._store.submit(intent))
        except (StoreError, TimeoutError) as error:
            logs.event("local_version_not_kept", level=logging.WARNING, reason=str(error))


def hash_file(path: Path, reading: Reading) -> tuple[Digest, tuple[int, ...]]:
    """Hash a file in chunks; returns its digest and what it is recognised by. Blocks.

    Raises:
        ModelUnloadable: it can't be read, or it changed meanwhile.
    """
    try:
        with path.open("rb") as file:
            before = file_key(os.fstat(file.fileno()))
            reading.total_bytes = os.fstat(file.fileno()).st_size
            digest = _hash(file, reading)
            after = file_key(os.fstat(file.fileno()))
    except OSError as error:
        raise ModelUnloadable(
            path=str(path), reason=f"the file can't be read: {error.strerror}"
        ) from error
    if before != after:
        raise ModelUnloadable(path=str(path), reason="the file changed while it was read")
    return digest, before


def _hash(file: BinaryIO, reading: Reading) -> Digest:
    state = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while not reading.stop and (count := file.readinto(view)):  # type: ignore[attr-defined] # a raw or buffered file has it
        state.update(view[:count])
        reading.done_bytes += count
    return Digest(f"sha256:{state.hexdigest()}")


def _whole_head(name: str) -> tuple[Path, GgufHead]:
    path = Path(name).absolute()
    try:
        head = read_head(path)
    except GgufFault as fault:
        raise ModelUnloadable(path=str(path), reason=str(fault)) from fault
    if head.data_bytes_missing:
        raise ModelUnloadable(
            path=str(path),
            reason=f"the file is truncated: {head.data_bytes_missing} bytes are missing at its end",
        )
    available = available_bytes()
    if available is not None and head.file_bytes > available:
        raise ModelUnloadable(path=str(path), reason=_too_big(head.file_bytes, available))
    return path, head


def _too_big(file_bytes: int, available: int) -> str:
    return (
        f"it is too big for this machine: {file_bytes // _MIB} MiB of weights alone, and "
        f"{available // _MIB} MiB of memory are available"
    )


def model_name(head: GgufHead, path: Path) -> str:
    """Name a model after the file's own general.name, else after the file; never empty."""
    text = str(head.metadata.get("general.name", "")) or path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return name[:NAME_CHARS_MAX] or "model"


def version_name(head: GgufHead, path: Path, digest: Digest) -> str:
    """Name a version after its digest; the embedded demo model says its own version."""
    own = str(head.metadata.get("general.version", ""))
    if own and path.resolve().is_relative_to(embedded_models()):
        return own
    return f"local-{digest.removeprefix('sha256:')[:VERSION_DIGITS]}"


def embedded_models() -> Path:
    """Name the directory of the models that come with the program."""
    return Path(str(resources.files("appliance"))).resolve() / "models"


def _remember_blob(
    transaction: Transaction, path: Path, key: tuple[int, ...], digest: Digest
) -> None:
    values: tuple[SqlValue, ...] = (str(path), *key, digest)
    transaction.execute("INSERT OR REPLACE INTO local_blobs VALUES (?, ?, ?, ?, ?, ?)", values)


def _remember_version(transaction: Transaction, signed: ModelVersion) -> None:
    transaction.execute(
        "INSERT OR IGNORE INTO local_versions VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            signed.model,
            signed.version,
            signed.digest,
            signed.blob_bytes,
            signed.key_id,
            signed.signature,
            utc_ms(),
        ),
    )


def _remember_adapter(transaction: Transaction, signed: AdapterVersion) -> None:
    transaction.execute(
        "INSERT OR IGNORE INTO local_adapters VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            signed.model,
            signed.name,
            signed.digest,
            signed.blob_bytes,
            signed.scale,
            signed.key_id,
            signed.signature,
            utc_ms(),
        ),
    )
