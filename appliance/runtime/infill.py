"""Lay out what stands before and after a gap as models of code were taught to fill it. Pure.

What this room does: the order of special tokens and texts of one prompt.
What it knows: the tokens that llama.cpp finds in a vocabulary (llama.h: llama_vocab_fim_pre and its
neighbours), and how llama-server puts files in front (the order of arXiv 2409.12186).
What it never does: tokenise, or cut anything off.

    [rep] repository  { [sep] name  text }  [sep] name  [pre] prefix  [suf] suffix  [mid]

All before [pre] is there only with files. What the vocabulary has no token for is left out; where
it can't tell files apart, a line of text does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from appliance.domain import InfillPrompt
from appliance.errors import InvalidRequest

_REPOSITORY, _FILE, _CURRENT = "myproject\n", "tmp", "filename\n"
_CUT = "\n\n--- snippet ---\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillTokens:
    """The ids of the special tokens; -1 where the vocabulary has none."""

    prefix: int
    suffix: int
    middle: int
    repository: int
    separator: int


@dataclass(frozen=True, slots=True)
class Opening:
    """A text at the beginning of something, which a tokenizer may put a space in front of."""

    text: str


@dataclass(frozen=True, slots=True)
class Going:
    """A text in the midst of something."""

    text: str


Part: TypeAlias = int | Opening | Going


def layout(prompt: InfillPrompt, tokens: InfillTokens) -> Iterator[Part]:
    """Yield token ids and texts in order.

    Raises:
        InvalidRequest: the model was not taught to fill in the middle.
    """
    missing = [name for name in ("prefix", "suffix", "middle") if getattr(tokens, name) < 0]
    if missing:
        reason = f"can't fill in the middle: it has no token for {', '.join(missing)}"
        raise InvalidRequest(field="model", reason=reason)
    if prompt.files:
        yield from _files(prompt, tokens)
    yield tokens.prefix
    yield Opening(prompt.prefix)
    yield tokens.suffix
    yield Going(prompt.suffix)
    yield tokens.middle


def _files(prompt: InfillPrompt, tokens: InfillTokens) -> Iterator[Part]:
    if tokens.repository >= 0:
        yield tokens.repository
        yield Opening(_REPOSITORY)
    for file in prompt.files:
        if tokens.separator >= 0:
            yield tokens.separator
            yield Opening(f"{file.name or _FILE}\n")
        else:
            yield Going(_CUT)
        yield Going(file.text)
    if tokens.separator >= 0:
        yield tokens.separator
        yield Opening(_CURRENT)
