"""Hold one SQLite file: open, migrate, transact, read; and set aside a file that is damaged.

What this room does: the writing connection's settings; one transaction per call; short read-only
connections; turning SQLite's errors into `StoreError`.
What it knows: with `migrations` the only importer of sqlite-utils, and alone that of its driver
pysqlite3, whose wheel carries SQLite itself: before 3.51.3 two connections that write or checkpoint
can corrupt a WAL (docs/adr/0002). A reader here is opened read-only, so it never checkpoints.
What it never does: run on two threads at once (`writer` owns it), repeat a transaction, map the
file, or load a plugin of sqlite-utils.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import sqlite_utils
from pysqlite3 import dbapi2 as sqlite

from appliance.clock import monotonic_ms
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
_JOURNAL_WAIT_S = 0.005

_LOCKED = "is locked by another process"
_READ_ONLY = "can't be written"
_REASONS: dict[int, str] = {
    sqlite.SQLITE_FULL: "the disk is full",
    sqlite.SQLITE_BUSY: _LOCKED,
    sqlite.SQLITE_LOCKED: _LOCKED,
    sqlite.SQLITE_CORRUPT: "is damaged",
    sqlite.SQLITE_NOTADB: "is not a database",
    sqlite.SQLITE_READONLY: _READ_ONLY,
    sqlite.SQLITE_PERM: _READ_ONLY,
    sqlite.SQLITE_CANTOPEN: "can't be opened",
    sqlite.SQLITE_IOERR: "the disk failed",
}
_DAMAGED = (sqlite.SQLITE_CORRUPT, sqlite.SQLITE_NOTADB)
_WRITING = sqlite.SQLITE_OPEN_READWRITE | sqlite.SQLITE_OPEN_CREATE
_PRIMARY = 0xFF  # an extended result code has the primary one in its lowest byte


def sqlite_version() -> str:
    """Name the SQLite in use, for `doctor`."""
    return str(sqlite.sqlite_version)


class _Transaction:
    """The statements of one transaction on the writing connection."""

    def __init__(self, connection: sqlite_utils.Database) -> None:
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
        self._connection: sqlite_utils.Database | None = None

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
                self._open()
            except sqlite.DatabaseError as error:
                if _code(error) not in _DAMAGED:
                    raise
                aside = self._set_aside(now_utc_ms)
                self._open()
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
            except sqlite.DatabaseError as error:
                if _code(error) in _DAMAGED:
                    self.close()
                raise

    def close(self) -> None:
        """Close, with a checkpoint if it can be done. Idempotent; never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite.Error):
                connection.execute("PRAGMA wal_checkpoint")  # the driver's close holds the GIL
            with contextlib.suppress(sqlite.Error):
                connection.close()

    def _open(self) -> None:
        dirty = self._wal_path().exists()
        connection = _connect(self.path, self._busy_timeout_s, flags=_WRITING)
        try:
            self._journal_ahead(connection)
            for pragma in (
                "synchronous=FULL",
                "foreign_keys=ON",
                "recursive_triggers=ON",
                "trusted_schema=OFF",
                f"journal_size_limit={JOURNAL_BYTES_MAX}",
            ):
                connection.execute(f"PRAGMA {pragma}")
            if dirty:
                self._check(connection)
            self._transact(connection, lambda _: migrate(connection, self._migrations))
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _journal_ahead(self, connection: sqlite_utils.Database) -> None:
        """Turn to write-ahead journalling, waiting for others who do the same.

        SQLite's own busy timeout does not cover this: two processes that make one file at once
        would each wait for the other's lock, so one is told at once that it is locked.
        """
        deadline_ms = monotonic_ms() + self._busy_timeout_s * 1_000
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            except sqlite.OperationalError as error:
                if _code(error) != sqlite.SQLITE_BUSY or monotonic_ms() >= deadline_ms:
                    raise
                time.sleep(_JOURNAL_WAIT_S)
            else:
                return

    @staticmethod
    def _check(connection: sqlite_utils.Database) -> None:
        """Look through a file that was not closed cleanly; reads all of it."""
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            damage = sqlite.DatabaseError("quick_check found damage")
            damage.sqlite_errorcode = sqlite.SQLITE_CORRUPT
            raise damage

    @staticmethod
    def _transact(connection: sqlite_utils.Database, intent: Callable[[Transaction], T]) -> T:
        """Run `intent` between BEGIN and COMMIT; `Database.atomic` would begin deferred."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = intent(_Transaction(connection))
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite.Error):
                connection.rollback()
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
        connection = _connect(path, busy_timeout_s, flags=sqlite.SQLITE_OPEN_READONLY)
        try:
            connection.execute("PRAGMA query_only=ON")
            return connection.execute(sql, tuple(parameters)).fetchmany(ROWS_MAX)
        finally:
            connection.close()


def _connect(path: Path, busy_timeout_s: float, *, flags: int) -> sqlite_utils.Database:
    """Open a file in autocommit, so that no transaction begins but those we begin."""
    connection = sqlite.connect(
        str(path), timeout=busy_timeout_s, isolation_level=None, flags=flags
    )
    return sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)


def _code(error: BaseException) -> int:
    """Return SQLite's primary result code, 0 if the error is not SQLite's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & _PRIMARY


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite.Error as error:
        reason = _REASONS.get(_code(error), str(error))
        raise StoreError(database=name, reason=reason) from error
    except OSError as error:
        raise StoreError(database=name, reason=error.strerror or str(error)) from error
