r"""Turn the grammars that clients write into what the grammar engine reads the same way.

What this room does: GBNF to Lark, by llguidance's own converter, after spelling out what that
misreads; a look over a client's Lark for what can't be honoured here; bounds on both.
What it knows: llama.cpp's GBNF (strings, classes, `.`, groups, repetition) and llguidance's Lark.
What it never does: accept what it can't translate; what it lets through the engine checks again.

Both are read with llguidance's lexer: a rule without recursion is a terminal, and a terminal takes
the longest text it can, so `word "s"` with `word ::= [a-z]+` can never end. Such a grammar yields
no wrong text, but no end either; llama.cpp's parser of single characters is hundreds of times
dearer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from appliance.errors import SchemaUnsupported

FIELD = "grammar"
_RULES_MAX = 500  # the engine follows rules on the stack, and a process has not more than one
_REASON_CHARS_MAX = 300
_SHOWN_CHARS = 64
_SURROGATES = range(0xD800, 0xE000)

_GBNF = re.compile(
    r"""(?P<comment>\#[^\n]*) | "(?P<text>(?:\\.|[^"\\])*)" | \[(?P<set>\^?(?:\\.|[^\]\\])*)\]
    | (?P<count>\{[^}]*\}) | (?P<rule>[A-Za-z0-9_-]+)(?=\s*::=) | (?P<name>[A-Za-z0-9_-]+)
    | (?P<any>\.) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_CHAR = re.compile(
    r"\\(?P<code>x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|\\(?P<escaped>.)|(?P<plain>.)",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}

_LARK = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\\n])*"|/(?!/)(?:\\.|[^/\\\n])+/[a-z]*|(?://|\#)[^\n]*)
    | (?P<json>%json\s*(?=\{)) | (?P<heat>\btemperature\s*=)
    | (?P<rule>^\s*[A-Za-z_][\w-]*(?=\s*[:\[.])) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def lark_of_gbnf(text: str) -> str:
    """Translate a GBNF grammar.

    Raises:
        SchemaUnsupported: it is not one, is too large, or has what Lark has not.
    """
    names: dict[str, str] = {}
    rules: list[str] = []
    spelt = "".join(_gbnf_piece(match, names, rules) for match in _GBNF.finditer(text))
    _check_rules(len(rules))
    for name in names:
        if rules.count(name) != 1:
            reason = f"has {rules.count(name)} rules '{name[:_SHOWN_CHARS]}'"
            raise SchemaUnsupported(field=FIELD, reason=reason)
    if "root" not in rules:
        raise SchemaUnsupported(field=FIELD, reason="has no rule 'root'")
    try:
        return str(gbnf_to_lark(spelt))
    except RecursionError as error:
        raise SchemaUnsupported(field=FIELD, reason="is nested too deeply") from error
    except GbnfToLarkError as error:
        reason = _with_names(str(error), names)[:_REASON_CHARS_MAX]
        raise SchemaUnsupported(field=FIELD, reason=f"is not GBNF: {reason}") from error


def checked_lark(text: str, write_schema: Callable[[str], str]) -> str:
    """Look over a client's Lark; schemas in it are put right and written by `write_schema`.

    Raises:
        SchemaUnsupported: it has something that can't be honoured, or is too large.
    """
    written: list[str] = []
    at = rules = 0
    while match := _LARK.match(text, at):
        at = match.end()
        kind = match.lastgroup
        if kind == "heat":
            raise SchemaUnsupported(field=FIELD, reason="'temperature' is not served in a grammar")
        rules += kind == "rule"
        written.append(match.group())
        if kind == "json":
            schema, at = _schema(text, at)
            written.append(write_schema(schema))
    _check_rules(rules)
    return "".join(written)


def _schema(text: str, at: int) -> tuple[str, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise SchemaUnsupported(field=FIELD, reason=f"%json: {error}") from error
    return json.dumps(value), end


def _check_rules(count: int) -> None:
    if count > _RULES_MAX:
        reason = f"has {count} rules; the limit is {_RULES_MAX}"
        raise SchemaUnsupported(field=FIELD, reason=reason)


def _gbnf_piece(match: re.Match[str], names: dict[str, str], rules: list[str]) -> str:
    kind = match.lastgroup
    if kind == "comment":
        return ""
    if kind == "text":
        return '"' + "".join(_text_char(char) for char, _ in _chars(match["text"])) + '"'
    if kind == "set":
        return _set(match["set"])
    if kind == "any":
        return '([^\\n] | "\\n")'
    if kind in ("rule", "name"):
        name = match.group()
        if kind == "rule":
            rules.append(name)
        # Names of ours, since Lark reads a meaning into upper and lower case.
        return names.setdefault(name, "root" if name == "root" else f"r{len(names)}")
    return match.group()


def _set(text: str) -> str:
    """Write a class; what has a meaning in Rust's only is written by its code."""
    head, text = ("^", text[1:]) if text.startswith("^") else ("", text)
    written = [char if plain and char == "-" else _set_char(char) for char, plain in _chars(text)]
    if not written:
        raise SchemaUnsupported(field=FIELD, reason="has an empty character class")
    return f"[{head}{''.join(written)}]"


def _chars(text: str) -> list[tuple[str, bool]]:
    """Read (character, is written as itself) by GBNF's escapes."""
    chars: list[tuple[str, bool]] = []
    for match in _CHAR.finditer(text):
        if match["code"]:
            code = int(match["code"][1:], 16)
            if code > sys.maxunicode or code in _SURROGATES:
                raise SchemaUnsupported(field=FIELD, reason=f"{match.group()} is no character")
            chars.append((chr(code), False))
        elif match["escaped"]:
            if match["escaped"] not in _ESCAPES:
                raise SchemaUnsupported(field=FIELD, reason=f"unknown escape {match.group()}")
            chars.append((_ESCAPES[match["escaped"]], False))
        else:
            chars.append((match["plain"], True))
    return chars


def _text_char(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return _coded(char) if char < " " or char == "\x7f" else char


def _set_char(char: str) -> str:
    return char if char.isalnum() or (char > "\x7f" and char.isprintable()) else _coded(char)


def _coded(char: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    if named is not None:
        return named
    return f"\\x{ord(char):02x}" if char.isascii() else char


def _with_names(reason: str, names: dict[str, str]) -> str:
    """Call rules by the client's names again."""
    ours = {ours: theirs for theirs, ours in names.items()}
    return re.sub(r"\br\d+\b", lambda match: ours.get(match.group(), match.group()), reason)
