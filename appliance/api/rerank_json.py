"""Turn the JSON of a rerank request into the domain, and ranks into JSON as Jina and Cohere do.

What this room does: the body of /v1/rerank; its answer.
What it knows: the shape that Jina's, Cohere's, llama-server's and vLLM's clients share.
What it never does: I/O, or rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.api.json_body import convert, members_of
from appliance.api.openai_shapes import Shape
from appliance.domain import JsonObject, RequestId, RerankRequest, RerankResult


class DocumentBody(Shape):
    """A document that is not just a text."""

    text: str


class RerankBody(Shape):
    """POST /v1/rerank."""

    model: str
    query: str
    documents: list[str | DocumentBody]
    top_n: int | None = None
    return_documents: bool | None = None
    user: str | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankAsked:
    """What a rerank body asks for."""

    request: RerankRequest
    return_documents: bool
    user: str
    timeout_s: float | None


def read_rerank(body: bytes, request_id: RequestId) -> RerankAsked:
    """Read the body.

    Raises:
        InvalidRequest: names the field that is missing, unknown or wrong.
    """
    asked = convert(members_of(body), RerankBody)
    documents = (one if isinstance(one, str) else one.text for one in asked.documents)
    return RerankAsked(
        request=RerankRequest(
            request_id=request_id,
            model=asked.model,
            query=asked.query,
            documents=tuple(documents),
            top_n=asked.top_n,
        ),
        return_documents=bool(asked.return_documents),
        user=asked.user or "",
        timeout_s=asked.timeout,
    )


def rank_list(asked: RerankAsked, result: RerankResult) -> JsonObject:
    """Write the documents by falling score, each by its index in the request."""
    results: list[JsonObject] = []
    for one in result.ranked:
        entry: JsonObject = {"index": one.index, "relevance_score": one.score}
        if asked.return_documents:
            entry["document"] = {"text": asked.request.documents[one.index]}
        results.append(entry)
    return {
        "id": f"rerank-{asked.request.request_id}",
        "object": "list",
        "model": result.version,
        "results": results,
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }
