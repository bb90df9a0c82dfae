"""Hold generated text to a language: JSON, a schema, a regex, choices, or a grammar (GBNF, Lark).

What this room does: translates a constraint into a grammar, refuses what the grammar engine can't
honour in full (`check`) or in time (`Pricer`), and walks the grammar beside a generation, as a mask
of allowed tokens.
What it knows: llguidance, and the bounds that keep a grammar from eating the machine.
What it never does: fall open. A keyword that isn't implemented is a refusal, a parser that gives
up is an error of that one request, and text that breaks the grammar is never sent.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from appliance.clock import cpu_ms
from appliance.domain import Constraint, ConstraintKind
from appliance.errors import DecodeFailed, SchemaUnsupported
from appliance.runtime import grammars
from appliance.runtime.schemas import prepared
from appliance.runtime.triggered import TriggeredMatcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COMPILED_MAX = 64  # grammars kept ready for the next request that asks the same
_PRICED_MAX = 256
_REASON_CHARS_MAX = 300
# Whitespace between JSON tokens is bounded: with llguidance's default a model may go on for ever.
# Without \u among the escapes a name has one spelling: an undeclared one can't be a declared one.
_JSON_OPTIONS: Any = {
    "whitespace_pattern": r"[ \n\t]{1,24}",
    "lenient": False,
    "coerce_one_of": False,
    "json_allowed_escapes": '"\\bfnrt',
}
_QUIET = 0

_FIELDS = {
    ConstraintKind.JSON_OBJECT: "response_format",
    ConstraintKind.JSON_SCHEMA: "json_schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.CHOICES: "choices",
    ConstraintKind.GBNF: grammars.FIELD,
    ConstraintKind.LARK: grammars.FIELD,
    ConstraintKind.TOOL_CALLS: "tools",
}


def check(constraint: Constraint) -> None:
    """Refuse a constraint that can't be honoured in full; takes milliseconds, needs no model.

    Raises:
        SchemaUnsupported: not JSON, not a schema, a keyword that isn't implemented, a regex that
            does not parse, no choices, or a grammar larger than the bounds.
    """
    failed, messages = LLMatcher.validate_grammar_with_warnings(
        _grammar(constraint), limits=_limits()
    )
    if failed:
        raise SchemaUnsupported(field=_FIELDS[constraint.kind], reason=_reason(messages))


class ConstraintCompiler:
    """Make matchers for one vocabulary. Keeps the last grammars compiled; used by one thread."""

    def __init__(self, tokenizer: LLTokenizer, pieces: Sequence[bytes] = ()) -> None:
        """Serve the vocabulary of this tokenizer (see `tokenizer_of`); pieces: of its tokens."""
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def start(self, constraint: Constraint) -> Matcher | TriggeredMatcher:
        """Start to hold one generation to a constraint, from its trigger on if it has one.

        Blocks and raises as `matcher`.
        """
        matcher = self.matcher(constraint)
        if constraint.trigger is None:
            return matcher
        return TriggeredMatcher(
            matcher, constraint.trigger, self._pieces, self._tokenizer.tokenize_bytes
        )

    def matcher(self, constraint: Constraint) -> Matcher:
        """Start a matcher at the beginning of its language; compiles a new grammar.

        That blocks for as long as a `Pricer` has let through.

        Raises:
            SchemaUnsupported: as `check`, or the grammar can't be met with this vocabulary.
        """
        compiled = self._compiled.pop(constraint, None) or _compile(self._tokenizer, constraint)
        self._compiled[constraint] = compiled
        if len(self._compiled) > _COMPILED_MAX:
            self._compiled.popitem(last=False)
        return Matcher(compiled.deep_copy(), self._tokenizer.vocab_size)


class Pricer:
    """Refuse, in a process where nobody waits, what would hold up a worker's decode thread.

    A grammar is compiled there for one request while every other stream waits, so it is compiled
    here first, for the same vocabulary, and paid for in CPU time, which other load hardly changes.
    """

    def __init__(self, tokenizer: LLTokenizer, cpu_ms_max: float) -> None:
        """Let pass what costs no more than this to compile and to make its first mask."""
        self._tokenizer = tokenizer
        self._cpu_ms_max = cpu_ms_max
        self._passed: OrderedDict[Constraint, None] = OrderedDict()

    def check(self, constraint: Constraint) -> None:
        """Compile it and make a mask; blocks for as long as that takes, perhaps for ever.

        Raises:
            SchemaUnsupported: as `check`, or it costs too much.
        """
        if constraint in self._passed:
            self._passed.move_to_end(constraint)
            return
        check(constraint)
        began_ms = cpu_ms()
        try:
            Matcher(_compile(self._tokenizer, constraint), self._tokenizer.vocab_size).allowed()
        except DecodeFailed as error:
            self._refuse(constraint, "is empty, or too large for the grammar engine", error)
        if cpu_ms() - began_ms > self._cpu_ms_max:
            limit = f"{self._cpu_ms_max:g} ms (limits.constraint_ms)"
            self._refuse(constraint, f"takes longer to prepare than the limit of {limit}")
        self._passed[constraint] = None
        if len(self._passed) > _PRICED_MAX:
            self._passed.popitem(last=False)

    @staticmethod
    def _refuse(constraint: Constraint, reason: str, cause: Exception | None = None) -> NoReturn:
        raise SchemaUnsupported(field=_FIELDS[constraint.kind], reason=reason) from cause


class Matcher:
    """The place of one generation in its language."""

    def __init__(self, matcher: LLMatcher, vocabulary_size: int) -> None:
        """Own this matcher, which stands at the beginning."""
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size

    def allowed(self) -> NDArray[np.bool_]:
        """Compute which tokens may come next, (n_vocab,) bool; end tokens where it may end.

        Raises:
            DecodeFailed: the parser gave up (a bound was hit); the request must end.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._demand_sane()
        mask = np.unpackbits(bits, bitorder="little")
        return mask[: self._vocabulary_size].view(np.bool_)

    def allows(self, token_id: int) -> bool:
        """Tell whether this one token may come next: some hundred times cheaper than a mask.

        Raises:
            DecodeFailed: the parser gave up; the request must end.
        """
        allowed = bool(self._matcher.validate_tokens([token_id]))
        self._demand_sane()
        return allowed

    def accept(self, token_id: int) -> None:
        """Go on past a token that was allowed.

        Raises:
            DecodeFailed: the token is not in the language (a replay of other output).
        """
        self._matcher.consume_token(token_id)
        self._demand_sane()

    def accept_all(self, token_ids: Sequence[int]) -> bool:
        """Go on past these tokens if all of them are in the language; False: nothing changed."""
        if self._matcher.validate_tokens(list(token_ids)) != len(token_ids):
            return False
        return bool(self._matcher.consume_tokens(list(token_ids)))

    @property
    def is_complete(self) -> bool:
        """Say whether the text is a whole sentence that nothing but an end token may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """Say whether the text so far is in the language."""
        return bool(self._matcher.is_accepting())

    def _demand_sane(self) -> None:
        if self._matcher.is_error():
            # The matcher's own words may hold generated text, so they are not passed on.
            raise DecodeFailed(reason=f"the constraint's parser stopped: {self._stop_name()}")

    def _stop_name(self) -> str:
        return str(self._matcher.stop_reason())


def tokenizer_of(
    pieces: Sequence[bytes],
    control_ids: Sequence[int],
    end_ids: Sequence[int],
    vocabulary_address: object,
    tokenize_address: int,
) -> LLTokenizer:
    """Build the grammar engine's view of a llama.cpp vocabulary (a second for 150 000 tokens).

    Only control tokens are marked as such: a user-defined token, such as the opening of a tool
    call, stands for its own text, so that a grammar which spells that text allows the token.

    Args:
        pieces: the bytes of each token, in order of ids.
        control_ids: tokens that no text spells.
        end_ids: tokens that end a generation; the first is the one the grammar engine names.
        vocabulary_address: the `llama_vocab *` (it must outlive the tokenizer).
        tokenize_address: the address of `llama_tokenize`.
    """
    marked = list(pieces)
    for token_id in control_ids:
        marked[token_id] = b"\xff" + marked[token_id]
    tokenizer: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=marked,
        vocab_ptr=vocabulary_address,
        tokenize_fptr=tokenize_address,
        eos_token=list(end_ids),
        slices=None,
    )
    return tokenizer


def _compile(tokenizer: LLTokenizer, constraint: Constraint) -> LLMatcher:
    compiled = LLMatcher(tokenizer, _grammar(constraint), log_level=_QUIET, limits=_limits())
    if compiled.is_error():
        reason = _reason([compiled.get_error()])
        raise SchemaUnsupported(field=_FIELDS[constraint.kind], reason=reason)
    return compiled


def _grammar(constraint: Constraint) -> str:
    kind, text = constraint.kind, constraint.text
    if kind is ConstraintKind.JSON_OBJECT:
        return _json_grammar('{"type": "object"}', "response_format")
    if kind is ConstraintKind.JSON_SCHEMA:
        return _json_grammar(text, "json_schema")
    if kind is ConstraintKind.REGEX:
        return str(LLMatcher.grammar_from_regex(text))
    if kind is ConstraintKind.CHOICES:
        text = _choices_rule(text)
    elif kind is ConstraintKind.GBNF:
        text = grammars.lark_of_gbnf(text)
    elif kind is ConstraintKind.LARK:
        text = grammars.checked_lark(text, lambda schema: inline(schema, grammars.FIELD))
    return str(LLMatcher.grammar_from_lark(text))


def inline(schema: str, field: str) -> str:
    """Write a schema as the inside of Lark's `%json`, with the same options as one alone.

    Raises:
        SchemaUnsupported: it can't be honoured.
    """
    options = {"x-guidance": _JSON_OPTIONS}
    return json.dumps({**prepared(schema, field), **options}, ensure_ascii=False)


def _json_grammar(schema: str, field: str) -> str:
    return str(LLMatcher.grammar_from_json_schema(prepared(schema, field), overrides=_JSON_OPTIONS))


def _choices_rule(text: str) -> str:
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaUnsupported(field="choices", reason="is not a JSON list") from error
    if not isinstance(choices, list) or not choices:
        raise SchemaUnsupported(field="choices", reason="must be a JSON list with an entry")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise SchemaUnsupported(field="choices", reason="must hold strings that are not empty")
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _limits() -> LLParserLimits:
    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def _reason(messages: Sequence[str]) -> str:
    text = " ".join(" ".join(messages).split())
    return text[:_REASON_CHARS_MAX] or "can't be honoured"
