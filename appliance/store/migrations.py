"""Grow a schema: append-only steps, each recorded in the transaction that applied it.

What this room does: bringing a database up to the steps its owners list, by the migrations of
sqlite-utils.
What it knows: those keep names alone and pass over names they don't know. So a step is recorded as
its name with a digest of its SQL, and a step that was edited after it shipped, or a database from a
newer program, is recognised and refused.
What it never does: go back, reorder, or change data outside a step.

An owner writes its steps beside its queries, as `Migration("audit.0001", ["CREATE ...", ...])`,
and the composition root lists the owners of each file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeAlias, dataclass_transform

import msgspec
import sqlite_utils

MIGRATION_SET = "appliance"
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
    def recorded_as(self) -> str:
        """Name the step and its content, as a database keeps it: the name and 64 hex digits."""
        digest = hashlib.sha256("\0".join(self.statements).encode()).hexdigest()
        return f"{self.name} {digest}"

    def apply(self, database: sqlite_utils.Database, /) -> None:
        """Run the statements."""
        for statement in self.statements:
            database.execute(statement)


class MigrationRefusedError(Exception):
    """The recorded steps are not among the known ones; says which step."""


def migrate(database: sqlite_utils.Database, steps: Sequence[Migration]) -> None:
    """Apply the steps that are missing, and record each. Call inside one transaction.

    Raises:
        MigrationRefusedError: the file was written by a newer program, or a step was edited.
    """
    known = sqlite_utils.Migrations(MIGRATION_SET)
    for step in steps:
        known(name=step.recorded_as)(step.apply)
    recorded_as = {step.name: step.recorded_as for step in steps}
    for applied in known.applied(database):
        name = applied.name.partition(" ")[0]
        if name not in recorded_as:
            raise MigrationRefusedError(f"was written by a newer program (step {name})")
        if applied.name != recorded_as[name]:
            raise MigrationRefusedError(f"step {name} is not the one that was applied")
    known.apply(database)
