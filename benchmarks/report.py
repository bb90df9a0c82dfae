"""Write what was measured: a page for readers, a picture, and every figure as JSON.

What this room does: the kept file's shape; the Markdown page; one line for each figure.
What it knows: which words explain the tables.
What it never does: measure, or decide whether a figure holds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.bars import Verdict
from benchmarks.plot import draw
from benchmarks.samples import Sample, cpu_table, number, table

_PLACES = {  # the longer ones first
    sys.executable: "python",
    str(Path(__file__).resolve().parents[1]): "REPOSITORY",
    tempfile.gettempdir(): "SCRATCH",
    str(Path.home()): "~",
}


class Results(msgspec.Struct, kw_only=True):
    """The file that is kept."""

    command: str
    machine: dict[str, str]
    peers: str  # what stands in llama-server's place
    seconds: dict[str, float]  # how long each suite took
    commands: dict[str, list[str]]  # of each server, as it was started
    notes: list[str]
    lost: dict[str, str] = {}  # suites that came to no end, and why
    verdicts: list[Verdict]
    samples: list[Sample]


def page(results: Results) -> str:
    """Write the Markdown page."""
    minutes = sum(results.seconds.values()) / 60
    parts = [
        (
            f"`{results.command}`: {results.machine['cpu']}, {results.machine['cores']} cores, "
            f"{minutes:.0f} minutes. {results.peers}"
        )
    ]
    if results.verdicts:
        parts.append(figures(results.verdicts))
    parts += [f"- {note}" for note in results.notes]
    for suite in dict.fromkeys(one.suite for one in results.samples):
        measured = [one for one in results.samples if one.suite == suite]
        parts.append(f"## {suite}\n\n{table(measured)}")
        cpu = cpu_table(measured)
        if cpu:
            parts.append(cpu)
    return "\n\n".join(parts) + "\n"


def figures(verdicts: list[Verdict]) -> str:
    """Write the table of figures: medians over the rounds with their 95 % intervals."""
    lines = ["| figure | measured | 95 % interval | bar | |", "|---|---|---|---|---|"]
    for one in verdicts:
        sign = "≥" if one.bar.at_most is None else "≤"
        found, span = f"not measured: {one.why}", ""
        if one.measured is not None:
            found = f"**{number(one.measured.median)}**"
            span = f"{number(one.measured.low)}-{number(one.measured.high)}"
        word = "holds" if one.holds else "falls short"
        lines.append(f"| {one.bar.title} | {found} | {span} | {sign} {one.bar.limit:g} | {word} |")
    return "\n".join(lines)


def keep(folder: Path, name: str, results: Results) -> None:
    """Write NAME.json, NAME.md and NAME.svg into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    bare = _without_places(msgspec.json.encode(results).decode())
    results = msgspec.json.decode(bare, type=Results)
    data = msgspec.json.format(bare, indent=1)
    (folder / f"{name}.json").write_text(data + "\n", encoding="utf-8")
    text = page(results)
    if results.verdicts:
        (folder / f"{name}.svg").write_text(draw(results.verdicts), encoding="utf-8")
        text = f"![measured over bar]({name}.svg)\n\n{text}"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def _without_places(text: str) -> str:
    """Name the places of this machine by what they are for."""
    for place, name in _PLACES.items():
        if place != "/":  # the home of some
            text = text.replace(place, name)
    return text
