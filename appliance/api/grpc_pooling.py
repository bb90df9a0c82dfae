"""Turn the messages of Embed and Rerank into the domain, and back.

What this room does: inputs and documents out of a request, vectors and ranks into an answer.
What it knows: `appliance.v1`.
What it never does: check a limit (`generate` does), or hold state.
"""

from __future__ import annotations

from array import array

from appliance.api.grpc_convert import request_id_of
from appliance.api.proto import inference_pb2 as pb
from appliance.domain import (
    EmbedRequest,
    EmbedResult,
    RerankRequest,
    RerankResult,
    TextPrompt,
    TokenPrompt,
)
from appliance.errors import InvalidRequest


def read_embed(given: pb.EmbedRequest, deadline_ms: float | None) -> EmbedRequest:
    """Read inputs to embed.

    Raises:
        InvalidRequest: an input holds neither text nor tokens.
    """
    inputs: list[TextPrompt | TokenPrompt] = []
    for index, entry in enumerate(given.inputs):
        kind = entry.WhichOneof("input")
        if kind is None:
            raise InvalidRequest(field=f"inputs[{index}]", reason="is missing")
        if kind == "text":
            inputs.append(TextPrompt(text=entry.text))
        else:
            inputs.append(TokenPrompt(token_ids=tuple(entry.token_ids.ids)))
    return EmbedRequest(
        request_id=request_id_of(given.request_id),
        model=given.model,
        inputs=tuple(inputs),
        normalize=not given.raw,
        deadline_ms=deadline_ms,
    )


def read_rerank(given: pb.RerankRequest, deadline_ms: float | None) -> RerankRequest:
    """Read documents to score.

    Raises:
        InvalidRequest: `top_n` is out of range.
    """
    return RerankRequest(
        request_id=request_id_of(given.request_id),
        model=given.model,
        query=given.query,
        documents=tuple(given.documents),
        top_n=given.top_n if given.HasField("top_n") else None,
        deadline_ms=deadline_ms,
    )


def write_embeddings(request_id: str, result: EmbedResult) -> pb.EmbedResponse:
    """Write the vectors."""
    return pb.EmbedResponse(
        request_id=request_id,
        version=result.version,
        embeddings=[pb.Embedding(values=array("f", vector)) for vector in result.vectors],
        usage=pb.Usage(prompt_tokens=result.prompt_tokens),
    )


def write_ranks(
    asked: RerankRequest, result: RerankResult, *, with_documents: bool
) -> pb.RerankResponse:
    """Write the documents by falling score."""
    return pb.RerankResponse(
        request_id=asked.request_id,
        version=result.version,
        results=[
            pb.RankedDocument(
                index=one.index,
                relevance_score=one.score,
                document=asked.documents[one.index] if with_documents else None,
            )
            for one in result.ranked
        ],
        usage=pb.Usage(prompt_tokens=result.prompt_tokens),
    )
