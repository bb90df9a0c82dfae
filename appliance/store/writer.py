"""Keep one database: a bounded queue of intents and the one thread that commits them.

What this room does: `submit` hands an intent to the writing thread and returns a future; the
thread opens the file, reopens it after a failure, and runs one transaction per intent, in order.
What it knows: a full, locked or damaged database is an answer, not the end: intents fail with
`StoreError`, are counted, and the next ones are tried; serving goes on.
What it never does: block the caller, retry an intent, or stop because one failed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from appliance.clock import monotonic_ms, utc_ms
from appliance.config import Store as Settings
from appliance.errors import StoreError
from appliance.store.database import Database, Row, SqlValue, Transaction, read
from appliance.store.migrations import Migration

T = TypeVar("T")


class Store:
    """One database file as the rest of the house holds it. Threadsafe.

    failures: how many intents ended in StoreError since the start, refused ones included.
    set_aside: where a damaged file was renamed to since the start, or None.
    fault: why the file is not usable now, or "".
    """

    def __init__(self, path: Path, migrations: Sequence[Migration], settings: Settings) -> None:
        """Start the thread, which opens the file; see `wait_open`."""
        self.path = path
        self.failures = 0
        self.set_aside: Path | None = None
        self.fault = ""
        self._settings = settings
        self._closing = False
        self._next_open_ms = 0.0
        self._database = Database(path, migrations, settings.busy_timeout_s)
        self._room = threading.BoundedSemaphore(settings.queue_intents)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"store-{path.stem}")
        self._opened = self._thread.submit(self._ensure_open)

    def wait_open(self) -> str:
        """Wait until the file was tried once, a few busy time-outs at most; return `fault`."""
        wait([self._opened], timeout=4 * self._settings.busy_timeout_s)
        return self.fault if self._opened.done() else "is still being opened"

    def submit(self, intent: Callable[[Transaction], T]) -> Future[T]:
        """Queue one transaction; never blocks. The future is done when it is durable or failed.

        A full queue or a closed store shows as a StoreError in the future, as any failure does.
        The future's callbacks run on the writing thread.
        """
        if self._closing:
            return self._refused("is closed")
        if not self._room.acquire(blocking=False):
            return self._refused(f"{self._settings.queue_intents} writes are waiting")
        future = self._thread.submit(self._commit, intent)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def read(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[Row]:
        """Run one query on a connection of its own; blocks. See `database.read`."""
        return read(self.path, sql, parameters, busy_timeout_s=self._settings.busy_timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Refuse new intents, commit those queued, close the file. Idempotent.

        Blocks at most `timeout_s`; returns whether the file is closed.
        """
        if not self._closing:
            self._closing = True
            self._closed = self._thread.submit(self._database.close)
            self._thread.shutdown(wait=False)
        return bool(wait([self._closed], timeout=timeout_s).done)

    def _commit(self, intent: Callable[[Transaction], T]) -> T:
        try:
            if not self._ensure_open():
                self._refuse(self.fault)
            return self._database.transact(intent)
        except StoreError:
            self.failures += 1
            raise

    def _ensure_open(self) -> bool:
        """Open the file unless it is, or was tried a moment ago."""
        if self._database.is_open:
            return True
        now_ms = monotonic_ms()
        if now_ms < self._next_open_ms:
            return False
        self._next_open_ms = now_ms + self._settings.reopen_s * 1000
        try:
            self.set_aside = self._database.open(utc_ms()) or self.set_aside
        except StoreError as error:
            self.fault = str(error.fields["reason"])
            return False
        self.fault = ""
        self._next_open_ms = 0.0
        return True

    def _refuse(self, reason: str) -> None:
        raise StoreError(database=self.path.name, reason=reason)

    def _refused(self, reason: str) -> Future[T]:
        self.failures += 1
        future: Future[T] = Future()
        future.set_exception(StoreError(database=self.path.name, reason=reason))
        return future
