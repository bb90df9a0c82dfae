"""Remember when chores were done and what they found, over restarts.

What this room does: the last runs of each chore, in memory and in state.db.
What it knows: a week between two chores is longer than most runs of a program, and how long a drill
usually takes is known from the drills before.
What it never does: do a chore, or judge one; fail where state.db does: memory has it then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from appliance import logs
from appliance.domain.value import Value
from appliance.errors import StoreError
from appliance.store import Migration, Store, Transaction

RUNS_KEPT = 16  # of a chore and its subject
_TABLE = """CREATE TABLE chore_runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, chore TEXT NOT NULL, subject TEXT NOT NULL,
    utc_ms INTEGER NOT NULL, took_ms REAL NOT NULL, reason TEXT NOT NULL) STRICT"""
_INDEX = "CREATE INDEX chore_runs_of ON chore_runs (chore, subject, id)"
MIGRATIONS = (Migration("chores.0001", (_TABLE, _INDEX)),)


class Run(Value):
    """A chore that was done. took_ms: 0 where it failed. reason: what is bad about it, or ""."""

    utc_ms: int
    took_ms: float = 0.0
    reason: str = ""


class Runs:
    """The last runs. Belongs to one loop."""

    def __init__(self, store: Store) -> None:
        """Keep them in `store`, made with MIGRATIONS."""
        self._store = store
        self._runs: dict[tuple[str, str], deque[Run]] = {}

    async def load(self) -> None:
        """Read what earlier programs noted. Call once, before the first `note`."""
        try:
            rows = await asyncio.to_thread(
                self._store.read,
                "SELECT chore, subject, utc_ms, took_ms, reason FROM chore_runs ORDER BY id",
            )
        except StoreError as error:
            logs.event("chores_unknown", level=logging.WARNING, reason=error.message)
            return
        for chore, subject, utc_ms, took_ms, reason in rows:
            run = Run(utc_ms=int(str(utc_ms)), took_ms=float(str(took_ms)), reason=str(reason))
            self._of(str(chore), str(subject)).append(run)

    def known(self, chore: str, subject: str = "") -> tuple[Run, ...]:
        """List the last runs, the newest last."""
        return tuple(self._runs.get((chore, subject), ()))

    def latest(self, chore: str) -> dict[str, Run]:
        """Find the last run for each subject."""
        return {subject: runs[-1] for (name, subject), runs in self._runs.items() if name == chore}

    async def note(self, chore: str, subject: str, run: Run) -> None:
        """Remember a run; those before the last RUNS_KEPT go."""
        self._of(chore, subject).append(run)

        def intent(to: Transaction) -> None:
            values = (chore, subject, run.utc_ms, run.took_ms, run.reason)
            to.execute(
                "INSERT INTO chore_runs (chore, subject, utc_ms, took_ms, reason)"
                " VALUES (?, ?, ?, ?, ?)",
                values,
            )
            to.execute(
                "DELETE FROM chore_runs WHERE chore = ? AND subject = ? AND id NOT IN"
                " (SELECT id FROM chore_runs WHERE chore = ? AND subject = ?"
                " ORDER BY id DESC LIMIT ?)",
                (chore, subject, chore, subject, RUNS_KEPT),
            )

        try:
            await asyncio.wrap_future(self._store.submit(intent))
        except StoreError as error:
            logs.event("chore_not_noted", level=logging.WARNING, chore=chore, reason=error.message)

    def _of(self, chore: str, subject: str) -> deque[Run]:
        return self._runs.setdefault((chore, subject), deque(maxlen=RUNS_KEPT))
