"""Draw which room imports which, into ARCHITECTURE.md, between two marks.

What this program does: reads the imports with grimp (the library under import-linter), folds
modules into rooms, and writes a Mermaid graph without the edges that others imply.
What it knows: a test holds the picture in ARCHITECTURE.md equal to what it draws.
What it never does: judge; the contracts in pyproject.toml do.

Usage: python -m tools.import_picture
"""

from __future__ import annotations

from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN = "<!-- import picture: written by tools/import_picture.py -->"
END = "<!-- end of import picture -->"
PACKAGE = "appliance"


def picture() -> str:
    """Draw the graph as a Mermaid block."""
    edges = reduced(room_imports())
    lines = ["```mermaid", "graph TD"]
    lines += [f"    {importer} --> {imported}" for importer, imported in sorted(edges)]
    return "\n".join([*lines, "```"])


def room_imports() -> set[tuple[str, str]]:
    """Read which room imports which; a room is a child of the package."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    edges = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = (_room(module), _room(imported))
            if pair[0] != pair[1] and "" not in pair:
                edges.add(pair)
    return edges


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Leave out each edge that a longer way already implies. The graph has no cycle."""
    return {
        (importer, imported)
        for importer, imported in edges
        if not any(
            imported in _reached(middle, edges)
            for start, middle in edges
            if start == importer and middle != imported
        )
    }


def _reached(room: str, edges: set[tuple[str, str]]) -> set[str]:
    found, pending = set[str](), [room]
    while pending:
        here = pending.pop()
        for importer, imported in edges:
            if importer == here and imported not in found:
                found.add(imported)
                pending.append(imported)
    return found


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def placed(text: str) -> str:
    """Put the picture between the marks of a page."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


def main() -> None:
    """Draw it again."""
    PAGE.write_text(placed(PAGE.read_text()))
    print(PAGE.name)


if __name__ == "__main__":
    main()
