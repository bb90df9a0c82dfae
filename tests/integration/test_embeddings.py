"""A real embedding model through the whole path: file, worker, both faces; as its author meant it.

The reference vectors are the package's own output (see tools/embedding_model/reference.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from openai import BadRequestError, OpenAI

from appliance.api.proto import inference_pb2 as pb
from appliance.api.proto.inference_pb2_grpc import InferenceServiceStub
from tools.embedding_model import cached_gguf, convert
from tools.embedding_model.convert import EDITION

REFERENCE = json.loads(
    Path(__file__).with_name("all_minilm_reference.json").read_text(encoding="utf-8")
)
SENTENCES: list[str] = REFERENCE["sentences"]
READY_S = 120.0
MODEL = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class Served:
    """A daemon that serves the embedding model alone."""

    rest: str
    grpc: str

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.rest}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("e")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    command = [
        *(sys.executable, "-m", "appliance", "serve"),
        *("--embedding-model", str(cached_gguf(convert, EDITION))),
        *("--state-dir", str(place / "state"), "--runtime-dir", str(place / "run")),
        *("--rest", f"127.0.0.1:{port}", "--set", "engine.threads=1"),
    ]
    log = place / "log"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
        log.open("wb") as output,
    ):
        notices.bind(str(place / "notify"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
        with subprocess.Popen(command, stdout=output, stderr=output, env=environment) as child:
            try:
                assert is_ready(child, notices), log.read_text(encoding="utf-8")[-3000:]
                yield Served(f"http://127.0.0.1:{port}", f"unix:{place / 'run' / 'grpc.sock'}")
            finally:
                child.send_signal(signal.SIGTERM)
                code = child.wait(30)
        assert code == os.EX_OK, log.read_text(encoding="utf-8")[-3000:]


def is_ready(child: subprocess.Popen[bytes], notices: socket.socket) -> bool:
    """Wait until the daemon tells systemd that it serves; False if it ends or is late."""
    notices.settimeout(1.0)
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(TimeoutError):
            if b"STATUS=serving" in notices.recv(4096):
                return True
    return False


def reference() -> NDArray[np.float32]:
    rows = [np.frombuffer(base64.b64decode(text), "<f4") for text in REFERENCE["vectors"]]
    return np.array(rows)


def assert_same_directions(vectors: list[list[float]]) -> None:
    found = np.array(vectors)
    assert found.shape == reference().shape
    lengths = np.linalg.norm(found, axis=1)
    cosines = np.sum(found * reference(), axis=1) / lengths
    assert cosines.min() >= 0.999, SENTENCES[int(cosines.argmin())]


async def embed_async(served: Served, *requests: pb.EmbedRequest) -> list[pb.EmbedResponse]:
    """Send all requests at once over one channel."""
    async with grpc.aio.insecure_channel(served.grpc) as channel:
        stub = InferenceServiceStub(channel)

        async def one(request: pb.EmbedRequest) -> pb.EmbedResponse:
            return await stub.Embed(request, timeout=60)

        return await asyncio.gather(*(one(request) for request in requests))


def embed(served: Served, *inputs: pb.EmbedInput, raw: bool = False) -> list[list[float]]:
    [answer] = asyncio.run(embed_async(served, pb.EmbedRequest(inputs=inputs, raw=raw)))
    return [list(one.values) for one in answer.embeddings]


def tokenize(served: Served, text: str) -> list[int]:
    async def ask() -> list[int]:
        async with grpc.aio.insecure_channel(served.grpc) as channel:
            asked = pb.TokenizeRequest(text=text, model=MODEL, add_bos=True)
            return list((await InferenceServiceStub(channel).Tokenize(asked, timeout=60)).token_ids)

    return asyncio.run(ask())


def test_rest_gives_the_vectors_of_the_package_as_floats_and_as_base64(served: Served) -> None:
    client = served.openai()
    floats = client.embeddings.create(model=MODEL, input=SENTENCES, encoding_format="float")
    assert [one.index for one in floats.data] == list(range(len(SENTENCES)))
    assert_same_directions([one.embedding for one in floats.data])
    # The client asks for base64 where nothing is said, and decodes it itself.
    assert_same_directions(
        [one.embedding for one in client.embeddings.create(model=MODEL, input=SENTENCES).data]
    )
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 2 * len(SENTENCES)


def test_grpc_gives_the_same_vectors_normalised_by_default(served: Served) -> None:
    vectors = embed(served, *(pb.EmbedInput(text=text) for text in SENTENCES))
    assert_same_directions(vectors)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(SENTENCES)), abs=1e-5)
    rest = served.openai().embeddings.create(model=MODEL, input=SENTENCES).data
    assert np.array([one.embedding for one in rest]) == pytest.approx(np.array(vectors), abs=1e-3)


def test_raw_vectors_keep_their_length_and_their_direction(served: Served) -> None:
    vectors = embed(served, *(pb.EmbedInput(text=text) for text in SENTENCES), raw=True)
    assert_same_directions(vectors)
    assert abs(np.linalg.norm(vectors, axis=1) - 1).min() > 0.01


def test_a_sentence_has_the_same_vector_alone_in_company_and_as_tokens(served: Served) -> None:
    [alone] = embed(served, pb.EmbedInput(text=SENTENCES[4]))
    company = embed(served, *(pb.EmbedInput(text=text) for text in SENTENCES))[4]
    ids = tokenize(served, SENTENCES[4])
    [tokens] = embed(served, pb.EmbedInput(token_ids=pb.TokenIds(ids=ids)))
    for other in (company, tokens):
        assert float(np.dot(alone, other)) >= 0.9999


def test_many_clients_at_once_get_their_own_vectors(served: Served) -> None:
    requests = [pb.EmbedRequest(inputs=[pb.EmbedInput(text=text)]) for text in SENTENCES]
    answers = asyncio.run(embed_async(served, *requests))
    assert_same_directions([list(one.embeddings[0].values) for one in answers])


def test_a_text_longer_than_the_model_takes_is_refused_with_both_numbers(served: Served) -> None:
    with pytest.raises(BadRequestError, match="512"):
        served.openai().embeddings.create(model=MODEL, input="word " * 600)
    assert len(embed(served, pb.EmbedInput(text="still here"))) == 1
