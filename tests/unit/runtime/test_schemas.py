"""Every keyword of JSON Schema is either refused by name or met by everything that is generated.

The text is drawn by our own sampler at temperature 1 from random logits, so it goes wherever the
constraint lets it; the logits of what closes a value are raised, so that it comes to an end.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from appliance.domain import Constraint, ConstraintKind
from appliance.errors import SchemaUnsupported
from appliance.runtime.constrain import check
from appliance.runtime.llama import Model
from appliance.runtime.schemas import prepared, rust_pattern
from tests.unit.runtime.drawing import Drawing
from tests.unit.runtime.schema_validator import is_valid
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

Schema: TypeAlias = dict[str, Any]

SEEDS = 40
_INT: Schema = {"type": "integer"}
_AB: Schema = {"a": _INT, "b": _INT}
_TREE: Schema = {
    "type": "object",
    "properties": {"v": _INT, "c": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    "required": ["v"],
    "additionalProperties": False,
}


def _object(**more: object) -> Schema:
    return {"type": "object", **more}


def _closed(**more: object) -> Schema:
    return {"type": "object", "properties": _AB, "additionalProperties": False, **more}


def _kind(kind: str, **members: object) -> Schema:
    members = {"kind": {"const": kind}, **members}
    return {"type": "object", "properties": members, "required": list(members)}


def _text(**more: object) -> Schema:
    return {"type": "string", "maxLength": 12, **more}


_REFERENCES = [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]

HONOURED: list[tuple[str, Schema]] = [
    ("type", {"type": ["string", "integer"], "maxLength": 3}),
    ("nullable object", {**_closed(required=["a"]), "type": ["object", "null"]}),
    ("nullable array", {"type": ["array", "null"], "items": _INT, "minItems": 1, "maxItems": 2}),
    ("enum", {"enum": [1, "a", None, {"x": 1}, [1], 2.5]}),
    ("enum with type", {"type": ["string", "null"], "enum": ["a", 1, None]}),
    ("enum with minLength", {"enum": ["a", "abc"], "minLength": 2}),
    ("const", {"const": {"a": [1, 2.5, None]}}),
    ("allOf and enum", {"allOf": [{"type": "string"}, {"enum": ["a", "b", 3]}]}),
    ("allOf of enums", {"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}),
    ("allOf of objects", {"allOf": [_object(required=["a"]), {"properties": _AB}]}),
    ("allOf of numbers", {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}),
    ("allOf of patterns", {"allOf": [_text(pattern="a"), {"pattern": "^.{2,3}$"}]}),
    ("anyOf", {"anyOf": [_INT, {"type": "boolean"}, {"type": "null"}]}),
    ("anyOf beside properties", _object(properties=_AB, anyOf=[{"required": ["a"]}, {}])),
    ("oneOf of types", {"oneOf": [_INT, {"type": "string", "maxLength": 3}]}),
    ("oneOf of constants", {"oneOf": [{"const": "a"}, {"const": "b"}]}),
    ("oneOf of closed objects", {"oneOf": [_closed(required=["a", "b"]), _TREE]}),
    ("oneOf of references", {"$defs": {"a": _INT, "b": {"type": "null"}}, "oneOf": _REFERENCES}),
    ("oneOf with a discriminator", {"oneOf": [_kind("a", n=_INT), _kind("b", n={"const": 2})]}),
    ("oneOf beside anyOf", {"oneOf": [_INT, {"type": "null"}], "anyOf": [{"minimum": 3}]}),
    ("$ref", {"$defs": {"n": _INT}, "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}}),
    ("$ref with siblings", {"$defs": {"n": _INT}, "$ref": "#/$defs/n", "minimum": 5}),
    ("$ref, recursive", _TREE),
    ("definitions", {"definitions": {"n": _INT}, "$ref": "#/definitions/n"}),
    ("$ref elsewhere", {"components": {"n": _text(format="time")}, "$ref": "#/components/n"}),
    ("format date", _text(format="date")),
    ("format time", _text(format="time", maxLength=20)),
    ("format date-time", _text(format="date-time", maxLength=30)),
    ("format ipv4", _text(format="ipv4", maxLength=15)),
    ("format ipv6", _text(format="ipv6", maxLength=40)),
    ("format uuid", _text(format="uuid", maxLength=36)),
    ("pattern", _text(pattern="^[a-c]{2,4}$")),
    ("pattern, not anchored", _text(pattern="a|b$")),
    ("pattern of digits", _text(pattern=r"^\d+\w\s?$")),
    ("pattern with a bracket in a class", _text(pattern=r"^[a[]{1,3}$")),
    ("pattern with a dot", _text(pattern="^.{2}$")),
    ("minLength", {"type": "string", "minLength": 3, "maxLength": 5}),
    ("multipleOf", {"type": "integer", "multipleOf": 7, "minimum": -50, "maximum": 50}),
    ("multipleOf a fraction", {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 1}),
    ("minimum", {"type": "number", "minimum": -1.5, "maximum": 2.25}),
    ("exclusiveMinimum", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
    ("items", {"type": "array", "items": _INT, "minItems": 2, "maxItems": 3}),
    ("prefixItems", {"type": "array", "prefixItems": [_INT, {"type": "null"}], "items": False}),
    ("prefixItems, minItems", {"prefixItems": [_INT, _INT], "items": _INT, "minItems": 2}),
    ("uniqueItems false", {"type": "array", "items": _INT, "maxItems": 3, "uniqueItems": False}),
    ("properties", _object(properties=_AB, additionalProperties={"type": "null"})),
    ("properties false", _object(properties={"a": False, "b": _INT}, additionalProperties=_INT)),
    ("required", _closed(required=["a", "b"])),
    ("required, not declared", _object(required=["z"], additionalProperties=_INT)),
    ("additionalProperties", _object(additionalProperties=_INT)),
    ("patternProperties", _object(patternProperties={"^x": _INT}, additionalProperties=False)),
    ("patternProperties, others", _object(properties={"xa": _INT}, patternProperties={"^x": {}})),
    ("minProperties", _object(minProperties=1, additionalProperties=_INT)),
    ("minProperties and required", _closed(required=["a", "b"], minProperties=2)),
    ("maxProperties", _object(maxProperties=2, additionalProperties=_INT)),
    ("a name with quotes", _object(properties={'a"\\\n': _INT}, additionalProperties=False)),
    ("annotations", {**_INT, "title": "t", "description": "d", "default": 3}),
]  # fmt: skip

REFUSED: list[tuple[str, Schema]] = [
    ("propertyNames", _object(propertyNames={"pattern": "^[a-z]+$"})),
    ("minProperties", _object(minProperties=2)),
    ("minProperties", _object(patternProperties={"^[ab]$": _INT}, minProperties=2)),
    ("minProperties", {"allOf": [_closed(), {"minProperties": 2}]}),
    ("maxProperties", _object(properties=_AB, maxProperties=1)),
    ("not", {"not": {"type": "string"}}),
    ("not", _object(properties={"a": {"type": "string", "not": {"const": "x"}}})),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    ("oneOf", {"oneOf": [_object(properties={"k": {"const": n}}) for n in (1, 2)]}),
    ("oneOf", {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}),
    ("uniqueItems", {"type": "array", "uniqueItems": True}),
    ("contains", {"type": "array", "contains": _INT}),
    ("minContains", {"type": "array", "minContains": 1}),
    ("maxContains", {"type": "array", "maxContains": 1}),
    ("unevaluatedItems", {"type": "array", "unevaluatedItems": False}),
    ("unevaluatedProperties", _object(unevaluatedProperties=False)),
    ("dependentRequired", _object(dependentRequired={"a": ["b"]})),
    ("dependentSchemas", _object(dependentSchemas={"a": {"required": ["b"]}})),
    ("dependencies", _object(dependencies={"a": ["b"]})),
    ("if", {"if": {"type": "string"}, "then": {"minLength": 2}}),
    ("then", {"then": {"minLength": 2}}),
    ("else", {"else": {"minLength": 2}}),
    ("$dynamicRef", {"$dynamicRef": "#x"}),
    ("$recursiveRef", {"$recursiveRef": "#"}),
    ("disallow", {"disallow": ["string"]}),
    ("divisibleBy", {"type": "integer", "divisibleBy": 3}),
    ("extends", {"extends": {"type": "string"}}),
    ("x-guidance", {"oneOf": [_INT, {"type": "number"}], "x-guidance": {"coerce_one_of": True}}),
    ("format", _text(format="nonsense")),
    ("regex", _text(pattern="^(?=a)b")),
    ("pattern", _text(pattern=r"\Aa\z")),
    ("const", {"const": "\x01"}),
    ("enum", {"enum": [{"a": ["\ud800"]}]}),
    ("minimum", {"type": "integer", "minimum": 3, "maximum": 1}),
    ("required", _closed(required=["zz"])),
    ("type", {"type": "strng"}),
    ("http://x/y", {"$ref": "http://x/y"}),
    ("$ref", {"$defs": {str(n): {"$ref": "#"} for n in range(600)}}),
]


@pytest.mark.parametrize(("keyword", "schema"), REFUSED)
def test_what_would_be_met_in_part_only_is_refused_by_name(keyword: str, schema: Schema) -> None:
    with pytest.raises(SchemaUnsupported) as caught:
        check(_constraint(schema))
    assert keyword.lower() in str(caught.value.fields["reason"]).lower()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    return Model(path, gpu_layers=0, on_progress=lambda _ratio: None)


@pytest.fixture(scope="module")
def drawing(model: Model) -> Drawing:
    return Drawing(model)


@pytest.mark.parametrize("schema", [pytest.param(s, id=name) for name, s in HONOURED])
def test_everything_generated_is_valid(schema: Schema, drawing: Drawing) -> None:
    finished = 0
    for seed in range(SEEDS):
        text = drawing.text(_constraint(schema), seed)
        if text is not None:
            finished += 1
            value = json.loads(text, parse_float=Decimal)
            assert is_valid(value, schema), f"seed {seed}: {text}"
    assert finished >= SEEDS // 2


def _constraint(schema: Schema) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(schema))


@pytest.mark.parametrize(
    ("pattern", "rust"),
    [
        ("a.b", r"a[^\n\r\u2028\u2029]b"),
        (r"\.[.]", r"\.[.]"),
        ("[[a]", r"[\[a]"),
        ("[^[]", r"[^\[]"),
        ("[a--b&&c]", r"[a-\-b&\&c]"),
        ("[]", r"[^\s\S]"),
        ("[^]", r"[\s\S]"),
        (r"[\]\\]x", r"[\]\\]x"),
    ],
)
def test_a_pattern_is_written_so_that_rust_reads_the_same(pattern: str, rust: str) -> None:
    assert rust_pattern(pattern) == rust


def test_keywords_that_are_data_or_names_are_left_alone() -> None:
    schema = {
        "properties": {"minProperties": {"type": "integer"}, "pattern": {"type": "string"}},
        "enum": [{"pattern": "."}, {"minProperties": 9}],
        "default": {"extends": {}},
    }
    assert prepared(json.dumps(schema), "json_schema") == schema


def test_an_undeclared_name_can_not_be_spelt_to_be_a_declared_one(
    drawing: Drawing, model: Model
) -> None:
    schema = _object(properties={"a": _INT}, additionalProperties={"type": "string"})
    matcher = drawing.compiler.matcher(_constraint(schema))
    for byte in b'{"\\':
        matcher.accept(model.vocabulary.pieces.index(bytes([byte])))
    assert not matcher.allows(model.vocabulary.pieces.index(b"u"))
    assert matcher.allows(model.vocabulary.pieces.index(b"n"))
