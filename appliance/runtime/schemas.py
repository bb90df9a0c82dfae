r"""Put a JSON schema right for the grammar engine where that would only almost honour it. Pure.

What this room does: rewrites what the engine reads with another meaning than JSON Schema's, drops
keywords that demand nothing, and refuses by name what the engine would let through unmet.
What it knows: JSON Schema 2020-12, ECMA 262's expressions, and where llguidance 1.9 differs, each
found by generating from a schema and validating what came:
 1. It lets a name occur twice in an object, which a reader counts once: `minProperties` is met
    only as far as other keywords force the names to differ.
 2. It takes a 60th second at any time of day; in `time` and `date-time` there is none here.
 3. It reads expressions as Rust does: other escapes, sets in classes, `.` without line ends.
 4. `x-guidance` in a schema switches its own checks off.
 5. It follows each $ref on the stack, of which a process has not more than one.
 6. It knows `oneOf` only where it sees itself that no value meets two; `disjoint` sees more.
 7. It writes strings without `\u` (constrain says so, lest an escaped name pass for another), so
    a constant that needs it can't be written.
What it never does: compile a grammar, or accept a keyword (the engine does, or refuses it).
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any, TypeAlias

from appliance.errors import SchemaUnsupported
from appliance.runtime.disjoint import are_disjoint

Json: TypeAlias = Any  # what json.loads gives

_DATA = frozenset({"const", "enum", "default", "example", "examples"})
_MAPS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_FORBIDDEN = frozenset({"x-guidance", "disallow", "divisibleBy", "extends"})
_IDLE = {"uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}
_BEFORE_SECOND_60 = {
    "time": r"^[^:]*:[^:]*:[0-5]",
    "date-time": r"^[^:]*:[^:]*:[0-5]",
}
_UNWRITABLE = re.compile("[\x00-\x07\x0b\x0e-\x1f\ud800-\udfff]")
_REFS_MAX = 500
_OPTIONS_MAX = 64
_DOT = r"[^\n\r\u2028\u2029]"
_ANY, _NOTHING = r"[\s\S]", r"[^\s\S]"
_PIECE = re.compile(r"\\x\{|\\.|\[\^?\]|\[\^?|.", re.DOTALL)
_CLASS_PIECE = re.compile(r"\\.|&&|--|~~|.", re.DOTALL)
_OTHER_IN_RUST = frozenset({r"\A", r"\Z", r"\z", r"\a", r"\<", r"\>", r"\U", r"\x{"})


def prepared(text: str, field: str) -> dict[str, Json]:
    """Read a schema and put it right.

    Raises:
        SchemaUnsupported: it is not JSON, not an object, or would be honoured in part only.
    """
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise SchemaUnsupported(field=field, reason="must be an object schema")
        return _Reading(field, schema).schema(schema)
    except (ValueError, RecursionError) as error:
        raise SchemaUnsupported(field=field, reason=str(error)) from error


def rust_pattern(pattern: str, field: str = "json_schema") -> str:
    """Write an ECMA expression so that Rust reads the same in it.

    Raises:
        SchemaUnsupported: it has an escape that means something else there.
    """
    written: list[str] = []
    at = 0
    while match := _PIECE.match(pattern, at):
        piece, at = match.group(), match.end()
        if piece in _OTHER_IN_RUST:
            raise SchemaUnsupported(
                field=field, reason=f"pattern: the escape {piece} is not ECMA's"
            )
        if piece in ("[", "[^"):
            inside, at = _class(pattern, at)
            written.append(piece + inside)
        else:
            written.append({".": _DOT, "[]": _NOTHING, "[^]": _ANY}.get(piece, piece))
    return "".join(written)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """Write the inside of a character class and its end; Rust has sets of sets there."""
    written: list[str] = []
    while match := _CLASS_PIECE.match(pattern, at):
        piece, at = match.group(), match.end()
        if piece in ("[", "&&", "--", "~~"):
            piece = piece[:-1] + "\\" + piece[-1]
        written.append(piece)
        if piece == "]":
            break
    return "".join(written), at


class _Reading:
    """One walk through one schema."""

    def __init__(self, field: str, root: dict[str, Json]) -> None:
        self._field = field
        self._root = root
        self._refs = 0

    def schema(self, given: dict[str, Json]) -> dict[str, Json]:
        """Put one schema right, and all inside it."""
        self._check_names(given)
        self._refs += "$ref" in given
        if self._refs > _REFS_MAX:
            self._refuse("$ref", f"is there more than {_REFS_MAX} times")
        made: dict[str, Json] = {}
        for key, value in given.items():
            if key in _IDLE and value is _IDLE[key]:
                continue
            if key in ("const", "enum"):
                self._check_writable(key, value)
            made[key] = value if key in _DATA else self._member(key, value)
        forbidden = _BEFORE_SECOND_60.get(str(made.get("format")))
        if forbidden is not None:
            made["allOf"] = [*made.get("allOf", ()), {"pattern": forbidden}]
        if self._is_any_of(made.get("oneOf")):
            made["allOf"] = [*made.get("allOf", ()), {"anyOf": made.pop("oneOf")}]
        return made

    def _is_any_of(self, options: Json) -> bool:
        """Tell whether no value meets two of a oneOf's options."""
        return (
            isinstance(options, list)
            and len(options) <= _OPTIONS_MAX
            and all(are_disjoint(a, b, self._root) for a, b in combinations(options, 2))
        )

    def _member(self, key: str, value: Json) -> Json:
        if key == "pattern" and isinstance(value, str):
            return rust_pattern(value, self._field)
        if key in _MAPS and isinstance(value, dict):
            names = value
            if key == "patternProperties":
                names = {rust_pattern(name, self._field): inner for name, inner in value.items()}
            return {name: self._any(inner) for name, inner in names.items()}
        return self._any(value)

    def _any(self, value: Json) -> Json:
        """Walk on; what stands under an unknown keyword may be the aim of a $ref."""
        if isinstance(value, dict):
            return self.schema(value)
        if isinstance(value, list):
            return [self._any(item) for item in value]
        return value

    def _check_names(self, given: dict[str, Json]) -> None:
        for key in _FORBIDDEN & given.keys():
            self._refuse(key, "is not supported")
        least = given.get("minProperties", 0)
        required = given.get("required")
        names = len(set(map(str, required))) if isinstance(required, list) else 0
        if isinstance(least, int | float) and least > names + 1:
            self._refuse("minProperties", "is met only up to one more than 'required' has names")

    def _check_writable(self, key: str, value: Json) -> None:
        if isinstance(value, str) and _UNWRITABLE.search(value):
            self._refuse(key, "holds a control character")
        inside = value.values() if isinstance(value, dict) else value
        if isinstance(value, list | dict):
            for item in inside:
                self._check_writable(key, item)
        if isinstance(value, dict):
            self._check_writable(key, list(value))

    def _refuse(self, keyword: str, reason: str) -> None:
        raise SchemaUnsupported(field=self._field, reason=f"{keyword}: {reason}")
