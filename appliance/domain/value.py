"""Hold what all words of the domain have in common: immutable, keyword-only, checked at birth.

What this room does: the base of every value object, and the two checks their bounds are made of.
What it knows: nothing of any word.
What it never does: I/O, clocks, or anything of a transport.
"""

from __future__ import annotations

from typing import dataclass_transform

import msgspec

from appliance.errors import InvalidRequest

_SHOWN_CHARS = 64


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every value object: immutable, keyword-only, compared by content."""


def check(*, ok: bool, field: str, reason: str) -> None:
    """Refuse a field unless it is well.

    Raises:
        InvalidRequest: names the field and the reason.
    """
    if not ok:
        raise InvalidRequest(field=field, reason=reason)


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Refuse what is out of range; NaN is in none, and an integer may have any size."""
    check(
        ok=low <= value <= high,
        field=field,
        reason=f"must be a number from {low:g} to {high:g}, not {str(value)[:_SHOWN_CHARS]}",
    )
