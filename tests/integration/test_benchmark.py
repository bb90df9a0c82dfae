"""The measuring harness against our own daemon: both ways count the same tokens and texts."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.load import Load, Report, run
from benchmarks.servers import Running, Settings, appliance
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

STREAMS, REQUESTS, OUTPUT_TOKENS = 3, 2, 12


def measured(server: Running, way: str) -> Report:
    target = server.url if way == "rest" else server.socket
    load = Load(
        way=way,
        target=target,
        streams=STREAMS,
        requests=REQUESTS,
        prompt_tokens=20,
        output_tokens=OUTPUT_TOKENS,
        first_token_id=32,
        last_token_id=126,
        seed=1,
        timeout_s=60.0,
        extra=server.extra,
    )
    return asyncio.run(run(load))


def test_rest_and_grpc_give_the_same_texts_and_every_process_has_its_cpu_time(
    tmp_path: Path,
) -> None:
    model = tmp_path / "model.gguf"
    write_llama(model, SHAPES["tiny"], byte_vocabulary(), Quantisation.F16, seed=6)
    settings = Settings(model=model, threads=1, streams=STREAMS, cells=1024)
    with appliance(settings, tmp_path) as server:
        before = server.cpu_s()
        rest, grpc = (measured(server, way) for way in ("rest", "grpc"))
        after = server.cpu_s()
    for report in (rest, grpc):
        assert report.output_tokens == STREAMS * REQUESTS * OUTPUT_TOKENS
        assert len(report.first_token_ms) == STREAMS * REQUESTS
        assert report.wall_s > 0
    assert rest.texts_digest == grpc.texts_digest
    assert set(after) == {"daemon", "worker", "text"}
    assert after["daemon"] > before["daemon"]
