"""A client's grammar means here what it means in llama.cpp or llguidance, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.domain import Constraint, ConstraintKind
from appliance.errors import SchemaUnsupported
from appliance.runtime.constrain import ConstraintCompiler, check, tokenizer_of
from appliance.runtime.llama import Model
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}  # at most some
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    return Model(path, gpu_layers=0, on_progress=lambda _ratio: None)


@pytest.fixture(scope="module")
def compiler(model: Model) -> ConstraintCompiler:
    words = model.vocabulary
    tokenizer = tokenizer_of(
        words.spelt, words.control_ids, words.end_ids, words.pointer, words.tokenize_address
    )
    return ConstraintCompiler(tokenizer)


def _accepts(
    compiler: ConstraintCompiler, model: Model, kind: ConstraintKind, grammar: str, text: str
) -> bool:
    matcher = compiler.matcher(Constraint(kind=kind, text=grammar))
    for byte in text.encode():
        token_id = model.vocabulary.pieces.index(bytes([byte]))
        if not matcher.allows(token_id):
            return False
        matcher.accept(token_id)
    return matcher.is_accepting


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (JSON, '{"a": [1, "\\n", true]}', '{"a": tru}'),
        (r'root ::= "\u0041" "\x42" [\u0043-D]', "ABD", "ABE"),
        ('root ::= "\\U0001F600" [é-ü]', "😀é", "😀a"),
        ("root ::= . .", "\n好", "a"),
        ("root ::= [^a]", "\n", "a"),
        ('root ::= "a&&b" [a&&b]{2}', "a&&b&b", "a&&bc&"),
        ('root ::= "a/b\\"" [/\\]]', 'a/b"]', 'a/b"a'),
        ('root ::= foo-bar foo_bar\nfoo-bar ::= "a"\nfoo_bar ::= "b"', "ab", "aa"),
        ('root ::= start Start\nstart ::= "a"\nStart ::= "b"', "ab", "ba"),
        ('root ::= root "a" | "b"', "baa", "ab"),
        ('root ::= ("a" # one\n | "b")+ "-"?\n', "abba-", "-"),
        ('root ::= x x\nx ::= "a" | "ab"', "aba", "ba"),
        ('root ::= ""', "", "a"),
    ],
)
def test_gbnf_is_read_as_llama_cpp_reads_it(
    compiler: ConstraintCompiler, model: Model, grammar: str, good: str, bad: str
) -> None:
    check(Constraint(kind=ConstraintKind.GBNF, text=grammar))
    assert _accepts(compiler, model, ConstraintKind.GBNF, grammar, good)
    assert not _accepts(compiler, model, ConstraintKind.GBNF, grammar, bad)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "no rule 'root'"),
        ('a ::= "b"', "no rule 'root'"),
        ("root ::= missing", "0 rules 'missing'"),
        ('root ::= "a"\nroot ::= "b"', "2 rules 'root'"),
        ("root ::= (", "is not GBNF"),
        ("root ::= <think>", "rules 'think'"),
        (r"root ::= [a\d]", "unknown escape"),
        (r'root ::= "\ud800"', "is no character"),
        ("root ::= []", "empty character class"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested too deeply"),
        ("root ::= a0\n" + "".join(f'a{n} ::= "x"\n' for n in range(501)), "the limit is 500"),
    ],
)  # fmt: skip
def test_gbnf_that_can_not_be_translated_is_refused(grammar: str, reason: str) -> None:
    with pytest.raises(SchemaUnsupported) as caught:
        check(Constraint(kind=ConstraintKind.GBNF, text=grammar))
    assert caught.value.field == "grammar"
    assert reason in str(caught.value.fields["reason"])


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('start: "a" WORD\nWORD: /[a-z]+/', "abc", "a1"),
        ('start: "x" %json {"enum": ["a", 1]} "y"', 'x"a"y', "x2y"),
        ('// %json { is no schema here\nstart: "%json {" /%json \\{/', "%json {%json {", "x"),
        ('%llguidance {}\nstart: a{2}\na: "é" | "b"', "éb", "é"),
    ],
)
def test_lark_is_read_with_its_schemas(
    compiler: ConstraintCompiler, model: Model, grammar: str, good: str, bad: str
) -> None:
    check(Constraint(kind=ConstraintKind.LARK, text=grammar))
    assert _accepts(compiler, model, ConstraintKind.LARK, grammar, good)
    assert not _accepts(compiler, model, ConstraintKind.LARK, grammar, bad)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('start: "a', "lexer error"),
        ("start: missing", "missing"),
        ('start[temperature=0.5]: "a"', "temperature"),
        ('start: %json {"not": {}}', "not"),
        ('start: %json {"x-guidance": {"lenient": true}, "if": {}}', "x-guidance"),
        ('start: %json {"a": ', "%json"),
        ("start: a0\n" + "".join(f'a{n}: "x"\n' for n in range(501)), "the limit is 500"),
    ],
)
def test_lark_that_can_not_be_honoured_is_refused(grammar: str, reason: str) -> None:
    with pytest.raises(SchemaUnsupported) as caught:
        check(Constraint(kind=ConstraintKind.LARK, text=grammar))
    assert caught.value.field == "grammar"
    assert reason in str(caught.value.fields["reason"])
