"""Say whether a text is JSON that a schema allows.

What this room does: checks the keywords that the suites' schemas use, strictly.
What it knows: those keywords; any other is an error of ours, so that nothing goes unchecked.
What it never does: coerce, repair or guess. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any

_KEYWORDS = {
    *("type", "enum", "const", "properties", "required", "additionalProperties"),
    *("items", "minItems", "maxItems", "minLength", "maxLength", "pattern"),
    *("minimum", "maximum", "anyOf"),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def violation(text: str, schema: dict[str, Any]) -> str:
    """Return where and how the text breaks the schema; empty: it does not."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    return _check(value, schema, "$")


def _check(value: Any, schema: dict[str, Any], at: str) -> str:  # noqa: ANN401 - any JSON
    unknown = set(schema) - _KEYWORDS
    assert not unknown, f"{at}: this checker does not know {sorted(unknown)}"
    found = _check_any(value, schema, at)
    if found:
        return found
    if isinstance(value, dict):
        return _check_object(value, schema, at)
    if isinstance(value, list):
        return _check_array(value, schema, at)
    if isinstance(value, str):
        return _check_string(value, schema, at)
    return _check_number(value, schema, at)


def _check_any(value: Any, schema: dict[str, Any], at: str) -> str:  # noqa: ANN401 - any JSON
    if "anyOf" in schema and all(_check(value, one, at) for one in schema["anyOf"]):
        return f"{at}: none of anyOf"
    # In Python True == 1, in JSON it is not: what is equal must be of one kind too.
    allowed = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
    if ("enum" in schema or "const" in schema) and not any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed
    ):
        return f"{at}: {value!r} is not allowed"
    kind = schema.get("type")
    if kind and not (
        isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")
    ):
        return f"{at}: {value!r} is no {kind}"
    return ""


def _check_object(value: dict[str, Any], schema: dict[str, Any], at: str) -> str:
    known = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return f"{at}: misses {missing}"
    for name, inner in value.items():
        if name not in known and schema.get("additionalProperties", True) is False:
            return f"{at}: has {name!r}, which the schema does not know"
        found = _check(inner, known.get(name, {}), f"{at}.{name}")
        if found:
            return found
    return ""


def _check_array(value: list[Any], schema: dict[str, Any], at: str) -> str:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{at}: has {len(value)} items"
    for number, inner in enumerate(value):
        found = _check(inner, schema.get("items", {}), f"{at}[{number}]")
        if found:
            return found
    return ""


def _check_string(value: str, schema: dict[str, Any], at: str) -> str:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"{at}: has {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{at}: {value!r} does not match"
    return ""


def _check_number(value: Any, schema: dict[str, Any], at: str) -> str:  # noqa: ANN401 - number, flag or null
    if isinstance(value, int | float) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        return f"{at}: {value} is out of bounds"
    return ""
