"""The Open Inference Protocol answers as the other faces do, and refuses by name what it can't."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import grpc.aio
import numpy as np
import pytest
from gguf import PoolingType
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from appliance.api.oip_convert import PROMPTS_MAX
from appliance.api.proto import inference_pb2 as ours
from appliance.api.proto import open_inference_pb2 as pb
from appliance.api.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.config import Engine, Model
from tests.integration.grpc_calls import Failure, expect_failure, inference, on_channel
from tests.integration.rest_calls import call
from tests.integration.stack import DEMO, Stack
from tools.gguf_writer import write_bert

TEXTS = ("The capital of France is", "Once upon a time, 你好", "x")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 20}
SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(name="served", scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    place = tmp_path_factory.mktemp("oip")
    write_bert(place / "ranker.gguf")
    write_bert(place / "embedder.gguf", pooling=PoolingType.MEAN, head=False)
    running = Stack(
        place,
        engine=Engine(context_tokens=256, sequences_max=8, threads=1, batch_tokens=128),
        models=(
            Model(path=str(DEMO), name="demo"),
            Model(path=str(place / "embedder.gguf"), name="embedder", embedding=True),
            Model(path=str(place / "ranker.gguf"), name="ranker"),
        ),
    )
    running.start()
    yield running
    running.stop()


def framed(*texts: str | bytes) -> bytes:
    parts = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def unframed(raw: bytes) -> list[str]:
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return found


def parameter(value: float | str) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(string_param=value)


def asked(
    *texts: str | bytes, model: str = "demo", name: str = "text_input", **parameters: float | str
) -> pb.ModelInferRequest:
    """Make a request with one raw tensor."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[framed(*texts)])
    request.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
    for key, value in parameters.items():
        request.parameters[key].CopyFrom(parameter(value))
    return request


def infer(served: Stack, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    async def ask(channel: grpc.aio.Channel) -> pb.ModelInferResponse:
        return await GRPCInferenceServiceStub(channel).ModelInfer(request)

    return on_channel(served.grpc_target, ask)


def refused(served: Stack, request: pb.ModelInferRequest) -> Failure:
    async def ask(channel: grpc.aio.Channel) -> pb.ModelInferResponse:
        return await GRPCInferenceServiceStub(channel).ModelInfer(request)

    return expect_failure(served.grpc_target, ask)


def numbers(response: pb.ModelInferResponse) -> NDArray[np.float32]:
    (output,) = response.outputs
    assert output.datatype == "FP32"
    (raw,) = response.raw_output_contents
    return np.frombuffer(raw, "<f4").reshape(tuple(output.shape))


def completions(served: Stack, **options: object) -> list[str]:
    body = {"model": "demo", "prompt": list(TEXTS), **options}
    answer = call(served.rest_address, "POST", "/v1/completions", body).json
    return [choice["text"] for choice in answer["choices"]]


def test_texts_come_back_in_order_shape_and_framing(served: Stack) -> None:
    request = asked(*TEXTS, **GREEDY)
    request.id = "mine"
    request.inputs[0].shape[:] = [3, 1]
    response = infer(served, request)
    assert (response.model_name, response.model_version, response.id) == ("demo", "2", "mine")
    assert [output.name for output in response.outputs] == ["text_output", "finish_reason"]
    assert all(tuple(output.shape) == (3, 1) for output in response.outputs)
    assert not any(output.HasField("contents") for output in response.outputs)
    texts, reasons = map(unframed, response.raw_output_contents)
    assert texts == completions(served, **GREEDY)
    assert set(reasons) <= {"stop", "length"}
    assert 0 < response.parameters["completion_tokens"].int64_param <= 60
    served.wait_idle()


def test_texts_may_stand_in_contents_and_numbers_in_text(served: Stack) -> None:
    request = pb.ModelInferRequest(model_name="demo", model_version="2")
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(TEXTS[0].encode())
    request.parameters["temperature"].string_param = "0"
    request.parameters["max_tokens"].string_param = "20"
    request.outputs.add(name="text_output")
    response = infer(served, request)
    (raw,) = response.raw_output_contents
    assert unframed(raw) == completions(served, **GREEDY)[:1]


def test_every_option_means_what_it_means_elsewhere(served: Stack) -> None:
    options: dict[str, Any] = {
        "temperature": 1.1,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.02,
        "typical_p": 0.98,
        "repeat_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "penalty_last_n": 32,
        "seed": 7,
        "max_tokens": 12,
        "ignore_eos": True,
    }
    for text in TEXTS:  # alone, and its prompt cached: then both are computed alike, to the bit
        request = asked(text, **options, stop='["zzz", "qqq"]', priority="batch")
        infer(served, request)
        assert unframed(infer(served, request).raw_output_contents[0]) == completions(
            served, **options, prompt=text, stop=["zzz", "qqq"], priority="batch"
        )
    whole = unframed(infer(served, asked(TEXTS[0], **GREEDY)).raw_output_contents[0])[0]
    stop = whole[3:6]
    cut = unframed(infer(served, asked(TEXTS[0], **GREEDY, stop=stop)).raw_output_contents[0])[0]
    assert cut == whole[: whole.index(stop)]


def test_an_embedding_model_gives_vectors(served: Stack) -> None:
    found = numbers(infer(served, asked(*TEXTS, model="embedder")))
    body = {"model": "embedder", "input": list(TEXTS)}
    answer = call(served.rest_address, "POST", "/v1/embeddings", body).json
    expected = np.array([one["embedding"] for one in answer["data"]])
    assert found == pytest.approx(expected, abs=1e-3)
    raw = numbers(infer(served, asked(*TEXTS, model="embedder", normalize=False)))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert np.linalg.norm(raw, axis=1) != pytest.approx(np.ones(3), abs=1e-3)


def test_a_reranker_gives_scores_in_the_order_of_the_documents(served: Stack) -> None:
    request = asked(*TEXTS, model="ranker", name="documents")
    request.inputs.add(name="query", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(framed("where?"))
    body = {"model": "ranker", "query": "where?", "documents": list(TEXTS)}
    ranks = call(served.rest_address, "POST", "/v1/rerank", body).json["results"]
    expected = {one["index"]: one["relevance_score"] for one in ranks}
    assert dict(enumerate(numbers(infer(served, request)))) == pytest.approx(expected, abs=1e-3)


def test_who_is_live_and_ready_and_what_a_model_takes(served: Stack) -> None:
    async def look(channel: grpc.aio.Channel) -> dict[str, object]:
        stub = GRPCInferenceServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        health_status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        metadata = [
            await stub.ModelMetadata(pb.ModelMetadataRequest(name=name))
            for name in ("demo", "embedder", "ranker")
        ]
        ready = [
            await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))
            for name, version in (("demo", ""), ("demo", "2"), ("demo", "9"), ("none", ""))
        ]
        server = await stub.ServerMetadata(pb.ServerMetadataRequest())
        return {
            "live": (await stub.ServerLive(pb.ServerLiveRequest())).live,
            "ready": (await stub.ServerReady(pb.ServerReadyRequest())).ready,
            "models": [one.ready for one in ready],
            "server": server.name,
            "health": health_status.status == health_pb2.HealthCheckResponse.SERVING,
            "kinds": [one.properties["kind"] for one in metadata],
            "context": metadata[0].properties["context_tokens"],
            "inputs": [[(t.name, t.datatype) for t in one.inputs] for one in metadata],
            "outputs": [[(t.name, list(t.shape)) for t in one.outputs] for one in metadata],
        }

    assert on_channel(served.grpc_target, look) == {
        "live": True,
        "ready": True,
        "models": [True, True, False, False],
        "server": "appliance",
        "health": True,
        "kinds": ["generate", "embed", "rerank"],
        "context": "256",
        "inputs": [
            [("text_input", "BYTES")],
            [("text_input", "BYTES")],
            [("query", "BYTES"), ("documents", "BYTES")],
        ],
        "outputs": [
            [("text_output", [-1]), ("finish_reason", [-1])],
            [("embedding", [-1, 64])],
            [("scores", [-1])],
        ],
    }


Wrong: TypeAlias = tuple[str, pb.ModelInferRequest, str, str]


def _wrong_tensors() -> Iterator[Wrong]:
    """Yield a name, a request, the field its refusal names, and a part of the reason."""
    yield "no model", asked("x", model="none"), "", "is not served here"
    yield "no tensor", pb.ModelInferRequest(model_name="demo"), "inputs", "'text_input' is missing"
    yield "another tensor", asked("x", name="prompt"), "inputs", "this model takes text_input"
    request = asked("x")
    request.inputs[0].datatype = "INT32"
    yield "another type", request, "text_input", "BYTES is wanted"
    request = asked("x", "y")
    request.inputs[0].shape[:] = [3]
    yield "another shape", request, "text_input", "has 2 elements and the shape [3]"
    request = asked("x")
    request.inputs[0].shape[:] = [-1, -1]
    yield "a negative shape", request, "text_input", "the shape [-1, -1]"
    request = asked("x")
    request.raw_input_contents[0] = framed("x")[:-1]
    yield "a cut element", request, "text_input", "in the midst of an element"
    request = asked("x")
    request.raw_input_contents[0] = b"\x01\x00"
    yield "a cut length", request, "text_input", "in the midst of an element"
    yield "no text", asked(b"\xff"), "text_input", "not valid UTF-8"
    request = asked("x")
    request.raw_input_contents.append(b"")
    yield "one too many", request, "raw_input_contents", "2 entries for 1 inputs"
    request = asked("x")
    request.inputs[0].contents.bytes_contents.append(b"x")
    yield "both forms", request, "text_input", "beside those in raw_input_contents"
    request = asked("x")
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    yield "shared memory", request, "text_input", "no parameter 'shared_memory_region'"
    request = asked("x")
    request.outputs.add(name="text")
    yield "another output", request, "outputs", "gives text_output and finish_reason"
    request = asked("x")
    request.outputs.add(name="text_output").parameters["classification"].int64_param = 3
    yield "classes", request, "outputs.text_output", "no parameter 'classification'"
    many = [f"{index}" for index in range(PROMPTS_MAX + 1)]
    yield "many prompts", asked(*many), "text_input", f"from 1 to {PROMPTS_MAX}"
    yield "an empty prompt", asked(""), "prompt", "is empty"
    request = asked("x", model="ranker", name="documents")
    request.inputs.add(name="query", datatype="BYTES", shape=[2])
    request.raw_input_contents.append(framed("a", "b"))
    yield "two queries", request, "query", "must have one element"


def _wrong_options() -> Iterator[Wrong]:
    """Yield the same of parameters."""
    yield "no such option", asked("x", max_token=3), "parameters", "did you mean 'max_tokens'?"
    yield "a stream", asked("x", stream=True), "stream", "GenerateStream"
    yield "a range", asked("x", temperature=11.0), "temperature", "from 0 to 10, not 11.0"
    yield "not a number", asked("x", temperature="warm"), "temperature", "must be a number"
    yield "a bool as number", asked("x", temperature=True), "temperature", "must be a number"
    yield "not whole", asked("x", max_tokens=1.5), "max_tokens", "must be a whole number"
    yield "not a flag", asked("x", ignore_eos=1), "ignore_eos", "must be true or false"
    yield "not a text", asked("x", stop=1), "stop", "must be a text"
    yield "not a list", asked("x", stop="[1]"), "stop", "not a JSON list of texts"
    yield "Triton's numbers", asked("x", priority=1), "priority", "interactive, normal, batch"
    yield "too long", asked("x", timeout=10**12), "timeout", "3600"
    yield "an id", asked("x"), "request_id", "letters"
    yield "a bad edition", asked("x", model="demo@3"), "", "is not served here"
    yield "for another kind", asked("x", model="embedder", seed=1), "parameters", "'seed' is not"


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [pytest.param(*case[1:], id=case[0]) for case in (*_wrong_tensors(), *_wrong_options())],
)
def test_what_is_wrong_is_refused_by_name(
    served: Stack, request_: pb.ModelInferRequest, field: str, reason: str
) -> None:
    if field == "request_id":
        request_.id = "no spaces please"
    failure = refused(served, request_)
    assert reason in failure.message
    if field:
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        )
        assert failure.violations[0][0] == field
    else:
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_SERVED")


def test_a_prompt_that_is_too_long_has_the_same_details_as_elsewhere(served: Stack) -> None:
    async def ask(channel: grpc.aio.Channel) -> ours.GenerateResponse:
        given = ours.GenerateInput(model="demo", text="word " * 400)
        return await inference(channel).Generate(ours.GenerateRequest(input=given))

    theirs = expect_failure(served.grpc_target, ask)
    failure = refused(served, asked("word " * 400))
    assert failure == theirs
    assert failure.reason == "CONTEXT_TOO_LONG"


def test_dropping_the_call_frees_what_it_held(served: Stack) -> None:
    request = asked(*TEXTS, max_tokens=200, ignore_eos=True)

    async def ask(channel: grpc.aio.Channel) -> None:
        call = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=0.05)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    on_channel(served.grpc_target, ask)
    served.wait_idle()


def test_an_adapter_is_looked_for_and_not_forgotten(served: Stack) -> None:
    assert refused(served, asked("x", adapter="none")).reason == "ADAPTER_NOT_LOADED"
