"""Hold what all errors have in common: a code, typed fields, and one sentence.

What this room does: the root of the tree.
What it knows: nothing but the words of the domain.
What it never does: log, or format for a person beyond that sentence.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

FieldValue: TypeAlias = str | int | float | bool | None


class ApplianceError(Exception):
    """The root. Never raised itself: raise a concrete class, with its fields as keywords."""

    code: ClassVar[str] = ""
    retryable: ClassVar[bool] = False
    sentence: ClassVar[str] = ""

    def __init__(self, **fields: FieldValue) -> None:
        """Keep the fields; `sentence` is filled from them when the error is shown."""
        assert self.code, f"{type(self).__name__} is abstract"
        self.fields: dict[str, FieldValue] = fields
        super().__init__(self.sentence.format_map(_Missing(fields)))

    @property
    def message(self) -> str:
        """Say what happened, in one sentence that names the field and the limit."""
        return str(self)


class _Missing(dict[str, FieldValue]):
    """A mapping in which an absent field reads as '?', so that showing an error never fails."""

    def __missing__(self, key: str) -> str:
        return "?"
