"""Turn the messages of the Open Inference Protocol into the domain, and back.

What this room does: tensors of texts out of a request, in both of its forms; requests of the domain
for each kind of model; tensors of texts and numbers into an answer.
What it knows: the protocol's framing of BYTES: four bytes of length, lowest first, then the bytes.
Answers stand in raw_output_contents only: tritonclient reads BYTES from nowhere else.
What it never does: I/O, the operator's limits (`generate`), or drop what it does not know.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.api.oip_parameters import (
    Value,
    check_none,
    read_generating,
    read_normalize,
)
from appliance.api.openai_chunks import Whole
from appliance.api.proto import open_inference_pb2 as pb
from appliance.domain import (
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    ModelKind,
    ModelStatus,
    RequestId,
    RerankRequest,
    RerankResult,
    TextPrompt,
)
from appliance.errors import InvalidRequest

PROMPTS_MAX = 64
ELEMENTS_MAX = 65_536
PLATFORM = "llama.cpp_gguf"
_TEXT, _QUERY, _DOCUMENTS = "text_input", "query", "documents"
_ANSWER, _REASON, _EMBEDDING, _SCORES = "text_output", "finish_reason", "embedding", "scores"
_INPUTS = {
    ModelKind.GENERATE: (_TEXT,),
    ModelKind.EMBED: (_TEXT,),
    ModelKind.RERANK: (_QUERY, _DOCUMENTS),
}
_OUTPUTS = {
    ModelKind.GENERATE: (_ANSWER, _REASON),
    ModelKind.EMBED: (_EMBEDDING,),
    ModelKind.RERANK: (_SCORES,),
}
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """One tensor of texts: its shape, and its elements in row-major order."""

    shape: tuple[int, ...]
    elements: tuple[str, ...]


# --- requests -------------------------------------------------------------------------------------


def label_of(name: str, version: str) -> str:
    """Name a model the way the use case knows it."""
    return f"{name}@{version}" if version else name


def read_parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Value]:
    """Take the values out of their messages; one without a value counts as not given."""
    values: dict[str, Value] = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            values[name] = getattr(parameter, kind)
    return values


def read_tensors(request: pb.ModelInferRequest, kind: ModelKind) -> dict[str, Texts]:
    """Read the tensors that a model of this kind takes.

    Raises:
        InvalidRequest: one is missing, unknown, given twice, of another type, or not what its shape
            says; or an output is wanted that there is none of.
    """
    raw: Sequence[bytes | None] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        reason = f"has {len(raw)} entries for {len(request.inputs)} inputs"
        raise InvalidRequest(field="raw_input_contents", reason=reason)
    tensors: dict[str, Texts] = {}
    for tensor, content in zip(request.inputs, raw or [None] * len(request.inputs), strict=True):
        if tensor.name not in _INPUTS[kind] or tensor.name in tensors:
            known = " and ".join(_INPUTS[kind])
            reason = f"'{tensor.name[:64]}' is not wanted; this model takes {known}, once"
            raise InvalidRequest(field="inputs", reason=reason)
        tensors[tensor.name] = _texts(tensor, content)
    for name in _INPUTS[kind]:
        if name not in tensors:
            raise InvalidRequest(field="inputs", reason=f"'{name}' is missing")
    for output in request.outputs:
        if output.name not in _OUTPUTS[kind]:
            known = " and ".join(_OUTPUTS[kind])
            reason = f"'{output.name[:64]}' is not there; this model gives {known}"
            raise InvalidRequest(field="outputs", reason=reason)
        _refuse_parameters(f"outputs.{output.name}", output.parameters)
    return tensors


def read_generate(
    tensors: Mapping[str, Texts],
    model: str,
    request_id: RequestId,
    parameters: Mapping[str, Value],
    deadline_ms: float | None,
) -> tuple[GenerateRequest, ...]:
    """Make one request for each prompt. Raises InvalidRequest: an option, or too many prompts."""
    prompts = tensors[_TEXT].elements
    if not 0 < len(prompts) <= PROMPTS_MAX:
        reason = f"has {len(prompts)} prompts; from 1 to {PROMPTS_MAX} are taken"
        raise InvalidRequest(field=_TEXT, reason=reason)
    options = read_generating(parameters)
    return tuple(
        GenerateRequest(
            request_id=RequestId(request_id if len(prompts) == 1 else f"{request_id}-{index}"),
            model=model,
            prompt=TextPrompt(text=prompt),
            sampling=options.sampling,
            stop=options.stop,
            priority=options.priority,
            adapter=options.adapter,
            cache_salt=options.cache_salt,
            deadline_ms=deadline_ms,
        )
        for index, prompt in enumerate(prompts)
    )


def read_embed(
    tensors: Mapping[str, Texts],
    model: str,
    request_id: RequestId,
    parameters: Mapping[str, Value],
    deadline_ms: float | None,
) -> EmbedRequest:
    """Make one request of all texts. Raises InvalidRequest: an option is wrong."""
    return EmbedRequest(
        request_id=request_id,
        model=model,
        inputs=tuple(TextPrompt(text=text) for text in tensors[_TEXT].elements),
        normalize=read_normalize(parameters),
        deadline_ms=deadline_ms,
    )


def read_rerank(
    tensors: Mapping[str, Texts],
    model: str,
    request_id: RequestId,
    parameters: Mapping[str, Value],
    deadline_ms: float | None,
) -> RerankRequest:
    """Make one request of the query and all documents. Raises InvalidRequest: as it says."""
    check_none(parameters)
    if len(tensors[_QUERY].elements) != 1:
        raise InvalidRequest(field=_QUERY, reason="must have one element")
    return RerankRequest(
        request_id=request_id,
        model=model,
        query=tensors[_QUERY].elements[0],
        documents=tensors[_DOCUMENTS].elements,
        deadline_ms=deadline_ms,
    )


def _texts(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Texts:
    if tensor.datatype != "BYTES":
        reason = f"is of type '{tensor.datatype[:64]}'; BYTES is wanted"
        raise InvalidRequest(field=tensor.name, reason=reason)
    _refuse_parameters(tensor.name, tensor.parameters)
    if raw is None:
        elements = tuple(tensor.contents.bytes_contents)
    elif tensor.HasField("contents"):
        reason = "has contents beside those in raw_input_contents"
        raise InvalidRequest(field=tensor.name, reason=reason)
    else:
        elements = tuple(_unframed(tensor.name, raw))
    shape = tuple(tensor.shape)
    if min(shape, default=0) < 1 or math.prod(shape) != len(elements):
        reason = f"has {len(elements)} elements and the shape {list(shape)}"
        raise InvalidRequest(field=tensor.name, reason=reason)
    try:
        return Texts(shape=shape, elements=tuple(element.decode() for element in elements))
    except UnicodeDecodeError as error:
        raise InvalidRequest(field=tensor.name, reason="is not valid UTF-8") from error


def _unframed(name: str, raw: bytes) -> Iterator[bytes]:
    """Cut raw contents into elements: four bytes of length, lowest first, then the bytes."""
    at = count = 0
    while at < len(raw):
        count += 1
        if count > ELEMENTS_MAX:
            reason = f"has more than {ELEMENTS_MAX} elements"
            raise InvalidRequest(field=name, reason=reason)
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(raw[begin - _LENGTH_BYTES : begin], "little")
        if begin > len(raw) or at > len(raw):
            raise InvalidRequest(field=name, reason="ends in the midst of an element")
        yield raw[begin:at]


def _refuse_parameters(field: str, given: Mapping[str, pb.InferParameter]) -> None:
    for name in given:
        raise InvalidRequest(field=field, reason=f"takes no parameter '{name[:64]}'")


# --- answers --------------------------------------------------------------------------------------


def write_generate(
    request: pb.ModelInferRequest, tensors: Mapping[str, Texts], wholes: Sequence[Whole]
) -> pb.ModelInferResponse:
    """Write what was generated, in the shape of the prompts; call after each Final."""
    parts = [whole.parts[0] for whole in wholes]
    reasons = [part.finish_reason for part in parts]
    accepted = wholes[0].accepted
    assert accepted is not None
    response = _response(
        request,
        accepted.version,
        prompt_tokens=sum(whole.usage.prompt_tokens for whole in wholes),
        completion_tokens=sum(whole.usage.completion_tokens for whole in wholes),
    )
    shape = tensors[_TEXT].shape
    contents = {
        _ANSWER: _framed("".join(part.text) for part in parts),
        _REASON: _framed(reason.value for reason in reasons if reason is not None),
    }
    for name in _wanted(request, ModelKind.GENERATE):
        _add(response, name, "BYTES", shape, contents[name])
    return response


def write_embeddings(
    request: pb.ModelInferRequest, tensors: Mapping[str, Texts], result: EmbedResult
) -> pb.ModelInferResponse:
    """Write the vectors: the shape of the texts, and one dimension more."""
    response = _response(request, result.version, prompt_tokens=result.prompt_tokens)
    shape = (*tensors[_TEXT].shape, result.size)
    _add(response, _EMBEDDING, "FP32", shape, b"".join(result.vectors))
    return response


def write_scores(
    request: pb.ModelInferRequest, tensors: Mapping[str, Texts], result: RerankResult
) -> pb.ModelInferResponse:
    """Write the scores in the shape of the documents."""
    response = _response(request, result.version, prompt_tokens=result.prompt_tokens)
    scores = [one.score for one in sorted(result.ranked, key=lambda one: one.index)]
    data = struct.pack(f"<{len(scores)}f", *scores)
    _add(response, _SCORES, "FP32", tensors[_DOCUMENTS].shape, data)
    return response


def write_metadata(status: ModelStatus) -> pb.ModelMetadataResponse:
    """Write what a model takes and gives."""
    metadata = pb.ModelMetadataResponse(
        name=status.version.model,
        versions=[status.version.version],
        platform=PLATFORM,
        properties={"kind": status.kind.value},
    )
    size = status.facts.embedding_size if status.facts is not None else -1
    if status.facts is not None:
        metadata.properties["context_tokens"] = str(status.facts.context_tokens)
    for name in _INPUTS[status.kind]:
        metadata.inputs.add(name=name, datatype="BYTES", shape=[1 if name == _QUERY else -1])
    for name in _OUTPUTS[status.kind]:
        shape = [-1, size] if name == _EMBEDDING else [-1]
        datatype = "BYTES" if status.kind is ModelKind.GENERATE else "FP32"
        metadata.outputs.add(name=name, datatype=datatype, shape=shape)
    return metadata


def _response(request: pb.ModelInferRequest, version: str, **counts: int) -> pb.ModelInferResponse:
    model, _, edition = version.rpartition("@")
    response = pb.ModelInferResponse(model_name=model, model_version=edition, id=request.id)
    for name, count in counts.items():
        response.parameters[name].int64_param = count
    return response


def _wanted(request: pb.ModelInferRequest, kind: ModelKind) -> Iterable[str]:
    asked = {output.name for output in request.outputs}
    return [name for name in _OUTPUTS[kind] if not asked or name in asked]


def _framed(texts: Iterable[str]) -> bytes:
    parts = [text.encode() for text in texts]
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "little") + part for part in parts)


def _add(
    response: pb.ModelInferResponse, name: str, datatype: str, shape: tuple[int, ...], raw: bytes
) -> None:
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)
