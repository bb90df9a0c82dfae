"""Find the version that a client means by the name of a model.

What this room does: the name, or none where only one model could be meant; a refusal that says what
a model of that name is for, if it is for something else.
What it knows: the role table, and the kinds of models.
What it never does: choose between versions (the router does), or ask whether one is ready.
"""

from __future__ import annotations

from contextlib import suppress

from appliance.domain import Client, ClientKind, ModelKind, ModelVersion, RequestId
from appliance.errors import InvalidRequest, ModelNotReady, ModelNotServed
from appliance.runtime.router import Router

_USE_RETRY_S = 1.0
_DOES = {
    ModelKind.GENERATE: "generates text",
    ModelKind.EMBED: "makes embeddings",
    ModelKind.RERANK: "ranks documents",
}
_DOES_NOT = {
    ModelKind.GENERATE: "generates no text",
    ModelKind.EMBED: "makes no embeddings",
    ModelKind.RERANK: "has no head to rank documents with",
}


def place_of(client: Client, request_id: RequestId) -> str:
    """Name what decides whether a request goes to a version on trial.

    A client that says who it is stays on one side. All others are one to us and many to themselves:
    for them each request decides for itself.
    """
    if client.kind is ClientKind.API_KEY:
        return f"{client.id}/{client.user}"
    return client.id if "/" in client.id else f"{client.id}/{request_id}"


def find(
    router: Router,
    model: str,
    kind: ModelKind = ModelKind.GENERATE,
    *,
    place: str = "",
    adapter: str = "",
) -> ModelVersion:
    """Find a version by name; no name means the only model of its kind. See `Router.find`.

    Raises:
        ModelNotServed: there is none of that name.
        ModelNotReady: there is, and it is not in use yet, or was stopped for another.
        InvalidRequest: it is of another kind, or without a name not just one could be meant.
    """
    try:
        return router.find(model, kind, client=place, adapter=adapter)
    except ModelNotServed:
        statuses = router.models()
        for status in statuses:
            if model in (status.version.model, status.version.label):
                if status.kind is kind:  # its first version is here, and not put to use yet
                    raise ModelNotReady(
                        model=model, state="not in use yet", retry_after_s=_USE_RETRY_S
                    ) from None
                reason = f"'{model}' {_DOES[status.kind]} and {_DOES_NOT[kind]}"
                raise InvalidRequest(field="model", reason=reason) from None
        if model:
            raise
        names = ", ".join(status.version.label for status in statuses)
        reason = f"must name a model, since not just one could be meant; here are: {names}"
        raise InvalidRequest(field="model", reason=reason) from None


def find_any(router: Router, model: str) -> ModelVersion:
    """Find a version by name, whatever it is for; vocabularies are alike in that. Raises as `find`.

    Without a name a generating model goes first, then one of embeddings, then a reranker.
    """
    for kind in ModelKind:
        with suppress(ModelNotServed):
            return router.find(model, kind)
    return find(router, model)
