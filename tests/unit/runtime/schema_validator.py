"""Judge a JSON value by a schema, strictly: a keyword this does not know is an error of the test.

Held against the `jsonschema` package by hand on the table of `test_schemas` when it was written.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeAlias

Json: TypeAlias = Any
Check: TypeAlias = Callable[[Json, Json], bool]

_TYPES: dict[str, Callable[[Json], bool]] = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "number": lambda v: isinstance(v, int | Decimal) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int | Decimal) and not isinstance(v, bool) and v == int(v),
}
_FORMATS: dict[str, Callable[[str], object]] = {
    "date": dt.date.fromisoformat,
    "time": lambda text: dt.time.fromisoformat(_cut_fraction(text)),
    "date-time": lambda text: dt.datetime.fromisoformat(_cut_fraction(text)),
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
}
_NOTHING_TO_CHECK = {
    "components",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "$schema",
    "$id",
}


def is_valid(value: Json, schema: Json, root: Json = None) -> bool:
    """Tell whether the value, read with `parse_float=Decimal`, meets the schema."""
    if isinstance(schema, bool):
        return schema
    root = schema if root is None else root
    return all(
        _PLAIN[keyword](value, wanted)
        if keyword in _PLAIN
        else _DEEP[keyword](value, wanted, schema, root)
        for keyword, wanted in schema.items()
        if keyword not in _NOTHING_TO_CHECK
    )


def _cut_fraction(text: str) -> str:
    return re.sub(r"(\.\d{1,6})\d*", r"\1", text.upper())


def _same(one: Json, other: Json) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _type(v: Json, wanted: Json) -> bool:
    names = wanted if isinstance(wanted, list) else [wanted]
    return any(_TYPES[name](v) for name in names)


def _format(v: Json, wanted: Json) -> bool:
    try:
        _FORMATS[wanted](v)
    except ValueError:
        return False
    return True


def _ref(v: Json, wanted: Json, _schema: Json, root: Json) -> bool:
    aim = root
    for part in wanted.removeprefix("#").strip("/").split("/"):
        aim = aim[part] if part else aim
    return is_valid(v, aim, root)


def _additional_properties(v: Json, wanted: Json, schema: Json, root: Json) -> bool:
    if not isinstance(v, dict):
        return True
    patterns = schema.get("patternProperties", {})
    return all(
        is_valid(inner, wanted, root)
        for name, inner in v.items()
        if name not in schema.get("properties", {})
        and not any(re.search(pattern, name) for pattern in patterns)
    )


def _properties(v: Json, wanted: Json, _schema: Json, root: Json) -> bool:
    return not isinstance(v, dict) or all(
        is_valid(v[name], inner, root) for name, inner in wanted.items() if name in v
    )


def _pattern_properties(v: Json, wanted: Json, _schema: Json, root: Json) -> bool:
    return not isinstance(v, dict) or all(
        is_valid(inner, schema, root)
        for name, inner in v.items()
        for pattern, schema in wanted.items()
        if re.search(pattern, name, re.ASCII)
    )


def _items(v: Json, wanted: Json, schema: Json, root: Json) -> bool:
    begin = len(schema.get("prefixItems", ()))
    return not isinstance(v, list) or all(is_valid(item, wanted, root) for item in v[begin:])


def _prefix_items(v: Json, wanted: Json, _schema: Json, root: Json) -> bool:
    return not isinstance(v, list) or all(
        is_valid(item, inner, root) for item, inner in zip(v, wanted, strict=False)
    )


def _of(kind: type | tuple[type, ...], check: Check) -> Check:
    """Hold values of these types to the check, and let others pass, as JSON Schema does."""
    return lambda v, w: not isinstance(v, kind) or isinstance(v, bool) or check(v, w)


_NUMBER = (int, Decimal)
_PLAIN: dict[str, Check] = {
    "type": _type,
    "format": _of(str, _format),
    "const": _same,
    "enum": lambda v, w: any(_same(v, one) for one in w),
    "minimum": _of(_NUMBER, lambda v, w: v >= w),
    "maximum": _of(_NUMBER, lambda v, w: v <= w),
    "exclusiveMinimum": _of(_NUMBER, lambda v, w: v > w),
    "exclusiveMaximum": _of(_NUMBER, lambda v, w: v < w),
    "multipleOf": _of(_NUMBER, lambda v, w: Decimal(v) % Decimal(str(w)) == 0),
    "minLength": _of(str, lambda v, w: len(v) >= w),
    "maxLength": _of(str, lambda v, w: len(v) <= w),
    "pattern": _of(str, lambda v, w: re.search(w, v, re.ASCII) is not None),
    "minItems": _of(list, lambda v, w: len(v) >= w),
    "maxItems": _of(list, lambda v, w: len(v) <= w),
    "uniqueItems": lambda _v, w: not w,  # only false is let through
    "minProperties": _of(dict, lambda v, w: len(v) >= w),
    "maxProperties": _of(dict, lambda v, w: len(v) <= w),
    "required": _of(dict, lambda v, w: set(w) <= v.keys()),
}
_DEEP: dict[str, Callable[[Json, Json, Json, Json], bool]] = {
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "items": _items,
    "prefixItems": _prefix_items,
    "allOf": lambda v, w, _s, r: all(is_valid(v, one, r) for one in w),
    "anyOf": lambda v, w, _s, r: any(is_valid(v, one, r) for one in w),
    "oneOf": lambda v, w, _s, r: sum(is_valid(v, one, r) for one in w) == 1,
    "$ref": _ref,
}
