"""Turn a request to embed or to rerank into one job of a pooling model, and scores into an order.

What this room does: one token list for each input, some prepared at a time; a query beside each
document; the documents by falling score.
What it knows: of what a reranker's head says the first value is the score (llama-server takes the
same).
What it never does: check limits, take a ticket, or score anything itself.
"""

from __future__ import annotations

import struct

from appliance.api.together import all_of
from appliance.domain import (
    Client,
    EmbedRequest,
    EmbedResult,
    ModelVersion,
    RankedDocument,
    RankPrompt,
    RerankRequest,
    RerankResult,
    TextPrompt,
    TokenPrompt,
)
from appliance.runtime.router import EmbedJob, Router

PREPARES_AT_ONCE = 32


async def pool_job(
    router: Router,
    version: ModelVersion,
    client: Client,
    request: EmbedRequest | RerankRequest,
    deadline_ms: float,
) -> EmbedJob:
    """Have every input tokenised. Raises as `Router.prepare`."""
    prompts: tuple[TextPrompt | TokenPrompt | RankPrompt, ...]
    if isinstance(request, EmbedRequest):
        field, prompts, normalize = "input", request.inputs, request.normalize
    else:
        field, prompts, normalize = "documents", _pairs(request), False
    inputs: list[tuple[int, ...]] = []
    for begin in range(0, len(prompts), PREPARES_AT_ONCE):
        some = prompts[begin : begin + PREPARES_AT_ONCE]
        prepared = await all_of(router.prepare(version, prompt) for prompt in some)
        inputs += (one.token_ids for one in prepared)
    return EmbedJob(
        request_id=request.request_id,
        inputs=tuple(inputs),
        field=field,
        normalize=normalize,
        deadline_ms=deadline_ms,
        client=client,
    )


def ranked(request: RerankRequest, result: EmbedResult) -> RerankResult:
    """Order the documents and keep the best `top_n`; result.vectors are in the documents' order."""
    scores = [struct.unpack_from("<f", vector)[0] for vector in result.vectors]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])  # stable
    return RerankResult(
        version=result.version,
        ranked=tuple(
            RankedDocument(index=index, score=scores[index]) for index in order[: request.top_n]
        ),
        prompt_tokens=result.prompt_tokens,
    )


def _pairs(request: RerankRequest) -> tuple[RankPrompt, ...]:
    return tuple(RankPrompt(query=request.query, document=text) for text in request.documents)
