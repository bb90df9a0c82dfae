"""Measure ours beside llama-server: `python -m benchmarks.first`.

What this room does: builds the peer, writes the models, runs the loads in rounds, prints ratios
and keeps every figure as JSON.
What it knows: which loads make up this measurement.
What it never does: judge the result.

Both servers stay up and idle while the other is loaded; within a round they take turns on each
load, first one then the other, in alternating order, with the same prompts, which differ between
all requests and rounds. llama-server has as many slots as there are streams and its prompt cache
is off.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from benchmarks.figures import Figures, cpu_table, figures_of, table
from benchmarks.load import Load, Report
from benchmarks.peer import Peer, build_peer
from benchmarks.servers import Running, Settings, appliance, llama_server
from tools.embedding_model import cache_dir
from tools.gguf_writer import EDITION, SHAPES, Quantisation, read_vocabulary, write_llama

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 48
WARM_TOKENS = 8  # of each stream before the first round
CELLS = 8192
LOAD_S = 600.0
# Of the 32 000 tokens of the vocabulary: none of the special and byte tokens, which come first.
TOKEN_IDS = (300, 31_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape with the numbers of streams to measure, and how many requests each stream sends."""

    shape: str
    quantisation: Quantisation
    requests: dict[int, int]  # streams → requests of each stream
    ways: tuple[str, ...] = ("rest",)


CASES = (
    Case(
        shape="15M",
        quantisation=Quantisation.Q8_0,
        requests={1: 12, 8: 4, 32: 2},
        ways=("rest", "grpc"),
    ),
    Case(shape="160M", quantisation=Quantisation.Q4_K_M, requests={1: 4, 4: 2, 8: 1}),
    Case(shape="1B", quantisation=Quantisation.Q4_K_M, requests={1: 1, 4: 1, 8: 1}),
)
QUICK = (
    Case(
        shape="15M",
        quantisation=Quantisation.Q8_0,
        requests={1: 4, 8: 2, 32: 1},
        ways=("rest", "grpc"),
    ),
    Case(shape="160M", quantisation=Quantisation.Q4_K_M, requests={1: 1, 4: 1}),
)


class Results(msgspec.Struct, kw_only=True):
    """The file that is kept."""

    command: str
    machine: dict[str, str]
    threads: int
    shared: bool  # llama-server's streams share one KV cache, as ours do
    prompt_tokens: int
    output_tokens: int
    engine: list[dict[str, float | str]]  # llama-batched-bench: no server, no sampling
    figures: list[Figures]


@click.command()
@click.option("--quick", is_flag=True, help="One round of small loads: does everything work?")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--shape", "shapes", multiple=True, help="Only this shape; may be repeated.")
@click.option("--threads", type=click.IntRange(min=1), default=len(os.sched_getaffinity(0)))
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
    peer = build_peer(cache, click.echo)
    results = Results(
        command=" ".join(["python -m benchmarks.first", *sys.argv[1:]]),
        machine=_machine(),
        threads=threads,
        shared=not partitioned,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        engine=[],
        figures=[],
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        for case in QUICK if quick else CASES:
            if not shapes or case.shape in shapes:
                model = _model(cache, peer, case)
                _measure(case, model, peer, 1 if quick else rounds, results, Path(scratch))
    text = _text(results)
    click.echo(text)
    if out or not quick:
        _keep(out or Path("benchmarks/results"), results, text)


def _measure(
    case: Case, model: Path, peer: Peer, rounds: int, results: Results, scratch: Path
) -> None:
    for streams, requests in case.requests.items():
        settings = Settings(
            model=model,
            threads=results.threads,
            streams=streams,
            cells=CELLS,
            shared=results.shared,
        )
        results.engine.append(_engine(peer, case.shape, settings))
        with ExitStack() as stack:
            servers = [
                stack.enter_context(appliance(settings, scratch)),
                stack.enter_context(llama_server(peer, settings, scratch)),
            ]
            turns = [(server, way) for server in servers for way in case.ways]
            turns = [(server, way) for server, way in turns if way == "rest" or server.socket]
            for server, way in turns:
                _load(server, way, streams, 1, WARM_TOKENS, seed=0)
            for number in range(rounds):
                for server, way in turns if number % 2 == 0 else reversed(turns):
                    report, cpu_s = _load(
                        server, way, streams, requests, OUTPUT_TOKENS, seed=1 + number
                    )
                    results.figures.append(
                        figures_of(
                            report,
                            cpu_s,
                            shape=case.shape,
                            streams=streams,
                            number=number,
                            server=server.name,
                            way=way,
                        )
                    )
                    click.echo(_line(results.figures[-1]))


def _load(
    server: Running, way: str, streams: int, requests: int, output_tokens: int, seed: int
) -> tuple[Report, dict[str, float]]:
    """Run the client's process once; return its report and the server's CPU seconds meanwhile."""
    load = Load(
        way=way,
        target=server.url if way == "rest" else server.socket,
        streams=streams,
        requests=requests,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=output_tokens,
        first_token_id=TOKEN_IDS[0],
        last_token_id=TOKEN_IDS[1],
        seed=seed,
        timeout_s=LOAD_S,
        extra=server.extra,
    )
    before = server.cpu_s()
    client = [sys.executable, "-m", "benchmarks.load", msgspec.json.encode(load).decode()]
    done = subprocess.run(client, capture_output=True, check=False, timeout=LOAD_S + 60)
    if done.returncode:
        raise click.ClickException(f"{server.name} over {way}: {done.stderr.decode()[-2000:]}")
    used = {kind: after - before.get(kind, 0.0) for kind, after in server.cpu_s().items()}
    report = msgspec.json.decode(done.stdout, type=Report)
    wanted = streams * requests * output_tokens
    if report.output_tokens != wanted:
        raise click.ClickException(
            f"{server.name} gave {report.output_tokens} tokens, not {wanted}"
        )
    return report, used


def _engine(peer: Peer, shape: str, settings: Settings) -> dict[str, float | str]:
    """Measure what llama.cpp does with this load in one static batch: the ceiling of both."""
    threads, streams = str(settings.threads), str(settings.streams)
    command = [
        *(str(peer.batched_bench), "-m", str(settings.model), "-c", str(settings.cells)),
        *("-t", threads, "-tb", threads, "-npl", streams),
        "--kv-unified" if settings.shared else "--no-kv-unified",
        *("-npp", str(PROMPT_TOKENS), "-ntg", str(OUTPUT_TOKENS), "--output-format", "jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=LOAD_S)
    line = next(line for line in done.stdout.splitlines() if line.startswith(b"{"))
    found = msgspec.json.decode(line, type=dict[str, float])
    return {
        "shape": shape,
        "streams": settings.streams,
        "prompt_tokens_per_s": found["speed_pp"],
        "decode_tokens_per_s": found["speed_tg"],
        "tokens_per_s": settings.streams * OUTPUT_TOKENS / found["t"],
    }


def _model(cache: Path, peer: Peer, case: Case) -> Path:
    path = cache / f"random-{case.shape}-{case.quantisation}-{EDITION}.gguf"
    if not path.exists():
        vocabulary = read_vocabulary(peer.vocabularies / "ggml-vocab-llama-spm.gguf")
        write_llama(path, SHAPES[case.shape], vocabulary, case.quantisation)
    return path


def _machine() -> dict[str, str]:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": f"{os.getloadavg()[0]:.2f}",
    }


def _line(one: Figures) -> str:
    return (
        f"{one.shape:>5} x{one.streams:<2} round {one.round} {one.server:>12} {one.way}: "
        f"{one.tokens_per_s:8.1f} tokens/s, first {one.first_token_ms:7.1f} ms, "
        f"gap {one.gap_ms:6.2f} ms, CPU/token {one.server_cpu_ms:7.3f} ms, "
        f"texts {one.texts_digest[:6]}"
    )


def _text(results: Results) -> str:
    memory = "one KV cache for all streams" if results.shared else "a part of the cells each"
    head = (
        f"`{results.command}`: {results.machine['cpu']}, {results.threads} threads, "
        f"{results.prompt_tokens} tokens in, {results.output_tokens} out; llama-server's streams "
        f"have {memory}. Medians over the rounds; ratios are ours / llama-server (least-most): of "
        "tokens/s more is better, of all else less."
    )
    tables = (table(results.figures), cpu_table(results.figures), _engine_table(results.engine))
    return "\n\n".join((head, *tables))


def _keep(folder: Path, results: Results, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = msgspec.json.format(msgspec.json.encode(results))
    (folder / "first.json").write_bytes(kept + b"\n")
    (folder / "first.md").write_text(text, encoding="utf-8")


def _engine_table(engine: list[dict[str, float | str]]) -> str:
    lines = [
        "llama-batched-bench, one static batch, no server and no sampling:\n",
        "| shape | streams | prompt tokens/s | decode tokens/s | output tokens/s in all |",
        "|---|---|---|---|---|",
    ]
    for one in engine:
        speeds = [f"{one[key]:.4g}" for key in one if key.endswith("_per_s")]
        lines.append(f"| {one['shape']} | {one['streams']} | {' | '.join(speeds)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
