"""Read and write a signed document: canonical JSON with a kind, a schema number and a bound.

What this room does: the base of every document, its encoding and its strict-enough decoding.
What it knows: a reader of schema 1 ignores fields it does not know and refuses another schema.
What it never does: look at the content; each document checks itself at birth.
"""

from __future__ import annotations

import re
from typing import TypeVar, dataclass_transform

import msgspec

from appliance.errors import DocumentRefused

SCHEMA = 1
DOCUMENT_BYTES_MAX = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{64}")
INTEGER_MAX = 2**53 - 1  # what every JSON reader gives back unchanged


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a document: immutable, keyword-only; unknown fields are of a later edition."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Document(Part, frozen=True, kw_only=True, tag_field="kind"):
    """The base of what is signed. `schema` is there even where it is the default."""

    schema: int


_DocumentT = TypeVar("_DocumentT", bound=Document)


def encode(document: Document) -> bytes:
    """Write a document the one way it is written: sorted keys, no blanks.

    Raises:
        DocumentRefused: it is larger than a reader takes.
    """
    data = msgspec.json.encode(document, order="sorted")
    if len(data) > DOCUMENT_BYTES_MAX:
        raise DocumentRefused(
            document=type(document).__name__, field="length", reason=_too_large(len(data))
        )
    return data


def decode(data: bytes, kind: type[_DocumentT]) -> _DocumentT:
    """Read a document whose signature has been checked.

    Raises:
        DocumentRefused: it is too large, no such document, of another schema, or out of bounds.
    """
    name = kind.__name__
    if len(data) > DOCUMENT_BYTES_MAX:
        raise DocumentRefused(document=name, field="length", reason=_too_large(len(data)))
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentRefused(document=name, field="", reason=str(error)) from error
    if document.schema != SCHEMA:
        raise DocumentRefused(
            document=name, field="schema", reason=f"is {document.schema}; known here is {SCHEMA}"
        )
    return document


def check(*, ok: bool, document: str, field: str, reason: str) -> None:
    """Refuse a field unless it is well.

    Raises:
        DocumentRefused: names the document, the field and the reason.
    """
    if not ok:
        raise DocumentRefused(document=document, field=field, reason=reason)


def check_blob(document: str, field: str, digest: str, length: int) -> None:
    """Refuse what can't name a blob. Raises as `check`."""
    check(
        ok=DIGEST.fullmatch(digest) is not None,
        document=document,
        field=f"{field}.sha256",
        reason="must be 64 lower-case hex digits",
    )
    check_count(document, f"{field}.length", length, 1, INTEGER_MAX)


def check_count(document: str, field: str, value: float, low: float, high: float) -> None:
    """Refuse a number out of its range; NaN is in none. Raises as `check`."""
    check(
        ok=low <= value <= high,
        document=document,
        field=field,
        reason=f"must be from {low:g} to {high:g}, not {value:g}",
    )


def _too_large(size: int) -> str:
    return f"is {size} bytes; at most {DOCUMENT_BYTES_MAX}"
