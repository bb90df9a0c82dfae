"""Read what a body wants the output to look like: response_format, structured_outputs, grammar.

What this room does: one constraint out of the three places where OpenAI's, vLLM's and
llama-server's clients put it; a body that uses two of them contradicts itself.
What it knows: `openai_shapes`. A schema is always enforced, whether `strict` is given or not.
What it never does: check a schema or a grammar (the text process does).
"""

from __future__ import annotations

import json
import re

from appliance.api.openai_shapes import ResponseFormat, SamplingBody, StructuredOutputs
from appliance.domain import Constraint, ConstraintKind
from appliance.errors import InvalidRequest, SchemaUnsupported

# vLLM's `grammar` is either; its own backends tell them apart by the same signs.
_LARK = re.compile(r"^\s*(?:%llguidance\b|start\s*(?:\[[^\]]*\]\s*)?:(?!:=))", re.MULTILINE)


def constraint_of(body: SamplingBody) -> Constraint | None:
    """Read the one constraint of a body.

    Raises:
        InvalidRequest: there are two, or a part is missing.
        SchemaUnsupported: a format of a kind that is not served.
    """
    found = {
        "response_format": _format(body.response_format),
        "structured_outputs": _structured(body.structured_outputs),
        "grammar": _grammar(body.grammar),
    }
    given = {name: constraint for name, constraint in found.items() if constraint is not None}
    if len(given) > 1:
        first, second = sorted(given)[:2]
        raise InvalidRequest(field=first, reason=f"contradicts '{second}'; give one of them")
    return next(iter(given.values()), None)


def json_text(value: object) -> str:
    """Write a value of a body as JSON again."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError as error:
        raise InvalidRequest(field="body", reason="is nested too deeply") from error


def _format(wanted: ResponseFormat | None) -> Constraint | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":  # with a schema: llama-server's own
        return _json(wanted.schema) if wanted.schema is not None else _any_object()
    if wanted.type != "json_schema":
        raise SchemaUnsupported(
            field="response_format.type", reason="must be 'text', 'json_object' or 'json_schema'"
        )
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest(field="response_format.json_schema.schema", reason="is missing")
    return _json(wanted.json_schema.schema)


def _structured(wanted: StructuredOutputs | None) -> Constraint | None:
    if wanted is None:
        return None
    constraints: list[Constraint] = []
    if wanted.json is not None:
        given = wanted.json
        constraints.append(
            Constraint(kind=ConstraintKind.JSON_SCHEMA, text=given)
            if isinstance(given, str)
            else _json(given)
        )
    if wanted.regex is not None:
        constraints.append(Constraint(kind=ConstraintKind.REGEX, text=wanted.regex))
    if wanted.choice is not None:
        constraints.append(Constraint(kind=ConstraintKind.CHOICES, text=json_text(wanted.choice)))
    if wanted.grammar is not None:
        kind = ConstraintKind.LARK if _LARK.search(wanted.grammar) else ConstraintKind.GBNF
        constraints.append(Constraint(kind=kind, text=wanted.grammar))
    if wanted.json_object:
        constraints.append(_any_object())
    if len(constraints) != 1:
        raise InvalidRequest(
            field="structured_outputs",
            reason="must have one of 'json', 'regex', 'choice', 'grammar' and 'json_object'",
        )
    return constraints[0]


def _grammar(text: str | None) -> Constraint | None:
    return Constraint(kind=ConstraintKind.GBNF, text=text) if text else None


def _json(schema: object) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json_text(schema))


def _any_object() -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_OBJECT)
