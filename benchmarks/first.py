"""Measure ours beside llama-server, engine against engine: `python -m benchmarks.first`.

What this room does: three shapes at several numbers of streams, in rounds; prints ratios and keeps
every figure as JSON.
What it knows: which loads make up this measurement.
What it never does: judge the result.

Unlike `engine`, it makes the two alike instead of running each as its users do: llama-server's
streams share one KV cache, as ours do, and its prompt cache is off. Both servers stay up and idle
while the other is loaded; within a round they take turns on each load, in alternating order, with
the same prompts, which differ between all requests and rounds.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.harness import Options, Session, machine
from benchmarks.report import Results, keep, page
from benchmarks.samples import case_of
from benchmarks.servers import CORES
from benchmarks.suites.throughput import check_whole
from benchmarks.traffic import Part
from tools.embedding_model import cache_dir

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 48
# shape → streams → requests of each stream; gRPC is measured where its share of a token shows.
CASES: dict[str, dict[int, int]] = {
    "15M": {1: 12, 8: 4, 32: 2},
    "160M": {1: 4, 4: 2, 8: 1},
    "1B": {1: 1, 4: 1, 8: 1},
}
QUICK = {"15M": {4: 1}}
GRPC_SHAPES = ("15M",)


@click.command()
@click.option("--quick", is_flag=True, help="One round of tiny loads: does everything work?")
@click.option("--twin", is_flag=True, help="A second copy of ours in llama-server's place.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--shape", "shapes", multiple=True, help="Only this shape; may be repeated.")
@click.option("--threads", type=click.IntRange(min=1), default=CORES)
@click.option(
    "--partitioned",
    is_flag=True,
    help="Give each stream of llama-server its own part of the cells instead of one shared cache.",
)
@click.option("--cache", type=click.Path(path_type=Path), default=cache_dir())
@click.option("--out", type=click.Path(path_type=Path), help="Default: benchmarks/results.")
def main(
    *,
    quick: bool,
    twin: bool,
    rounds: int,
    shapes: tuple[str, ...],
    threads: int,
    partitioned: bool,
    cache: Path,
    out: Path | None,
) -> None:
    """Measure ours beside llama-server; write first.json and first.md into the folder of --out.

    With --quick, only if --out is given.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stops the servers
    options = Options(cache=cache, quick=quick, twin=twin, rounds=rounds, threads=threads)
    facts, seconds = machine(), {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        Session(options, Path(scratch), click.echo) as session,
    ):
        for shape, loads in (QUICK if quick else CASES).items():
            if not shapes or shape in shapes:
                began = time.monotonic()
                _measure(session, shape, loads, shared=not partitioned)
                seconds[shape] = time.monotonic() - began
    cache_said = "a part of the KV cache each" if partitioned else "one KV cache"
    results = Results(
        command=" ".join(["python -m benchmarks.first", *sys.argv[1:]]),
        machine=facts,
        peers=f"llama-server's streams have {cache_said}, its prompt cache is off.",
        seconds=seconds,
        commands=session.commands,
        notes=session.notes,
        verdicts=[],
        samples=session.samples,
    )
    click.echo(page(results))
    if out or not quick:
        keep(out or Path("benchmarks/results"), "first", results)


def _measure(session: Session, shape: str, loads: dict[int, int], *, shared: bool) -> None:
    for streams, requests in loads.items():
        part = Part(
            streams=streams,
            requests=requests,
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
        )
        settings = session.settings(
            session.model(shape),
            streams,
            PROMPT_TOKENS + OUTPUT_TOKENS,
            shared=shared,
            prompt_cache=False,
        )
        case = case_of(streams)
        session.ceiling(shape, case, 0, settings, PROMPT_TOKENS, OUTPUT_TOKENS)
        sides = session.sides(settings, grpc=shape in GRPC_SHAPES)
        session.warm(sides, part)
        for number, side in session.turns(sides, 3, within_s=600):
            sent = session.send(side, part, seed=1 + number)
            check_whole(sent[0], part, side)
            session.keep_load(shape, case, side, number, sent)
        session.suite_ended()


if __name__ == "__main__":
    main()
