"""Name what the daemon and the text process say to each other.

What this room does: the messages of both directions as tagged structs.
What it knows: one answer a call, in order; the process greets with `Hello`.
What it never does: I/O, or hold anything that the other side must not see.
"""

from __future__ import annotations

from typing import TypeAlias

from appliance.domain import Constraint, Prompt, RankPrompt
from appliance.runtime.wire.frame import Frame
from appliance.runtime.wire.worker import Failure, Hello

# --- daemon → text process ----------------------------------------------------------------------


class OpenVocabulary(Frame, tag="open_vocabulary"):
    """Load the vocabulary and template of a file under a key (the version's digest).

    prompt_bytes_max bounds what a template, or token ids, may write as one text;
    constraint_ms what a constraint may cost to compile, in CPU time.
    """

    ticket: int
    key: str
    path: str
    prompt_bytes_max: int = 8 * 1024 * 1024
    constraint_ms: float = 250.0


class CloseVocabulary(Frame, tag="close_vocabulary"):
    """Forget the vocabulary of that key."""

    ticket: int
    key: str


class Prepare(Frame, tag="prepare"):
    """Turn a prompt into token ids: render, tokenise, check ids and any constraint.

    add_bos: as the model says, for text and chat; never for a TokenPrompt. parse_special: whether
    special tokens written in a TextPrompt are parsed (a Tokenize call may ask; a chat always does,
    for the template's own text only).
    limit_tokens: refuse early what can only be longer; 0: no limit. with_pieces: tell the bytes of
    each token.
    """

    ticket: int
    key: str
    prompt: Prompt | RankPrompt
    add_bos: bool = True
    parse_special: bool = False
    constraint: Constraint | None = None
    limit_tokens: int = 0
    with_pieces: bool = True


class Detokenize(Frame, tag="detokenize"):
    """Turn token ids back into text."""

    ticket: int
    key: str
    token_ids: tuple[int, ...]


class TryTemplate(Frame, tag="try_template"):
    """Compile a chat template that belongs to no file yet, and render a chat with it."""

    ticket: int
    source: str
    output_chars_max: int


ToText: TypeAlias = OpenVocabulary | CloseVocabulary | Prepare | Detokenize | TryTemplate


class Opened(Frame, tag="opened"):
    """The answer to Open- and CloseVocabulary, and to a template that works."""

    ticket: int


class Prepared(Frame, tag="prepared"):
    """The prompt as token ids, ready for a worker.

    `constraint`: the one to enforce (a tool_choice that demands a call becomes one here).
    `tool_grammar`: which syntax of tool calls the template uses, "" for none.
    `pieces`: the bytes of each token, if asked for.
    """

    ticket: int
    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...] = ()
    rendered: str = ""
    constraint: Constraint | None = None
    tool_syntax: str = ""


class Detokenized(Frame, tag="detokenized"):
    """The text of the given ids; bytes that are not UTF-8 are replaced by U+FFFD."""

    ticket: int
    text: str


class TextFailed(Frame, tag="text_failed"):
    """The call of that ticket ended in an error."""

    failure: Failure


FromText: TypeAlias = Hello | Opened | Prepared | Detokenized | TextFailed
