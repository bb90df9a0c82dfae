"""Hold one SQLite file: open, migrate, transact, read; and set aside a file that is damaged.

What this room does: the writing connection's settings; one transaction per call; short read-only
connections; turning SQLite's errors into `StoreError`.
What it knows: the only importer of SQLite, through apsw, whose wheel carries SQLite itself: before
3.51.3 two connections that write or checkpoint can corrupt a WAL (docs/adr/0002). A reader here is
opened read-only, so it never checkpoints.
What it never does: run on two threads at once (`writer` owns it), retry, or map the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import apsw

from appliance.errors import StoreError
from appliance.store.files import sync_directory
from appliance.store.migrations import (
    Migration,
    MigrationRefusedError,
    Row,
    SqlValue,
    Transaction,
    migrate,
)

__all__ = ["Database", "Row", "SqlValue", "Transaction", "read", "sqlite_version"]

T = TypeVar("T")
JOURNAL_BYTES_MAX = 16 * 1024 * 1024
ROWS_MAX = 10_000

_REASONS: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.FullError, "the disk is full"),
    (apsw.BusyError, "is locked by another process"),
    (apsw.LockedError, "is locked by another process"),
    (apsw.CorruptError, "is damaged"),
    (apsw.NotADBError, "is not a database"),
    (apsw.ReadOnlyError, "can't be written"),
    (apsw.PermissionsError, "can't be written"),
    (apsw.CantOpenError, "can't be opened"),
    (apsw.IOError, "the disk failed"),
)
_DAMAGED = (apsw.CorruptError, apsw.NotADBError)


def sqlite_version() -> str:
    """Name the SQLite in use, for `doctor`."""
    return apsw.sqlite_lib_version()


class _Transaction:
    """The statements of one transaction on the writing connection."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[Row]:
        """Run one statement and return all its rows."""
        return list(self._connection.execute(sql, tuple(parameters)))


class Database:
    """The writing connection of one file. All methods block, and belong to one thread."""

    def __init__(self, path: Path, migrations: Sequence[Migration], busy_timeout_s: float) -> None:
        """Remember; `open` does the work."""
        self.path = path
        self._migrations = tuple(migrations)
        self._busy_timeout_s = busy_timeout_s
        self._connection: apsw.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether `transact` can be called."""
        return self._connection is not None

    def open(self, now_utc_ms: int) -> Path | None:
        """Open and migrate; a damaged file is set aside and a fresh one made in its place.

        Returns where the damaged file went, or None. A locked file or one of a newer program is
        not damaged and stays.

        Raises:
            StoreError: it can't be opened or migrated; nothing was changed.
        """
        with self._translated():
            try:
                self._open(now_utc_ms)
            except _DAMAGED:
                self.close()
                aside = self._set_aside(now_utc_ms)
                self._open(now_utc_ms)
                return aside
            return None

    def transact(self, intent: Callable[[Transaction], T]) -> T:
        """Run `intent` in one transaction; durable when this returns, undone if it raises.

        Raises:
            StoreError: SQLite refused. After "is damaged" the connection is closed.
        """
        assert self._connection is not None, "open first"
        with self._translated():
            try:
                return self._transact(self._connection, intent)
            except _DAMAGED:
                self.close()
                raise

    def close(self) -> None:
        """Close, with a checkpoint if it can be done. Idempotent; never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(apsw.Error):
                connection.close()

    def _open(self, now_utc_ms: int) -> None:
        dirty = self._wal_path().exists()
        connection = apsw.Connection(str(self.path))
        try:
            connection.set_busy_timeout(round(self._busy_timeout_s * 1000))
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                "trusted_schema=OFF",
                f"journal_size_limit={JOURNAL_BYTES_MAX}",
            ):
                connection.execute(f"PRAGMA {pragma}")
            if dirty:
                self._check(connection)
            self._transact(
                connection, lambda tx: migrate(tx, self._migrations, now_utc_ms=now_utc_ms)
            )
        except BaseException:
            connection.close(force=True)
            raise
        self._connection = connection

    @staticmethod
    def _check(connection: apsw.Connection) -> None:
        """Look through a file that was not closed cleanly; reads all of it."""
        if connection.pragma("quick_check") != "ok":
            raise apsw.CorruptError

    @staticmethod
    def _transact(connection: apsw.Connection, intent: Callable[[Transaction], T]) -> T:
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = intent(_Transaction(connection))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                with contextlib.suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            raise
        return result

    def _wal_path(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _set_aside(self, now_utc_ms: int) -> Path:
        """Rename the damaged file and its journal; both are kept for a person to look at."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{now_utc_ms}")
        self.path.rename(aside)
        if self._wal_path().exists():
            self._wal_path().rename(aside.with_name(aside.name + "-wal"))
        self.path.with_name(self.path.name + "-shm").unlink(missing_ok=True)
        sync_directory(self.path.parent)
        return aside

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        with _translated(self.path.name):
            try:
                yield
            except MigrationRefusedError as error:
                raise StoreError(database=self.path.name, reason=str(error)) from error


def read(
    path: Path, sql: str, parameters: Sequence[SqlValue] = (), *, busy_timeout_s: float
) -> list[Row]:
    """Run one query on a read-only connection of its own; blocks, from any thread or process.

    Returns at most ROWS_MAX rows.

    Raises:
        StoreError: the file is not there, locked, damaged, or the query is refused.
    """
    with _translated(path.name):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(round(busy_timeout_s * 1000))
            connection.execute("PRAGMA query_only=ON")
            cursor = connection.execute(sql, tuple(parameters))
            return [row for row, _ in zip(cursor, range(ROWS_MAX), strict=False)]
        finally:
            connection.close(force=True)


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        reason = next((text for kind, text in _REASONS if isinstance(error, kind)), str(error))
        raise StoreError(database=name, reason=reason) from error
    except OSError as error:
        raise StoreError(database=name, reason=error.strerror or str(error)) from error
