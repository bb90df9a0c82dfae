"""Measure what waiting threads cost: `python -m tools.thread_waits MODEL.gguf`.

What this program does: decodes one stream with one and with two threads, alone and beside a busy
process, in its own session and in another, and prints milliseconds a step.
What it knows: GNU OpenMP reads GOMP_SPINCOUNT once, so each value has a process of its own.
What it never does: wait for a calm machine: look at the load first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import click

from appliance.runtime.llama import Context, ContextOptions, DecodeCode, Model

_BURST_S = 0.3
_BUSY = "import time\nwhile time.process_time() < 60: pass"
_FIRST, _LAST = 64, 192  # positions


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--spin", "spins", type=int, multiple=True, default=(60_000, 2000, 500, 200, 0))
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--here", is_flag=True, hidden=True)
def main(model: Path, spins: tuple[int, ...], rounds: int, *, here: bool) -> None:
    """Print one line for each spin count, number of threads and neighbour."""
    if here:
        _measure(model, rounds)
        return
    for spin in spins:
        click.echo(f"GOMP_SPINCOUNT={spin}")
        command = [sys.executable, "-m", "tools.thread_waits", "--here", f"--rounds={rounds}"]
        environment = {**os.environ, "GOMP_SPINCOUNT": str(spin)}
        subprocess.run([*command, str(model)], check=True, env=environment, timeout=600)


def _measure(path: Path, rounds: int) -> None:
    model = Model(path, gpu_layers=0, on_progress=lambda _ratio: None)
    context = model.open_context(
        ContextOptions(
            cells=256,
            batch_tokens=128,
            sequences_max=4,
            threads_decode=1,
            threads_prefill=1,
            embedding=False,
        )
    )
    for name in ("idle", "busy", "busy apart"):
        found: dict[int, list[float]] = {1: [], 2: []}
        with ExitStack() as stack:
            if name != "idle":
                command = [sys.executable, "-c", _BUSY]
                child = subprocess.Popen(command, start_new_session=name == "busy apart")
                stack.callback(child.wait)
                stack.callback(child.kill)
            for _ in range(rounds):
                for threads, times in found.items():
                    times.append(_burst(context, threads))
        for threads, times in found.items():
            click.echo(f"  {name:10} {threads} threads: {statistics.median(times):8.2f} ms a step")


def _burst(context: Context, threads: int) -> float:
    """Decode for a while; returns the mean of a step in ms."""
    context.set_threads(threads)
    began_s, spent_s, steps, position = time.monotonic(), 0.0, 0, _LAST
    while time.monotonic() - began_s < _BURST_S:
        if position == _LAST:
            context.clear()
            context.want_row(context.put(0, [5] * _FIRST, 0, 0) - 1)
            assert context.decode(_FIRST) is DecodeCode.OK
            position = _FIRST
        at_s = time.monotonic()
        assert context.decode(context.put_singles([7], [0], [position])) is DecodeCode.OK
        spent_s += time.monotonic() - at_s
        position += 1
        steps += 1
    return 1000.0 * spent_s / max(1, steps)


if __name__ == "__main__":
    main()
