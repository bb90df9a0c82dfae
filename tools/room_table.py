"""List every room of the program, with what it does, in ARCHITECTURE.md, between two marks.

What this program does: takes the first line of each module's docstring, package by package.
What it knows: a test holds the list in ARCHITECTURE.md equal to what it writes.
What it never does: import a module, or list what protoc generated.

Usage: python -m tools.room_table
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "appliance"
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN = "<!-- rooms: written by tools/room_table.py -->"
END = "<!-- end of rooms -->"


def table() -> str:
    """Write one table for the top of the package, and one for each package below it."""
    inside = (path.parent for path in PACKAGE.rglob("__init__.py") if "proto" not in path.parts)
    packages = sorted(inside)
    return "\n\n".join("\n".join(_rows(package)) for package in packages)


def _rows(package: Path) -> Iterator[str]:
    name = package.relative_to(ROOT)
    yield f"| `{name}/` | {_first_line(package / '__init__.py')} |"
    yield "|---|---|"
    for path in sorted(package.glob("*.py")):
        if path.name != "__init__.py":
            yield f"| `{path.relative_to(PACKAGE)}` | {_first_line(path)} |"


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None, path
    return docstring.partition("\n")[0]


def placed(text: str) -> str:
    """Put the tables between the marks of a page."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Write them again."""
    PAGE.write_text(placed(PAGE.read_text()))
    print(PAGE.name)


if __name__ == "__main__":
    main()
