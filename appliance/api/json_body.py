"""Read the JSON body of a request, and name what is wrong in it.

What this room does: bytes to members, members to one of our shapes; the field that is missing,
unknown or of a wrong type, and for an unknown one the nearest known.
What it knows: msgspec's errors.
What it never does: I/O, or know what a field means (`openai`, `rerank_json`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, cast

import msgspec

from appliance.api.openai_shapes import Shape, field_names
from appliance.errors import InvalidRequest

_PATH = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_NAMED = re.compile(r"field `(?P<name>.*)`$", re.DOTALL)
_SHOWN_CHARS = 64

BodyT = TypeVar("BodyT", bound=Shape)


def members_of(body: bytes) -> dict[str, Any]:
    """Decode the body as one JSON object; NaN, Infinity and half surrogates are not JSON.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        members = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest(field="body", reason="is not valid UTF-8") from error
    except msgspec.MsgspecError as error:
        raise InvalidRequest(field="body", reason=f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(field="body", reason="is nested too deeply") from error
    if not isinstance(members, dict):
        raise InvalidRequest(field="body", reason="must be a JSON object")
    return members


def refuse(members: dict[str, Any], advices: Mapping[str, str]) -> None:
    """Refuse what is never served, with advice; null counts as not given.

    Raises:
        InvalidRequest: one of the names is given.
    """
    for name, advice in advices.items():
        if members.pop(name, None) is not None:
            raise InvalidRequest(field=name, reason=advice)


def drop(members: dict[str, Any], names: frozenset[str]) -> list[str]:
    """Take what has no effect here out of the members, and return the names that were given."""
    given = [name for name in members if name in names]
    for name in given:
        del members[name]
    return given


def convert(members: Mapping[str, Any], shape: type[BodyT]) -> BodyT:
    """Read the members as one of our shapes.

    Raises:
        InvalidRequest: names the field that is missing, unknown or of the wrong type.
    """
    try:
        return msgspec.convert(members, shape)
    except msgspec.ValidationError as error:
        raise _explain(str(error), shape) from error
    except RecursionError as error:
        raise InvalidRequest(field="body", reason="is nested too deeply") from error


def _explain(text: str, shape: type[Shape]) -> InvalidRequest:
    """Name the field and, if it is unknown, the nearest known one."""
    match = cast("re.Match[str]", _PATH.match(text))
    reason, path = match["reason"], match["path"] or ""
    named = _NAMED.search(reason)
    if named is None:
        plain = reason[:1].lower() + reason[1:].replace("`", "")
        return InvalidRequest(field=path or "body", reason=plain)
    field = ".".join(part for part in (path, named["name"][:_SHOWN_CHARS]) if part)
    if "missing" in reason:
        return InvalidRequest(field=field, reason="is missing")
    known = field_names(shape) if path else frozenset(shape.__struct_fields__)
    near = get_close_matches(named["name"], sorted(known), n=1, cutoff=0.5)
    advice = f"; did you mean '{near[0]}'?" if near else ""
    return InvalidRequest(field=field, reason=f"is not a known field{advice}")
