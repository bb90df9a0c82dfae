"""Keep reports until the hub has them, over restarts and power cuts.

What this room does: the tables of the outbox in `state.db`; adding, reading in order, letting go.
What it knows: a number is never used twice, also after the newest reports are gone. When the hub
has numbers that we have not given yet, our state is an older copy: the outbox takes a new name.
What it never does: send, or grow beyond `link.outbox_reports`: the oldest are let go, and counted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from appliance.contract.fleet import Report
from appliance.store import Migration, Store, Transaction

MIGRATIONS = (
    Migration(
        "outbox.0001",
        (
            """CREATE TABLE outbox (
                seq INTEGER PRIMARY KEY AUTOINCREMENT, utc_ms INTEGER NOT NULL,
                kind TEXT NOT NULL, body BLOB NOT NULL) STRICT""",
            """CREATE TABLE outbox_name (
                id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL,
                lost INTEGER NOT NULL DEFAULT 0) STRICT""",
        ),
    ),
)
_NAME_BYTES = 16


class Outbox:
    """The reports that wait. `changed` is set when one was added; who waits for it clears it."""

    def __init__(self, store: Store, reports_max: int, utc_ms: Callable[[], int]) -> None:
        """Keep them in `store`, made with MIGRATIONS."""
        self._store = store
        self._reports_max = reports_max
        self._utc_ms = utc_ms
        self.changed = asyncio.Event()

    async def add(self, kind: str, body: bytes) -> None:
        """Add a report; durable when this returns.

        Raises:
            DocumentRefused: it is out of bounds.
            StoreError: it can't be written.
        """
        await asyncio.wrap_future(
            self._store.submit(lambda transaction: self.add_in(transaction, kind, body))
        )
        self.changed.set()

    def add_in(self, transaction: Transaction, kind: str, body: bytes) -> None:
        """Add a report in the transaction of what it reports; set `changed` afterwards."""
        now = self._utc_ms()
        Report(outbox="0" * 2 * _NAME_BYTES, seq=1, utc_ms=now, kind=kind, body=body)
        transaction.execute(
            "INSERT INTO outbox (utc_ms, kind, body) VALUES (?, ?, ?)", (now, kind, body)
        )
        gone = transaction.execute(
            "DELETE FROM outbox WHERE seq <= (SELECT seq FROM outbox ORDER BY seq DESC"
            " LIMIT 1 OFFSET ?) RETURNING seq",
            (self._reports_max,),
        )
        if gone:
            _ensure_name(transaction)
            transaction.execute("UPDATE outbox_name SET lost = lost + ?", (len(gone),))

    async def name(self) -> str:
        """Name the outbox, 32 hex digits. Raises StoreError."""
        return await asyncio.wrap_future(self._store.submit(_ensure_name))

    async def settle(self, acked_seq: int) -> bool:
        """Let go of all up to `acked_seq`; False, and a new name, if that number is not given yet.

        Raises:
            StoreError: it can't be written.
        """
        return await asyncio.wrap_future(
            self._store.submit(lambda transaction: _settle(transaction, acked_seq))
        )

    async def refused(self, seq: int) -> None:
        """Let go of one report that the hub does not take. Raises StoreError."""
        await asyncio.wrap_future(
            self._store.submit(
                lambda transaction: transaction.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
            )
        )

    async def after(self, name: str, seq: int, count: int) -> list[Report]:
        """Read the reports after `seq`, oldest first, at most `count`. Raises StoreError."""
        rows = await asyncio.to_thread(
            self._store.read,
            "SELECT seq, utc_ms, kind, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?",
            (seq, count),
        )
        return [
            Report(
                outbox=name,
                seq=int(str(number)),
                utc_ms=int(str(utc_ms)),
                kind=str(kind),
                body=body if isinstance(body, bytes) else b"",
            )
            for number, utc_ms, kind, body in rows
        ]

    async def lost(self) -> int:
        """Count the reports that were let go for others. Raises StoreError."""
        rows = await asyncio.wrap_future(
            self._store.submit(
                lambda transaction: transaction.execute("SELECT lost FROM outbox_name")
            )
        )
        return int(str(rows[0][0])) if rows else 0


def _ensure_name(transaction: Transaction) -> str:
    transaction.execute(
        "INSERT OR IGNORE INTO outbox_name (id, name) VALUES (1, ?)",
        (secrets.token_hex(_NAME_BYTES),),
    )
    return str(transaction.execute("SELECT name FROM outbox_name")[0][0])


def _settle(transaction: Transaction, acked_seq: int) -> bool:
    rows = transaction.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'")
    newest = int(str(rows[0][0])) if rows else 0
    if acked_seq > newest:
        _ensure_name(transaction)
        transaction.execute("UPDATE outbox_name SET name = ?", (secrets.token_hex(_NAME_BYTES),))
        return False
    transaction.execute("DELETE FROM outbox WHERE seq <= ?", (acked_seq,))
    return True
