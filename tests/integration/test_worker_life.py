"""A worker process is loaded, refuses to load, waits, beats, embeds and ends as it should."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.domain import MemoryKind, ModelKind, StopOptions
from appliance.runtime import wire
from tests.integration.worker_process import Worker, start, tiny
from tools.gguf_writer import SHAPES, byte_vocabulary

__all__ = ["start", "tiny"]  # fixtures

LONG = StopOptions(max_tokens=40, ignore_eos=True)

# --- what is loaded -------------------------------------------------------------------------------


def test_facts_are_what_the_file_says(tiny: Path, start: Callable[..., Worker]) -> None:
    worker = start(tiny)
    ready = worker.ready()
    assert isinstance(ready, wire.Ready)
    facts = ready.facts
    assert (facts.architecture, facts.pooling) == ("llama", "none")
    assert facts.vocabulary_size == byte_vocabulary().size
    assert (facts.context_tokens, facts.sequences_max) == (512, 16)
    assert facts.memory_kind is MemoryKind.CUTTABLE
    shape = SHAPES["tiny"]
    cell_bytes = shape.layers * shape.kv_heads * shape.head_width * 2 * 2
    assert cell_bytes <= facts.kv_bytes_per_token <= cell_bytes + 64
    assert ready.step_ms_worst > 0
    assert worker.loading == sorted(worker.loading)
    assert worker.loading[-1] == pytest.approx(1.0, abs=0.02)
    assert worker.close()[0] == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the file does not exist"),
        (b"", "this is not a GGUF file"),
        (b"hello, I am a text file", "this is not a GGUF file"),
        (b"GGUF\x03\x00\x00\x00", "cut off within its header"),
        (b"GGUF\x09\x00\x00\x00" + bytes(16), "its GGUF version is 9"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_name_and_reason(
    tmp_path: Path, content: bytes | None, reason: str, start: Callable[..., Worker]
) -> None:
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    refuse(start, path, reason)


def test_a_truncated_model_is_refused(
    tiny: Path, tmp_path: Path, start: Callable[..., Worker]
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[:-1000])
    refuse(start, path, "the file is cut off: 1000 bytes of its tensors are missing")


def test_a_model_too_big_for_the_memory_is_refused(
    tiny: Path, start: Callable[..., Worker]
) -> None:
    refuse(start, tiny, "MiB of memory", cells_total=2**31 - 256)


def test_a_generating_model_is_not_served_for_embeddings(
    tiny: Path, start: Callable[..., Worker]
) -> None:
    refuse(start, tiny, "it is no embedding model", kind=ModelKind.EMBED)


def refuse(start: Callable[..., Worker], path: Path, reason: str, **options: object) -> None:
    worker = start(path, **options)
    answer = worker.ready()
    assert isinstance(answer, wire.LoadFailed)
    assert answer.path == str(path)
    assert reason in answer.reason
    assert "\n" not in answer.reason
    assert worker.process.wait(10) == 78
    assert worker.close() == (78, b"")


# --- the loop -------------------------------------------------------------------------------------


def test_a_worker_whose_steps_are_not_acknowledged_waits(
    tiny: Path, start: Callable[..., Worker]
) -> None:
    worker = start(tiny, ack_window_steps=3)
    worker.ready()
    worker.acknowledges = False
    worker.submit((5, 6), stop=LONG)
    numbers = [worker.step().step for _ in range(3)]
    assert numbers == [1, 2, 3]
    worker.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        worker.receive()
    worker.socket.settimeout(30)
    worker.send(wire.Ack(step=2))
    assert [worker.step().step for _ in range(2)] == [4, 5]
    assert worker.close()[0] == 0


def test_an_idle_worker_beats_once_a_second(tiny: Path, start: Callable[..., Worker]) -> None:
    worker = start(tiny)
    worker.ready()
    worker.step()
    began_s = time.monotonic()
    steps = [worker.step() for _ in range(2)]
    assert 1.5 < time.monotonic() - began_s < 6.0
    assert [step.step for step in steps] == [2, 3]
    assert worker.close()[0] == 0


def test_a_worker_ends_within_a_second_of_its_socket_even_while_it_decodes(
    tiny: Path, start: Callable[..., Worker]
) -> None:
    worker = start(tiny, cells_total=8192, context_tokens=8192, batch_tokens=2048)
    worker.ready()
    for _ in range(4):
        worker.submit((5,) * 2000, stop=LONG)
    worker.step()
    worker.socket.close()
    began_s = time.monotonic()
    assert worker.process.wait(10) == 0
    assert time.monotonic() - began_s < 1.0


# --- embeddings -----------------------------------------------------------------------------------


def test_vectors_of_a_batch_are_those_of_each_input_alone(
    tiny: Path, tmp_path: Path, start: Callable[..., Worker]
) -> None:
    path = tmp_path / "pooled.gguf"
    path.write_bytes(with_mean_pooling(tiny.read_bytes()))
    worker = start(path, kind=ModelKind.EMBED, batch_tokens=64, context_tokens=128)
    ready = worker.ready()
    assert isinstance(ready, wire.Ready)
    assert ready.facts.pooling == "mean"
    size = ready.facts.embedding_size
    inputs = [tuple(range(3, 3 + length)) for length in (1, 5, 30, 40, 100)]
    together = worker.embed(inputs)
    raw = worker.embed(inputs[2:3], normalize=False)
    alone = [worker.embed([token_ids]) for token_ids in inputs]
    refused = [worker.embed([()]), worker.embed([(5,) * 129]), worker.embed([(10**6,)])]
    while len(worker.embedded) < 2 + len(alone) + len(refused):
        worker.step()
    vectors = vectors_of(worker, together, size)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    for vector, ticket in zip(vectors, alone, strict=True):
        assert vector @ vectors_of(worker, ticket, size)[0] > 0.999
    length = float(np.linalg.norm(vectors_of(worker, raw, size)[0]))
    assert length != pytest.approx(1.0, abs=1e-3)
    codes = [worker.embedded[ticket] for ticket in refused]
    assert [code.code for code in codes if isinstance(code, wire.Failure)] == [
        "INVALID_REQUEST",
        "CONTEXT_TOO_LONG",
        "INVALID_REQUEST",
    ]
    worker.submit((5, 6))
    while len(worker.embedded) < 3 + len(alone) + len(refused):
        worker.step()
    assert worker.close()[0] == 0


def vectors_of(worker: Worker, ticket: int, size: int) -> np.ndarray:
    answer = worker.embedded[ticket]
    assert isinstance(answer, wire.Embedded), answer
    assert answer.size == size
    return np.array([np.frombuffer(vector, dtype="<f4") for vector in answer.vectors])


def with_mean_pooling(content: bytes) -> bytes:
    """Add llama.pooling_type = mean to a GGUF, and a filler that keeps the data aligned."""
    key, pad = b"llama.pooling_type", b"x.pad"
    entries = len(key).to_bytes(8, "little") + key + (4).to_bytes(4, "little")
    entries += (1).to_bytes(4, "little")
    entries += len(pad).to_bytes(8, "little") + pad + (8).to_bytes(4, "little")
    filler = -(len(entries) + 8) % 32
    entries += filler.to_bytes(8, "little") + b" " * filler
    count = int.from_bytes(content[16:24], "little") + 2
    return content[:16] + count.to_bytes(8, "little") + entries + content[24:]
