"""Record who did what to which object, so that a change of the record shows.

What this room does: `record()`, which never blocks; writing what waits in one transaction; a hash
chain over the records; `verify()`.
What it knows: each record's SHA-256 covers the one before, so a record can't be edited, removed or
put in between without every later hash changing. Triggers refuse UPDATE and DELETE. The oldest
tenth is let go when the bound is reached; the chain then starts from a floor that keeps its hash.
What it never does: hold a prompt, a completion or a credential. Nor does it stop an action because
the disk is full: what was lost is counted, and the count is the next thing recorded.

What a chain can't show: that its newest records were cut off together with their file. A copy of
`head()` kept elsewhere shows that.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeAlias

from appliance.access.policy import Verb
from appliance.config import Store as Settings
from appliance.domain import Client
from appliance.store import Migration, Row, SqlValue, Store, Transaction

_Fields: TypeAlias = tuple[int, str, str, str, str, str]  # utc_ms to result

GENESIS = "0" * 64
FIELD_CHARS_MAX = 256
_PAGE_ROWS = 5000
_COLUMNS = "seq, utc_ms, client, kind, verb, object, result, hash"
_HEAD = (
    "SELECT seq, hash FROM audit UNION ALL SELECT seq, hash FROM audit_floor"
    " ORDER BY seq DESC LIMIT 1"
)

MIGRATIONS = (
    Migration(
        "audit.0001",
        (
            """CREATE TABLE audit (
                seq INTEGER PRIMARY KEY, utc_ms INTEGER NOT NULL, client TEXT NOT NULL,
                kind TEXT NOT NULL, verb TEXT NOT NULL, object TEXT NOT NULL,
                result TEXT NOT NULL, hash TEXT NOT NULL
            ) STRICT""",
            """CREATE TABLE audit_floor (
                id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL
            ) STRICT""",
            """INSERT INTO audit_floor (id, seq, hash) VALUES (1, 0, printf('%064d', 0))""",
            """CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
            BEGIN SELECT RAISE(ABORT, 'audit records are never changed'); END""",
            """CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
            WHEN OLD.seq > (SELECT seq FROM audit_floor)
            BEGIN SELECT RAISE(ABORT, 'audit records are never deleted'); END""",
            """CREATE TRIGGER audit_floor_rises BEFORE UPDATE ON audit_floor
            WHEN NEW.seq < OLD.seq
            BEGIN SELECT RAISE(ABORT, 'the floor only rises'); END""",
            """CREATE TRIGGER audit_floor_stays BEFORE DELETE ON audit_floor
            BEGIN SELECT RAISE(ABORT, 'the floor stays'); END""",
        ),
    ),
)


class Audit:
    """The record. Threadsafe; `lost` counts records that were not written since the start.

    Records wait in a bounded queue. `_scheduled` is held from the moment a write is submitted until
    that write begins to empty the queue, so every record is seen by a write that starts after it.
    """

    def __init__(self, store: Store, settings: Settings, utc_ms: Callable[[], int]) -> None:
        """Record into `store`, which must have been made with MIGRATIONS."""
        self.lost = 0
        self._lost_reported = 0
        self._lost_in_transaction = 0
        self._store = store
        self._records_max = settings.audit_records_max
        self._utc_ms = utc_ms
        self._pending: queue.Queue[_Fields] = queue.Queue(settings.audit_pending)
        self._unwritten: list[_Fields] = []  # belongs to the writing thread
        self._scheduled = threading.Lock()
        if store.set_aside is not None:
            self._append("system", "system", "set_aside", store.set_aside.name, "ok")

    def record(self, client: Client, verb: Verb, object: str, result: str) -> None:  # noqa: A002 - as in `authorise`
        """Note that `client` did `verb` to `object`; `result` is "ok" or an error code.

        Never blocks and never fails. The record is durable after the next transaction.
        """
        self._append(client.id, client.kind.value, verb.value, object, result)

    def flush(self) -> Future[int]:
        """Write what waits. The future is done when every record made before is durable, or failed.

        It gives how many records its own transaction wrote, which is 0 if one before it did.
        """
        if self._scheduled.acquire(blocking=False):
            return self._submit()
        return self._store.submit(lambda _: 0)  # intents are run in order

    def head(self) -> tuple[int, str]:
        """Read the newest record's number and hash; (0, GENESIS) if there is none. Blocks.

        Raises:
            StoreError: the file can't be read.
        """
        return _newest(self._store.read(_HEAD))

    def verify(self) -> int | None:
        """Follow the chain from its floor; blocks, and reads every record in pages.

        Returns the number of the first record that does not fit, or None when all do.

        Raises:
            StoreError: the file can't be read.
        """
        seq, link = _newest(self._store.read("SELECT seq, hash FROM audit_floor"))
        while True:
            rows = self._store.read(
                f"SELECT {_COLUMNS} FROM audit WHERE seq > ? ORDER BY seq LIMIT {_PAGE_ROWS}",  # noqa: S608 - constants
                (seq,),
            )
            if not rows:
                return None
            for row in rows:
                *fields, found = row
                if fields[0] != seq + 1 or found != _link(link, fields):
                    return seq + 1
                seq, link = seq + 1, str(found)

    def _append(self, *words: str) -> None:
        client, kind, verb, name, result = (word[:FIELD_CHARS_MAX] for word in words)
        try:
            self._pending.put_nowait((self._utc_ms(), client, kind, verb, name, result))
        except queue.Full:
            self.lost += 1
        if self._scheduled.acquire(blocking=False):
            self._submit()

    def _submit(self) -> Future[int]:
        """Submit one write. Call holding `_scheduled`."""
        started = threading.Event()
        future = self._store.submit(lambda transaction: self._write(transaction, started))
        future.add_done_callback(lambda done: self._settle(done, started))
        return future

    def _settle(self, future: Future[int], started: threading.Event) -> None:
        if not started.is_set():  # refused, or the file can't be opened: what waits goes on waiting
            self._scheduled.release()
        elif future.exception() is None:
            self._unwritten.clear()
            self._lost_reported = self._lost_in_transaction

    def _write(self, transaction: Transaction, started: threading.Event) -> int:
        """Chain and insert what waits and what a failed write left. On the writing thread."""
        self._scheduled.release()
        started.set()
        while len(self._unwritten) < self._pending.maxsize and not self._pending.empty():
            self._unwritten.append(self._pending.get_nowait())
        records = list(self._unwritten)
        self._lost_in_transaction = self.lost
        lost = self.lost - self._lost_reported
        if lost:
            records.append((self._utc_ms(), "system", "system", "lost", str(lost), "ok"))
        seq, link = _newest(transaction.execute(_HEAD))
        for fields in records:
            seq += 1
            link = _link(link, (seq, *fields))
            transaction.execute(
                f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
                (seq, *fields, link),
            )
        self._let_go(transaction, seq)
        return len(records)

    def _let_go(self, transaction: Transaction, newest_seq: int) -> None:
        """Raise the floor over the oldest tenth when more than the bound are kept."""
        floor_seq = int(str(transaction.execute("SELECT seq FROM audit_floor")[0][0]))
        if newest_seq - floor_seq <= self._records_max:
            return
        seq = newest_seq - self._records_max + self._records_max // 10
        transaction.execute(
            "UPDATE audit_floor SET seq = ?, hash = (SELECT hash FROM audit WHERE seq = ?)",
            (seq, seq),
        )
        transaction.execute("DELETE FROM audit WHERE seq <= ?", (seq,))


def _newest(rows: list[Row]) -> tuple[int, str]:
    return int(str(rows[0][0])), str(rows[0][1])


def _link(previous: str, fields: Sequence[SqlValue]) -> str:
    """Compute a record's hash from the one before and its fields, `seq` to `result`."""
    body = json.dumps([previous, *fields], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()
