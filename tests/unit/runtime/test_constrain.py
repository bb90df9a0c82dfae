"""A constraint is honoured in full or refused by name; it is never ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLParserLimits, LLTokenizer

from appliance.domain import Constraint, ConstraintKind
from appliance.errors import DecodeFailed, SchemaUnsupported
from appliance.runtime import constrain
from appliance.runtime.constrain import ConstraintCompiler, Pricer, check, tokenizer_of
from appliance.runtime.llama import Model
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'


def constraint(kind: ConstraintKind, text: str = "") -> Constraint:
    return Constraint(kind=kind, text=text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ConstraintKind.JSON_OBJECT, ""),
        (ConstraintKind.JSON_SCHEMA, SCHEMA),
        (ConstraintKind.REGEX, r"[a-z]+\d{2}"),
        (ConstraintKind.CHOICES, json.dumps(["yes", 'no "quoted"', "a\\b\n", "好"])),
    ],
)
def test_what_can_be_honoured_is_let_through(kind: ConstraintKind, text: str) -> None:
    check(constraint(kind, text))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (ConstraintKind.JSON_SCHEMA, "nope", "Expecting value"),
        (ConstraintKind.JSON_SCHEMA, "[1]", "must be an object"),
        (ConstraintKind.JSON_SCHEMA, '{"type":"strng"}', "Invalid type"),
        (ConstraintKind.JSON_SCHEMA, '{"not":{"type":"string"}}', "not"),
        (ConstraintKind.JSON_SCHEMA, '{"type":"array","uniqueItems":true}', "uniqueItems"),
        (
            ConstraintKind.JSON_SCHEMA,
            '{"x-guidance":{"lenient":true},"type":"string","if":{"minLength":1}}',
            "x-guidance",
        ),
        (ConstraintKind.JSON_SCHEMA, '{"if":{"minLength":1}}', "if"),
        (ConstraintKind.JSON_SCHEMA, '{"a":' * 100_000, "recursion"),
        (ConstraintKind.REGEX, "a(b", "unclosed group"),
        (ConstraintKind.CHOICES, "yes", "not a JSON list"),
        (ConstraintKind.CHOICES, "[]", "with an entry"),
        (ConstraintKind.CHOICES, '["a", ""]', "not empty"),
        (ConstraintKind.CHOICES, '["a", 1]', "not empty"),
    ],
)
def test_what_can_not_be_honoured_is_refused_with_its_reason(
    kind: ConstraintKind, text: str, reason: str
) -> None:
    with pytest.raises(SchemaUnsupported) as caught:
        check(constraint(kind, text))
    assert reason in str(caught.value.fields["reason"])
    assert len(str(caught.value.fields["reason"])) <= 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    return Model(path, gpu_layers=0, on_progress=lambda _ratio: None)


@pytest.fixture
def tokenizer(model: Model) -> LLTokenizer:
    vocabulary = model.vocabulary
    return tokenizer_of(
        vocabulary.spelt,
        vocabulary.control_ids,
        vocabulary.end_ids,
        vocabulary.pointer,
        vocabulary.tokenize_address,
    )


@pytest.fixture
def compiler(tokenizer: LLTokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer)


def test_what_would_hold_up_a_worker_is_refused(tokenizer: LLTokenizer) -> None:
    words = json.dumps({"enum": [f"v{number}" for number in range(5000)]})
    dear = constraint(ConstraintKind.JSON_SCHEMA, words)
    check(dear)  # it can be honoured: only its price is against it
    pricer = Pricer(tokenizer, cpu_ms_max=5.0)
    for _ in range(2):
        with pytest.raises(SchemaUnsupported, match="longer to prepare than the limit of 5 ms"):
            pricer.check(dear)
    Pricer(tokenizer, cpu_ms_max=10_000.0).check(constraint(ConstraintKind.JSON_SCHEMA, SCHEMA))


def test_every_walk_over_allowed_tokens_ends_in_the_language(
    compiler: ConstraintCompiler, model: Model
) -> None:
    pieces, ends = model.vocabulary.pieces, set(model.vocabulary.end_ids)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matcher = compiler.matcher(constraint(ConstraintKind.CHOICES, '["one", "only", "好"]'))
        text = b""
        while not matcher.is_complete:
            allowed = np.flatnonzero(matcher.allowed())
            token_id = int(rng.choice(allowed))
            if token_id in ends:
                break
            matcher.accept(token_id)
            text += pieces[token_id]
        assert text.decode() in ("one", "only", "好")


def test_a_mask_has_one_entry_per_token_and_end_tokens_only_where_it_may_end(
    compiler: ConstraintCompiler, model: Model
) -> None:
    vocabulary = model.vocabulary
    matcher = compiler.matcher(constraint(ConstraintKind.REGEX, "a|ab"))
    mask = matcher.allowed()
    assert mask.shape == (vocabulary.size,)
    assert not mask[list(vocabulary.end_ids)].any()
    token_a = vocabulary.pieces.index(b"a")
    assert np.flatnonzero(mask).tolist().count(token_a) == 1
    matcher.accept(token_a)
    assert matcher.is_accepting
    assert not matcher.is_complete
    assert matcher.allowed()[list(vocabulary.end_ids)].any()


def test_a_token_outside_the_language_is_an_error_and_stays_one(
    compiler: ConstraintCompiler, model: Model
) -> None:
    matcher = compiler.matcher(constraint(ConstraintKind.REGEX, "[0-9]+"))
    with pytest.raises(DecodeFailed):
        matcher.accept(model.vocabulary.pieces.index(b"x"))
    with pytest.raises(DecodeFailed):
        matcher.allowed()


def test_matchers_of_one_grammar_do_not_disturb_each_other(
    compiler: ConstraintCompiler, model: Model
) -> None:
    same = constraint(ConstraintKind.CHOICES, '["ab", "cd"]')
    first, second = compiler.matcher(same), compiler.matcher(same)
    first.accept(model.vocabulary.pieces.index(b"a"))
    assert second.allowed()[model.vocabulary.pieces.index(b"c")]
    assert not first.allowed()[model.vocabulary.pieces.index(b"c")]


def test_a_compiler_refuses_what_check_refuses(compiler: ConstraintCompiler) -> None:
    with pytest.raises(SchemaUnsupported):
        compiler.matcher(constraint(ConstraintKind.JSON_SCHEMA, '{"not": {}}'))


def test_a_grammar_whose_first_mask_is_over_the_bounds_is_refused(
    tokenizer: LLTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constrain, "_limits", lambda: LLParserLimits(step_lexer_fuel=1))
    with pytest.raises(SchemaUnsupported, match="too large for the grammar engine"):
        Pricer(tokenizer, cpu_ms_max=10_000.0).check(constraint(ConstraintKind.REGEX, "[a-z]+x"))
