"""Grow a schema: append-only steps, each recorded in the transaction that applied it.

What this room does: bringing a database up to the steps its owners list.
What it knows: a step's name and a digest of its SQL are kept; so a step that was edited after it
shipped, or a database from a newer program, is recognised and refused.
What it never does: go back, reorder, or change data outside a step.

An owner writes its steps beside its queries, as `Migration("audit.0001", ["CREATE ...", ...])`,
and the composition root lists the owners of each file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeAlias, dataclass_transform

import msgspec

SqlValue: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = tuple[SqlValue, ...]


class Transaction(Protocol):
    """What an intent may do inside its transaction."""

    def execute(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[Row]:
        """Run one statement and return all its rows."""
        ...


@dataclass_transform(frozen_default=True)
class _Value(msgspec.Struct, frozen=True):
    """A positional value object."""


class Migration(_Value):
    """One step: a name that is never used again, and its statements in order."""

    name: str
    statements: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Name the step's content, 64 hex digits."""
        return hashlib.sha256("\0".join(self.statements).encode()).hexdigest()


class MigrationRefusedError(Exception):
    """The recorded steps are not a beginning of the known ones; says which step."""


def migrate(transaction: Transaction, steps: Sequence[Migration], *, now_utc_ms: int) -> None:
    """Apply the steps that are missing, and record each. Call inside one transaction.

    Raises:
        MigrationRefusedError: the file was written by a newer program, or a step was edited.
    """
    transaction.execute(
        "CREATE TABLE IF NOT EXISTS migrations ("
        " name TEXT PRIMARY KEY, digest TEXT NOT NULL, applied_utc_ms INTEGER NOT NULL"
        ") STRICT"
    )
    rows = transaction.execute("SELECT name, digest FROM migrations")
    recorded = {str(name): digest for name, digest in rows}
    known = {step.name: step.digest for step in steps}
    for name, digest in recorded.items():
        if name not in known:
            raise MigrationRefusedError(f"was written by a newer program (step {name})")
        if digest != known[name]:
            raise MigrationRefusedError(f"step {name} is not the one that was applied")
    for step in steps:
        if step.name in recorded:
            continue
        for statement in step.statements:
            transaction.execute(statement)
        transaction.execute(
            "INSERT INTO migrations (name, digest, applied_utc_ms) VALUES (?, ?, ?)",
            (step.name, step.digest, now_utc_ms),
        )
