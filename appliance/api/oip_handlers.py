"""Answer the calls of the Open Inference Protocol: translate, call the use case, translate back.

What this room does: one method per rpc; several prompts of one call run side by side.
What it knows: `generate.Service`, `oip_convert`; live and ready are public, as health is.
What it never does: decide anything about a request, or serve what the protocol has no word for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from appliance.api.generate import Service
from appliance.api.grpc_handlers import Context, client_of
from appliance.api.limits import new_request_id
from appliance.api.oip_convert import (
    label_of,
    read_embed,
    read_generate,
    read_parameters,
    read_rerank,
    read_tensors,
    write_embeddings,
    write_generate,
    write_metadata,
    write_scores,
)
from appliance.api.oip_parameters import read_shared
from appliance.api.openai_chunks import Whole
from appliance.api.proto import open_inference_pb2 as pb
from appliance.api.together import all_of
from appliance.domain import (
    Client,
    GenerateRequest,
    ModelKind,
    ModelStatus,
    RequestId,
    Role,
    VersionState,
)

NAME = "appliance"
_MS = 1000.0


class OpenInferenceServicer:
    """One method per rpc. Dropping a call cancels what it asked for."""

    def __init__(self, service: Service, clock: Callable[[], float], version: str) -> None:
        """Answer from `service`; `clock` is monotonic, in ms; `version` is the program's."""
        self._service = service
        self._clock = clock
        self._version = version

    async def server_live(self, _asked: pb.ServerLiveRequest, _context: Context) -> object:
        """Answer at all."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _asked: pb.ServerReadyRequest, _context: Context) -> object:
        """Tell whether a model answers now."""
        return pb.ServerReadyResponse(ready=self._service.ready())

    async def model_ready(self, request: pb.ModelReadyRequest, _context: Context) -> object:
        """Tell whether this model answers now."""
        status = self._status(label_of(request.name, request.version))
        ready = status is not None and status.state is VersionState.READY
        return pb.ModelReadyResponse(ready=ready)

    async def server_metadata(self, _asked: pb.ServerMetadataRequest, context: Context) -> object:
        """Tell what this program is."""
        client_of(self._service, context)  # a wrong key is refused
        return pb.ServerMetadataResponse(name=NAME, version=self._version)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> object:
        """Tell what a model takes and gives."""
        client = client_of(self._service, context)
        status = self._service.model(client, label_of(request.name, request.version))
        return write_metadata(status)

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> object:
        """Generate, embed or rank."""
        parameters = read_parameters(request.parameters)
        shared = read_shared(parameters)
        client = client_of(self._service, context, shared.user)
        model = label_of(request.model_name, request.model_version)
        status = self._status(model)
        kind = ModelKind.GENERATE if status is None else status.kind
        tensors = read_tensors(request, kind)
        request_id = RequestId(request.id) if request.id else new_request_id()
        deadline_ms = self._deadline(context, shared.timeout_s)
        given = (tensors, model, request_id, parameters, deadline_ms)
        if kind is ModelKind.EMBED:
            vectors = await self._service.embed(client, read_embed(*given))
            return write_embeddings(request, tensors, vectors)
        if kind is ModelKind.RERANK:
            ranks = await self._service.rerank(client, read_rerank(*given))
            return write_scores(request, tensors, ranks)
        wholes = await all_of(self._collect(client, one) for one in read_generate(*given))
        return write_generate(request, tensors, wholes)

    async def _collect(self, client: Client, request: GenerateRequest) -> Whole:
        whole = Whole(1)
        async with aclosing(self._service.generate(client, request)) as events:
            async for event in events:
                whole.take(event)
        return whole

    def _status(self, name: str) -> ModelStatus | None:
        """Find what a name stands for, ready or not; an active version goes before others."""
        found = [
            status
            for status in self._service.statuses()
            if name == status.version.label
            or (name == status.version.model and status.role is Role.ACTIVE)
        ]
        return found[0] if found else None

    def _deadline(self, context: Context, timeout_s: float | None) -> float | None:
        """Take the sooner of the call's own deadline and the one in its parameters."""
        left_s = context.time_remaining()
        ends = [self._service.deadline(timeout_s)]
        ends.append(None if left_s is None else self._clock() + left_s * _MS)
        return min((end for end in ends if end is not None), default=None)
