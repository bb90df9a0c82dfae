"""Write `configs/appliance.toml` and `docs/reference/config.md` from the tree in `config`.

What this program does: prints every key with its description, default and bounds, twice: as the
commented file that operators copy, and as a page to look things up.
What it knows: tests hold both files equal to what it writes.
What it never does: read a configuration.

Usage: python -m tools.config_reference
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from msgspec import Meta

from appliance.config import REPEATED, SECTIONS, Section, describe, toml_value

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "configs" / "appliance.toml"
PAGE = ROOT / "docs" / "reference" / "config.md"
WIDTH = 98

_EXAMPLES = {  # of keys without a default
    "bandwidth.bytes_per_s": 1_000_000,
    "clients.name": "an-application",
    "clients.key_sha256": "0" * 64,
    "models.path": "model.gguf",
    "models.adapters.name": "an-adapter",
    "models.adapters.path": "adapter.gguf",
}

_FILE_HEAD = """\
# Every key of the appliance, with its default. A key left out has its default; an unknown key is
# refused. `appliance config check --config FILE` checks a file and prints the values in use.
"""
_PAGE_HEAD = """\
# Configuration keys

`appliance serve --config FILE` reads one TOML file, once. A key left out has its default; an
unknown key, a wrong type, a value out of bounds and two values that contradict each other are
refused with exit code 78. [`configs/appliance.toml`](../../configs/appliance.toml) is a file to
start from. Written by `python -m tools.config_reference`.
"""


def commented_file() -> str:
    """Write the file with every key commented; repeated tables are examples, commented out."""
    lines = [_FILE_HEAD]
    for name, section in SECTIONS.items():
        mark = "# " if name in REPEATED else ""
        lines += [f"# {line}" for line in _wrapped(_summary(section), WIDTH - 2)]
        lines.append(f"{mark}[[{name}]]" if mark else f"[{name}]")
        for field, meta, default in _keys(name, section):
            if f"{name}.{field}" in REPEATED:
                continue  # tables of their own
            text = f"{meta.description}{_bounds(meta)}"
            lines += [f"# {line}" for line in _wrapped(text, WIDTH - 2)]
            lines.append(f"{mark}{field} = {default}")
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """Write the page: a table for each section."""
    lines = [_PAGE_HEAD]
    for name, section in SECTIONS.items():
        lines += [f"## {name}", "", _summary(section), ""]
        lines += ["| key | default | bounds | meaning |", "|---|---|---|---|"]
        for field, meta, default in _keys(name, section):
            bounds = _bounds(meta).strip(" ()").removesuffix(".")
            lines.append(f"| `{name}.{field}` | `{default}` | {bounds} | {meta.description} |")
        lines.append("")
    return "\n".join(lines)


def _keys(name: str, section: type[Section]) -> Iterator[tuple[str, Meta, str]]:
    fields = section.__struct_fields__
    defaults = dict(zip(reversed(fields), reversed(section.__struct_defaults__), strict=False))
    for field in fields:
        default = toml_value(defaults.get(field, _EXAMPLES.get(f"{name}.{field}")))
        yield field, describe(section, field), default


def _bounds(meta: Meta) -> str:
    low = (
        f"{meta.ge:,}"
        if meta.ge is not None
        else f"above {meta.gt:,}"
        if meta.gt is not None
        else ""
    )
    high = f"{meta.le:,}" if meta.le is not None else ""
    if low and high:
        return f" ({low} to {high})"
    return f" (at most {meta.max_length} entries)" if meta.max_length and not meta.pattern else ""


def _summary(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write both files."""
    for path, text in ((FILE, commented_file()), (PAGE, page())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
