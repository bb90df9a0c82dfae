"""Compare a unified with a partitioned KV cache on given models, as loading does.

What this room does: the measurement of `appliance.runtime.cache_layout`, several times, as a table.
What it knows: the figures of docs/adr/0012-cache-layout.md come from here.
What it never does: choose a layout, or start a daemon.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import click

from appliance.clock import monotonic_ms
from appliance.runtime.cache_layout import PART_CELLS_MIN, Speedup, measure_speedup
from appliance.runtime.llama import ContextOptions, Model

_BUDGET_MS = 60_000.0  # of one measurement: here the machine may be slow or busy


@click.command()
@click.option("--rows", multiple=True, type=click.IntRange(4, 64), default=(8, 16, 32))
@click.option("--threads", type=click.IntRange(1, 256), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 50), default=5, show_default=True)
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(rows: tuple[int, ...], threads: int, rounds: int, models: tuple[Path, ...]) -> None:
    """Print how many times as fast a partitioned cache decodes: median of the rounds, range."""
    click.echo(f"{'model':32} rows  all sequences     with gaps         together")
    for path in models:
        model = Model(path, gpu_layers=0, on_progress=lambda _ratio: None)
        for count in rows:
            options = ContextOptions(
                cells=2 * PART_CELLS_MIN * count,
                batch_tokens=64,
                sequences_max=count,
                threads_decode=threads,
                threads_prefill=threads,
                embedding=False,
            )
            found = [
                measure_speedup(model, options, monotonic_ms, rows_max=count, budget_ms=_BUDGET_MS)
                for _ in range(rounds)
            ]
            click.echo(f"{path.name:32} {count:4}  " + "  ".join(_columns(found)))


def _columns(found: list[Speedup]) -> list[str]:
    missing = [one.missing for one in found if one.missing]
    if missing:
        return [f"not measured: {missing[0]}"]
    kinds = ([getattr(one, name) for one in found] for name in ("full", "gaps", "ratio"))
    return [f"{median(one):.2f} ({min(one):.2f}-{max(one):.2f})" for one in kinds]


if __name__ == "__main__":
    main()
