"""Documents are ranked by what the model's own head says, through both faces."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from gguf import PoolingType

from appliance.api.proto import inference_pb2 as pb
from appliance.api.proto import model_pb2
from appliance.api.proto.model_pb2_grpc import ModelServiceStub
from appliance.config import Engine, Limits, Model
from appliance.domain import RankPrompt
from appliance.errors import ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.text_worker import Vocabulary, prepare
from tests.integration.grpc_calls import expect_failure, inference, on_channel
from tests.integration.rest_calls import Answer, call
from tests.integration.stack import DEMO, Stack, demo_version
from tests.unit.tools import rank as reference
from tools.gguf_writer import write_bert

QUERY = "What is the capital of France?"
DOCUMENTS = [
    "Paris is the capital and largest city of France.",
    "Berlin",
    "The Eiffel tower stands in Paris. " * 4,
    "<s></s> A document may spell what looks like control tokens. </s>",
    "你好，世界",
    *(f"Sentence number {index} about nothing at all." for index in range(20)),
]
TEMPLATE = "<|im_start|>judge\n{query}<|im_end|>{document}<|im_end|>"


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("rerank")
    files = {name: place / f"{name}.gguf" for name in ("ranker", "embedder", "headless", "judge")}
    write_bert(files["ranker"])
    write_bert(files["embedder"], pooling=PoolingType.MEAN, head=False)
    write_bert(files["headless"], head=False)
    write_bert(files["judge"], template=TEMPLATE)
    return files


@pytest.fixture(name="ranks", scope="module")
def _ranks(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Serve a generating model, an embedding model and a reranker side by side."""
    running = Stack(
        tmp_path_factory.mktemp("run"),
        engine=Engine(context_tokens=1024, sequences_max=16, threads=1, batch_tokens=256),
        limits=Limits(rerank_documents=32, queue_prompt_tokens=4096),
        models=(
            Model(
                path=str(DEMO), name="demo", context_tokens=256, cells_total=512, sequences_max=3
            ),
            Model(path=str(files["embedder"]), name="embedder", embedding=True),
            Model(path=str(files["ranker"]), name="ranker"),
        ),
    )
    running.start()
    yield running
    running.stop()


def ask(stack: Stack, **body: object) -> Answer:
    given = {"model": "ranker", "query": QUERY, "documents": DOCUMENTS, **body}
    return call(stack.rest_address, "POST", "/v1/rerank", given)


def grpc_rerank(stack: Stack, request: pb.RerankRequest) -> pb.RerankResponse:
    async def ranks(channel: grpc.aio.Channel) -> pb.RerankResponse:
        return await inference(channel).Rerank(request)

    return on_channel(stack.grpc_target, ranks)


def prepared(path: Path, document: str) -> tuple[int, ...]:
    vocabulary = Vocabulary(path, 8192, 250.0)
    try:
        prompt = RankPrompt(query=QUERY, document=document)
        return prepare(vocabulary, wire.Prepare(ticket=1, key="k", prompt=prompt)).token_ids
    finally:
        vocabulary.close()


def alone(path: Path) -> list[float]:
    """Score each pair on llama.cpp itself, each in a batch of its own."""
    pairs = json.dumps([prepared(path, document) for document in DOCUMENTS])
    done = subprocess.run(
        [sys.executable, reference.__file__, str(path)],
        input=pairs.encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    scores: list[float] = json.loads(done.stdout)
    return scores


def test_scores_in_a_batch_are_those_of_llama_cpp_alone(
    ranks: Stack, files: dict[str, Path]
) -> None:
    answer = ask(ranks, return_documents=True)
    assert answer.status == 200
    expected = alone(files["ranker"])
    results = answer.json["results"]
    assert {one["index"]: one["relevance_score"] for one in results} == pytest.approx(
        dict(enumerate(expected)), abs=1e-3
    )
    assert max(expected) - min(expected) > 0.05, "the model can't tell documents apart"
    scores = [one["relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert [one["document"]["text"] for one in results] == [DOCUMENTS[o["index"]] for o in results]
    assert answer.json["model"] == "ranker@2"
    assert answer.json["usage"]["prompt_tokens"] == sum(
        len(prepared(files["ranker"], document)) for document in DOCUMENTS
    )
    ranks.wait_idle()


def test_grpc_gives_the_same_ranks(ranks: Stack) -> None:
    rest = ask(ranks, top_n=3).json["results"]
    request = pb.RerankRequest(
        model="ranker@2", query=QUERY, documents=DOCUMENTS, top_n=3, request_id="mine"
    )
    answer = grpc_rerank(ranks, request)
    assert answer.request_id == "mine"
    assert [one.index for one in answer.results] == [one["index"] for one in rest]
    assert not any(one.HasField("document") for one in answer.results)
    request.return_documents = True
    request.model = ""
    assert [one.document for one in grpc_rerank(ranks, request).results] == [
        DOCUMENTS[one["index"]] for one in rest
    ]


def test_a_pair_is_built_as_llama_server_builds_it(files: dict[str, Path]) -> None:
    vocabulary = Vocabulary(files["ranker"], 8192, 250.0)
    text = vocabulary.spell(prepared(files["ranker"], "</s>Berlin"))
    assert text == f"<s>{QUERY}</s></s></s>Berlin</s>"
    end = prepared(files["ranker"], "x")[-1]
    assert prepared(files["ranker"], "</s>Berlin").count(end) == 3, "text became a control token"
    vocabulary.close()


def test_the_files_own_template_is_used_and_its_places_are_filled_once(
    files: dict[str, Path],
) -> None:
    document = "a {query} <|im_end|>"
    ids = prepared(files["judge"], document)
    vocabulary = Vocabulary(files["judge"], 8192, 250.0)
    assert vocabulary.spell(ids) == (f"<|im_start|>judge\n{QUERY}<|im_end|>{document}<|im_end|>")
    assert ids.count(ids[-1]) == 2, "text became a control token"
    vocabulary.close()


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_may_be_objects_and_every_path_answers(ranks: Stack, path: str) -> None:
    body = {
        "model": "ranker",
        "query": QUERY,
        "documents": [{"text": "Paris"}, "Paris", {"text": "Berlin"}],
        "user": "me",
    }
    answer = call(ranks.rest_address, "POST", path, body)
    scores = {one["index"]: one["relevance_score"] for one in answer.json["results"]}
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert answer.status == 200


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"documents": []}, "documents", "is empty"),
        ({"documents": ["x"] * 33}, "documents", "has 33 entries; the limit is 32"),
        ({"documents": ["x", ""]}, "documents[1]", "is empty"),
        ({"documents": [{"txt": "x"}]}, "documents[0].txt", "is not a known field"),
        ({"documents": [7]}, "documents[0]", "expected"),
        ({"documents": ["x y " * 50] * 20}, "documents", "tokens in all; the limit is 4096"),
        ({"query": ""}, "query", "is empty"),
        ({"top_n": 0}, "top_n", "from 1"),
        ({"top": 3}, "top", "did you mean 'top_n'?"),
        ({"model": "embedder"}, "model", "makes embeddings and has no head to rank"),
        ({"model": "demo"}, "model", "generates text and has no head to rank"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    ranks: Stack, body: dict[str, object], field: str, reason: str
) -> None:
    answer = ask(ranks, **body)
    assert answer.status == 400
    assert answer.json["error"]["param"] == field
    assert reason in answer.json["error"]["message"]


def test_a_pair_longer_than_the_model_takes_is_refused_with_the_limit(ranks: Stack) -> None:
    answer = ask(ranks, documents=["x y " * 200])
    assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
    assert "256" in answer.json["error"]["message"]


def test_grpc_refuses_with_the_same_reasons(ranks: Stack) -> None:
    for request, reason in (
        (pb.RerankRequest(model="embedder", query="q", documents=["d"]), "INVALID_REQUEST"),
        (pb.RerankRequest(model="ranker", query="q", documents=["d"], top_n=-1), "INVALID_REQUEST"),
        (pb.RerankRequest(model="none", query="q", documents=["d"]), "MODEL_NOT_SERVED"),
    ):

        async def ranked(
            channel: grpc.aio.Channel, request: pb.RerankRequest = request
        ) -> pb.RerankResponse:
            return await inference(channel).Rerank(request)

        assert expect_failure(ranks.grpc_target, ranked).reason == reason


def test_a_reranker_embeds_and_chats_for_nobody(ranks: Stack) -> None:
    for path, body in (
        ("/v1/embeddings", {"model": "ranker", "input": "x"}),
        ("/v1/completions", {"model": "ranker", "prompt": "x"}),
    ):
        answer = call(ranks.rest_address, "POST", path, body)
        assert (answer.status, answer.json["error"]["param"]) == (400, "model")
        assert "ranks documents" in answer.json["error"]["message"]


def test_every_listing_shows_what_a_model_is_for_and_its_own_context(ranks: Stack) -> None:
    listed = call(ranks.rest_address, "GET", "/v1/models").json["data"]
    kinds = {"demo": "generate", "embedder": "embed", "ranker": "rerank"}
    assert {one["id"]: one["kind"] for one in listed} == kinds

    async def over_grpc(channel: grpc.aio.Channel) -> model_pb2.ListResponse:
        return await ModelServiceStub(channel).List(model_pb2.ListRequest())

    models = on_channel(ranks.grpc_target, over_grpc).models
    names = {one.name: model_pb2.ModelKind.Name(one.kind)[11:].lower() for one in models}
    assert names == kinds
    contexts = {one.name: one.facts.context_tokens for one in models}
    assert contexts == {"demo": 256, "embedder": 256, "ranker": 256}
    demo = next(one for one in models if one.name == "demo")
    assert (demo.facts.sequences_max, demo.kv_cells_total) == (3, 512)
    prompt = {"model": "demo", "prompt": "word " * 300}
    answer = call(ranks.rest_address, "POST", "/v1/completions", prompt)
    assert answer.json["error"]["code"] == "context_length_exceeded"
    assert "256" in answer.json["error"]["message"]


def test_status_shows_kinds_and_contexts(ranks: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "status", "--address", ranks.grpc_target],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    head, *rows = (line.split() for line in done.stdout.splitlines())
    assert [(row[0], row[head.index("KIND")]) for row in rows] == [
        ("demo@2", "generate"),
        ("embedder@2", "embed"),
        ("ranker@2", "rerank"),
    ]
    assert all("256" in row for row in rows)


def test_a_file_that_says_it_ranks_and_has_no_head_is_not_served(
    ranks: Stack, files: dict[str, Path]
) -> None:
    path = files["headless"]
    version = demo_version("headless", 99)
    with pytest.raises(ModelUnloadable, match="has no classification head"):
        ranks.run(ranks.router.serve(version, path, Model(path=str(path))))


def test_a_context_beyond_the_learned_positions_is_refused(
    ranks: Stack, files: dict[str, Path]
) -> None:
    path = files["ranker"]
    settings = Model(path=str(path), context_tokens=257)
    with pytest.raises(ModelUnloadable, match="257 and the model has learned 256 positions"):
        ranks.run(ranks.router.serve(demo_version("long", 98), path, settings))
