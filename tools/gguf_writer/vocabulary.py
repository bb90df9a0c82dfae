"""Read a tokenizer out of a GGUF, or make a small byte-level one.

What this room does: the `tokenizer.*` keys of a model file, as values ready to be written again.
What it knows: GGUF's key names, and what llama.cpp's byte-pair tokenizer needs to load.
What it never does: tokenise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf import GGUFReader, GGUFValueType, Keys, TokenType

if TYPE_CHECKING:
    from pathlib import Path

# One GGUF value: a scalar, or a list for an array.
Value = bool | int | float | str | list[int] | list[float] | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One GGUF key with its value; `item_type` is that of an array's items."""

    key: str
    value: Value
    value_type: GGUFValueType
    item_type: GGUFValueType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer: its number of tokens and its `tokenizer.*` fields without the chat template."""

    size: int
    fields: tuple[Field, ...]
    chat_template: str = ""


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the tokenizer of a GGUF, vocab-only or whole.

    Takes some seconds for 100 000 tokens. Raises ValueError if the file has no tokenizer.
    """
    found: dict[str, Field] = {}
    for key, field in GGUFReader(path).fields.items():
        if key.startswith("tokenizer."):
            kind = field.types[0]
            item = field.types[1] if kind is GGUFValueType.ARRAY else None
            found[key] = Field(key=key, value=field.contents(), value_type=kind, item_type=item)
    template = found.pop(Keys.Tokenizer.CHAT_TEMPLATE, None)
    tokens = found.get(Keys.Tokenizer.LIST)
    if tokens is None or not isinstance(tokens.value, list):
        message = f"{path} has no tokenizer ({Keys.Tokenizer.LIST})"
        raise ValueError(message)
    return Vocabulary(
        size=len(tokens.value),
        fields=tuple(found.values()),
        chat_template=str(template.value) if template else "",
    )


# Merges give the byte tokenizer some tokens of more than one byte, so that text, prefixes and stop
# strings end inside tokens as they do in real models. Each pair's parts are made before the pair.
_MERGES = (
    *("t h", "th e", "h e", "i n", "e r", "a n", "o n", "r e", "a t", "e n", "o r", "o u", "s t"),
    *("Ġ t", "Ġ a", "Ġ the", "Ġ s", "Ġ w", "Ġ o", "in g", "an d", "Ġ and", "Ġ in", "Ġ b", "Ġ c"),
)
BEGIN, END, TURN_BEGIN, TURN_END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
_CONTROL = (BEGIN, END, TURN_BEGIN, TURN_END)
_USER_DEFINED = ("<tool_call>", "</tool_call>")
# Qwen's names, by which llama.cpp knows them.
INFILL = (
    *("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_vocabulary(*, infill: bool = False) -> Vocabulary:
    """Make a byte-level BPE tokenizer: 256 bytes, some merges, and ChatML-like special tokens.

    Any text can be tokenised, and any token sequence without special tokens is bytes. `infill` adds
    the tokens of models that fill in the middle.
    """
    plain = [_byte_letter(byte) for byte in range(256)] + [m.replace(" ", "") for m in _MERGES]
    fill = INFILL if infill else ()
    tokens = [*plain, *_CONTROL, *_USER_DEFINED, *fill]
    types = [TokenType.NORMAL] * len(plain) + [TokenType.CONTROL] * len(_CONTROL)
    types += [TokenType.USER_DEFINED] * len(_USER_DEFINED) + [TokenType.CONTROL] * len(fill)
    text, number, integer = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.INT32
    array, boolean, keys = GGUFValueType.ARRAY, GGUFValueType.BOOL, Keys.Tokenizer
    return Vocabulary(
        size=len(tokens),
        fields=(
            Field(key=keys.MODEL, value="gpt2", value_type=text),
            Field(key=keys.PRE, value="gpt-2", value_type=text),
            Field(key=keys.LIST, value=tokens, value_type=array, item_type=text),
            Field(
                key=keys.TOKEN_TYPE,
                value=[int(kind) for kind in types],
                value_type=array,
                item_type=integer,
            ),
            Field(key=keys.MERGES, value=list(_MERGES), value_type=array, item_type=text),
            Field(key=keys.BOS_ID, value=tokens.index(BEGIN), value_type=number),
            Field(key=keys.EOS_ID, value=tokens.index(END), value_type=number),
            Field(key=keys.EOT_ID, value=tokens.index(TURN_END), value_type=number),
            Field(key=keys.ADD_BOS, value=True, value_type=boolean),
            Field(key=keys.ADD_EOS, value=False, value_type=boolean),
        ),
        chat_template=CHAT_TEMPLATE,
    )


def _byte_letter(byte: int) -> str:
    """Return GPT-2's printable letter for a byte (bytes_to_unicode of its encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))
