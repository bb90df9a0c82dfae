"""Measure what versions cost: `python -m benchmarks.versions`.

What this room does: runs the suites one after another, prints one line for each figure, keeps every
figure as JSON; exits with 0 only if all hold (with --short: if every suite came to its end).
What it knows: the order of the suites; that one that breaks costs its own figures only.
What it never does: measure, or hold a bar.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from benchmarks.bars import Bar, judge
from benchmarks.harness import machine
from benchmarks.report import Results, keep
from benchmarks.versions import cached, changed, download, gate, ordered, survival, whole
from benchmarks.versions.bench import Bench

SUITES: dict[str, Callable[[Bench], None]] = {
    download.SUITE: download.measure,
    changed.SUITE: changed.measure,
    gate.SUITE: gate.measure,
    whole.CAUGHT: whole.measure_caught,
    whole.SWITCH: whole.measure_switch,
    ordered.SUITE: ordered.measure,
    cached.SUITE: cached.measure,
    survival.KILLS: survival.measure_kills,
    survival.POWER: survival.measure_power,
    survival.OUTAGE: survival.measure_outage,
}
_PARTS = (download, changed, gate, whole, ordered, cached, survival)
BARS: tuple[Bar, ...] = tuple(bar for part in _PARTS for bar in part.BARS)
NAME = "versions"
_PEERS = "Peers: the tools that people use for it by hand, on the same server."


@click.command()
@click.option("--suite", "suites", multiple=True, type=click.Choice(list(SUITES)))
@click.option("--short", is_flag=True, help="One round of small files: does everything work?")
@click.option("--rounds", type=click.IntRange(min=1), help="Of every suite, instead of its own.")
@click.option(
    "--original",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another model than the demo model for the suite gate: its weights in F16.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Default: benchmarks/results.")
def main(
    *,
    suites: tuple[str, ...],
    short: bool,
    rounds: int | None,
    original: Path | None,
    out: Path | None,
) -> None:
    """Measure versions; write versions.json, .md and .svg into the folder of --out.

    A part of the suites, or --short, is kept only if --out is given; what lies there of other
    suites stays, for they take long together.
    """
    chosen = tuple(suites) or tuple(SUITES)
    results = run(chosen, short=short, rounds=rounds or 0, original=original)
    for verdict in results.verdicts:
        click.echo(verdict.line)
    if out or (chosen == tuple(SUITES) and not short):
        folder = out or Path("benchmarks/results")
        keep(folder, NAME, beside(folder / f"{NAME}.json", results, chosen))
    if short:
        sys.exit(1 if results.lost else 0)
    sys.exit(0 if all(verdict.holds for verdict in results.verdicts) else 1)


def beside(path: Path, results: Results, chosen: tuple[str, ...]) -> Results:
    """Add what was kept of other suites than those chosen now, if anything was."""
    if not path.exists():
        return results
    kept = msgspec.json.decode(path.read_bytes(), type=Results)
    samples = [one for one in kept.samples if one.suite not in chosen]
    if not samples:
        return results
    return msgspec.structs.replace(
        results,
        command=f"{kept.command}; {results.command}",
        seconds={**kept.seconds, **results.seconds},
        commands=kept.commands | results.commands,
        notes=kept.notes + results.notes,
        lost={name: why for name, why in kept.lost.items() if name not in chosen} | results.lost,
        verdicts=[one for one in kept.verdicts if one.bar.suite not in chosen] + results.verdicts,
        samples=samples + results.samples,
    )


def run(
    suites: tuple[str, ...], *, short: bool, rounds: int = 0, original: Path | None = None
) -> Results:
    """Run the suites one after another; blocks for as long as they take."""
    lost: dict[str, str] = {}
    seconds: dict[str, float] = {}
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(
            scratch=Path(scratch),
            say=click.echo,
            short=short,
            rounds_asked=rounds,
            original=original,
        )
        for name in suites:
            began = time.monotonic()
            try:
                SUITES[name](bench)
            except (
                AssertionError,
                RuntimeError,
                OSError,
                LookupError,
                subprocess.SubprocessError,
            ) as error:
                lost[name] = " ".join(str(error).split())[-300:]
                bench.notes.append(f"{name}: came to no end: {error}")
            seconds[name] = time.monotonic() - began
    return Results(
        command=" ".join(["python -m benchmarks.versions", *sys.argv[1:]]),
        machine=facts,
        peers=_PEERS,
        seconds=seconds,
        commands=bench.commands,
        notes=bench.notes,
        lost=lost,
        verdicts=judge(bench.samples, suites, lost, BARS),
        samples=bench.samples,
    )


if __name__ == "__main__":
    main()
