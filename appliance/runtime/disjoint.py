"""Prove that no value meets two JSON schemas, so that `oneOf` says no more than `anyOf`. Pure.

What this room does: compares types, constants, and the members that objects must have, which is how
unions with a discriminator are written.
What it knows: JSON Schema's `type`, `const`, `enum`, `required`, `properties` and local `$ref`.
What it never does: guess. What it can't prove, the grammar engine decides, or refuses.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Json: TypeAlias = Any

_DEPTH_MAX = 8
_ALL = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


def are_disjoint(one: Json, other: Json, root: dict[str, Json], depth: int = 0) -> bool:
    """Tell whether it is sure that no value meets both; `root` is where `$ref`s begin."""
    if depth > _DEPTH_MAX:
        return False
    one, other = _resolved(one, root), _resolved(other, root)
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is False or other is False
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return values.isdisjoint(others)
    types = _types(one) & _types(other)
    if not types:
        return True
    return types == {"object"} and any(
        are_disjoint(_member(one, name), _member(other, name), root, depth + 1)
        for name in _required(one) & _required(other)
    )


def _resolved(schema: Json, root: dict[str, Json]) -> Json:
    for _ in range(_DEPTH_MAX):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        aim: Json = root
        path = schema["$ref"]
        if not path.startswith("#"):
            return {}
        for part in filter(None, path[1:].split("/")):
            aim = (
                aim.get(part.replace("~1", "/").replace("~0", "~"))
                if isinstance(aim, dict)
                else None
            )
        if aim is None:
            return {}
        schema = aim
    return {}


def _values(schema: dict[str, Json]) -> frozenset[tuple[str, Json]] | None:
    """List all values, if there are few and they are simple: (kind, value)."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        return None
    return frozenset((_kind(value), value) for value in values)


def _kind(value: Json) -> str:
    """Name the type; 1 and 1.0 are the same number."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    return "string" if isinstance(value, str) else "number"


def _types(schema: dict[str, Json]) -> frozenset[str]:
    values = _values(schema)
    named = schema.get("type")
    if values is not None:
        types = {kind for kind, _ in values}
    elif isinstance(named, str):
        types = {named}
    elif isinstance(named, list):
        types = set(filter(lambda name: isinstance(name, str), named))
    else:
        return _ALL
    # An integer is a number.
    return frozenset(types | ({"integer", "number"} if types & {"integer", "number"} else set()))


def _required(schema: dict[str, Json]) -> frozenset[str]:
    names = schema.get("required")
    return frozenset(map(str, names)) if isinstance(names, list) else frozenset()


def _member(schema: dict[str, Json], name: str) -> Json:
    members = schema.get("properties")
    return members.get(name, {}) if isinstance(members, dict) else {}
