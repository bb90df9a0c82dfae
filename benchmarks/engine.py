"""Measure the engine beside its peers: `python -m benchmarks.engine` (`make figures-engine`).

What this room does: builds the peers once, runs the suites one after another, prints one line for
each figure, keeps every figure as JSON; exits with 0 only if all hold (with --quick or
--twin: if every suite came to its end).
What it knows: the order of the suites; that one that breaks costs its own figures only.
What it never does: measure (`suites`), or hold a bar (`bars`).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.bars import judge
from benchmarks.harness import Options, Session, machine
from benchmarks.report import Results, keep
from benchmarks.servers import CORES
from benchmarks.suites import SUITES
from tools.embedding_model import cache_dir
from tools.gguf_writer import SHAPES

_PEERS = "Peers: llama-server as its users run it for that many streams, with its own defaults."
_TWIN = "A second copy of ours stands in llama-server's place: ratios show the machine's noise."
_QUICK = "Tiny models and loads: this says whether everything works, not how fast it is."


@click.command()
@click.option(
    "--suite",
    "suites",
    multiple=True,
    type=click.Choice(list(SUITES)),
    help="Only this suite; may be repeated.",
)
@click.option("--quick", is_flag=True, help="One round of tiny loads: does everything work?")
@click.option(
    "--twin",
    is_flag=True,
    help="A second copy of ours in llama-server's place: how noisy is this machine?",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Of every suite, instead of its own.")
@click.option("--threads", type=click.IntRange(min=1), default=CORES, help="Of every engine.")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="1B", help="Of 'throughput'.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, help="Likewise.")
@click.option("--output-tokens", type=click.IntRange(min=2), default=48, help="Likewise.")
@click.option("--seed", type=click.IntRange(min=1), default=1, help="Of every prompt.")
@click.option("--cache", type=click.Path(path_type=Path), default=cache_dir())
@click.option("--out", type=click.Path(path_type=Path), help="Default: benchmarks/results.")
def main(  # noqa: PLR0913 - one for each option
    *,
    suites: tuple[str, ...],
    quick: bool,
    twin: bool,
    rounds: int | None,
    threads: int,
    shape: str,
    prompt_tokens: int,
    output_tokens: int,
    seed: int,
    cache: Path,
    out: Path | None,
) -> None:
    """Measure ours beside llama-server; write engine.json, .md and .svg into the folder of --out.

    Each figure is the median over rounds of a ratio taken within one round; the 95 % interval of
    that median is found by bootstrap. A figure holds if its interval reaches the bar: machines are
    noisy, by some 10 %, and with few rounds the interval is wide. Counts, such as failed requests,
    must reach their bar in every round.

    A part of the suites, or --quick, is kept only if --out is given.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stops the servers
    options = Options(
        cache=cache,
        quick=quick,
        twin=twin,
        rounds=rounds or 0,
        seed=seed,
        threads=threads,
        shape=shape,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )
    chosen = tuple(suites) or tuple(SUITES)
    results = run(options, chosen)
    for verdict in results.verdicts:
        click.echo(verdict.line)
    if out or (chosen == tuple(SUITES) and not quick):
        keep(out or Path("benchmarks/results"), "engine", results)
    if quick or twin:
        sys.exit(1 if results.lost else 0)
    sys.exit(0 if all(verdict.holds for verdict in results.verdicts) else 1)


def run(options: Options, suites: tuple[str, ...]) -> Results:
    """Run the suites one after another; blocks for as long as they take."""
    lost: dict[str, str] = {}
    seconds: dict[str, float] = {}
    facts = machine()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        Session(options, Path(scratch), click.echo) as session,
    ):
        for name in suites:
            began = time.monotonic()
            session.suite = name
            click.echo(f"{name} ...")
            try:
                SUITES[name](session)
            except (RuntimeError, OSError, LookupError, subprocess.SubprocessError) as error:
                lost[name] = " ".join(str(error).split())[-300:]
                session.note(f"{name}: came to no end: {error}")
            finally:
                session.suite_ended()
            seconds[name] = time.monotonic() - began
            click.echo(f"{name}: {seconds[name]:.0f} s")
    said = [_TWIN if options.twin else _PEERS, *([_QUICK] if options.quick else [])]
    return Results(
        command=" ".join(["python -m benchmarks.engine", *sys.argv[1:]]),
        machine=facts,
        peers=" ".join(said),
        seconds=seconds,
        commands=session.commands,
        notes=session.notes,
        lost=lost,
        verdicts=judge(session.samples, suites, lost),
        samples=session.samples,
    )


if __name__ == "__main__":
    main()
