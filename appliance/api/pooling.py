"""Turn a request to embed or to rerank into one job of a pooling model, and scores into an order.

What this room does: one token list for each input, some prepared at a time; a query beside each
document, all by the version that answers now; the documents by falling score.
What it knows: of what a reranker's head says the first value is the score (llama-server takes the
same).
What it never does: check limits, or score anything itself.
"""

from __future__ import annotations

import struct
from itertools import count

from appliance.api.account import Account
from appliance.api.asking import MOVES_MAX
from appliance.api.model_names import find, place_of
from appliance.api.together import all_of
from appliance.domain import (
    Client,
    EmbedRequest,
    EmbedResult,
    ModelKind,
    ModelVersion,
    RankedDocument,
    RankPrompt,
    RerankRequest,
    RerankResult,
    TextPrompt,
    TokenPrompt,
)
from appliance.errors import ApplianceError
from appliance.runtime.router import EmbedJob, Moved, Router

PREPARES_AT_ONCE = 32


class Pooling:
    """One request of one client, within the limits, for a model of one kind."""

    def __init__(
        self,
        router: Router,
        client: Client,
        request: EmbedRequest | RerankRequest,
        kind: ModelKind,
        deadline_ms: float,
    ) -> None:
        """Take what was asked. deadline_ms is monotonic."""
        self._router = router
        self._client = client
        self._request = request
        self._kind = kind
        self._deadline_ms = deadline_ms
        self._place = place_of(client, request.request_id)

    async def result(self, account: Account) -> EmbedResult:
        """Have every input evaluated, all by one version; again if another one takes over.

        Raises:
            ApplianceError: no vector is returned.
        """
        for attempt in count():
            may_move = attempt < MOVES_MAX
            version = self._version()
            account.found(version)
            try:
                job = await self._job(version, may_move=may_move, again=attempt > 0)
                account.prepared(sum(map(len, job.inputs)))
                if not may_move or self._version() == version:
                    return await self._router.embed(version, job, again=attempt > 0)
            except Moved:
                continue
            except ApplianceError:
                if not may_move or self._version() == version:
                    raise
        raise AssertionError

    def _version(self) -> ModelVersion:
        """Find the version that answers now. Raises as `find`."""
        return find(self._router, self._request.model, self._kind, place=self._place)

    async def _job(self, version: ModelVersion, *, may_move: bool, again: bool) -> EmbedJob:
        """Have every input tokenised. Raises as `Router.prepare`."""
        request = self._request
        prompts: tuple[TextPrompt | TokenPrompt | RankPrompt, ...]
        if isinstance(request, EmbedRequest):
            field, prompts, normalize = "input", request.inputs, request.normalize
        else:
            field, prompts, normalize = "documents", _pairs(request), False
        inputs: list[tuple[int, ...]] = []
        for begin in range(0, len(prompts), PREPARES_AT_ONCE):
            some = prompts[begin : begin + PREPARES_AT_ONCE]
            prepared = await all_of(
                self._router.prepare(version, prompt, again=again) for prompt in some
            )
            inputs += (one.token_ids for one in prepared)
        return EmbedJob(
            request_id=request.request_id,
            inputs=tuple(inputs),
            field=field,
            normalize=normalize,
            deadline_ms=self._deadline_ms,
            client=self._client,
            may_move=may_move and version.label != request.model,
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
