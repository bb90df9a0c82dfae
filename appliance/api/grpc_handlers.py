"""Answer the calls of `appliance.v1`: translate, call the use case, translate back.

What this room does: one method per rpc; the deadline and the end of a call handed to the use case;
every error turned into a status, in one place; what is not a message of ours refused as such.
What it knows: `generate.Service`, `grpc_convert`, `grpc_errors`.
What it never does: decide anything about a request, or answer with a bare string.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
import msgspec
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from appliance.api.adapters import AdapterService
from appliance.api.bugs import log_bug
from appliance.api.generate import Service
from appliance.api.grpc_convert import Answer, read_chat, read_generate, write_event
from appliance.api.grpc_errors import internal_status, status_of
from appliance.api.grpc_pooling import read_embed, read_rerank, write_embeddings, write_ranks
from appliance.api.proto import inference_pb2 as pb
from appliance.api.proto import model_pb2
from appliance.api.resume import Frames, Put, Streams
from appliance.config import Adapter
from appliance.domain import (
    AdapterState,
    AdapterStatus,
    Client,
    ClientKind,
    GenerateRequest,
    ModelFacts,
    ModelKind,
    ModelStatus,
    RequestId,
    Role,
    StandbyStatus,
    VersionState,
)
from appliance.errors import ApplianceError, InvalidRequest

_MS = 1000.0
_KEY_METADATA = "authorization"
_WORD = re.compile(r"(?<!^)(?=[A-Z])")
_ROLES = {
    Role.ACTIVE: model_pb2.ROLE_ACTIVE,
    Role.STANDBY: model_pb2.ROLE_STANDBY,
    Role.CANDIDATE: model_pb2.ROLE_CANDIDATE,
}
_STATES = {
    VersionState.LOADING: model_pb2.VERSION_STATE_LOADING,
    VersionState.READY: model_pb2.VERSION_STATE_READY,
    VersionState.RESTARTING: model_pb2.VERSION_STATE_RESTARTING,
    VersionState.DRAINING: model_pb2.VERSION_STATE_DRAINING,
    VersionState.FAILED: model_pb2.VERSION_STATE_FAILED,
}
_KINDS = {
    ModelKind.GENERATE: model_pb2.MODEL_KIND_GENERATE,
    ModelKind.EMBED: model_pb2.MODEL_KIND_EMBED,
    ModelKind.RERANK: model_pb2.MODEL_KIND_RERANK,
}
_ADAPTER_STATES = {
    AdapterState.LOADING: model_pb2.ADAPTER_STATE_LOADING,
    AdapterState.READY: model_pb2.ADAPTER_STATE_READY,
    AdapterState.DRAINING: model_pb2.ADAPTER_STATE_DRAINING,
    AdapterState.FAILED: model_pb2.ADAPTER_STATE_FAILED,
}

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Method: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


# --- the table of methods -------------------------------------------------------------------------


def handlers_of(service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
    """Bind every rpc of a service to the method of the same name in snake_case."""
    handlers = {
        method.name: _handler(method, getattr(servicer, _WORD.sub("_", method.name).lower()))
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(method: MethodDescriptor, call: Method) -> grpc.RpcMethodHandler[Any, Any]:
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    make = (
        grpc.unary_stream_rpc_method_handler
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(
        _guarded(call),
        request_deserializer=_parser(request),
        response_serializer=response.SerializeToString,
    )


def _parser(request: type[Message]) -> Callable[[bytes], Message | None]:
    """Parse, or give None: gRPC itself would answer INTERNAL for a client's mistake."""

    def parse(data: bytes) -> Message | None:
        try:
            return request.FromString(data)
        except DecodeError:
            return None

    return parse


def _guarded(call: Method) -> Method:
    """Turn every error into a status: the transport's catch-all."""

    async def guarded(request: Message | None, context: Context) -> object:
        try:
            return await call(_valid(request), context)
        except ApplianceError as error:
            await context.abort_with_status(status_of(error))
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the transport's catch-all
            log_bug("grpc", error)
            await context.abort_with_status(internal_status())

    return guarded


def _valid(request: Message | None) -> Message:
    if request is None:
        reason = "is not a valid message, or a text in it is not valid UTF-8"
        raise InvalidRequest(field="message", reason=reason)
    return request


def client_of(service: Service, context: Context, user: str = "") -> Client:
    """Say who calls: by its key, or else by the listener it came through and the user it names.

    Raises:
        Unauthenticated, InvalidRequest: as named.
    """
    listener = ClientKind.LOOPBACK
    if context.peer().startswith("unix"):
        listener = ClientKind.LOCAL_SOCKET
    shown = [value for name, value in context.invocation_metadata() or () if name == _KEY_METADATA]
    authorization = str(shown[-1]) if shown else ""
    return service.identify(listener, authorization, user)


# --- appliance.v1.InferenceService ----------------------------------------------------------------


class InferenceServicer:
    """One method per rpc. Cancelling or dropping a call closes the iterator it reads."""

    def __init__(self, service: Service, streams: Streams, clock: Callable[[], float]) -> None:
        """Answer from `service`; `clock` is monotonic, in milliseconds."""
        self._service = service
        self._streams = streams
        self._clock = clock

    async def generate(self, request: pb.GenerateRequest, context: Context) -> object:
        """Answer with the whole text."""
        client = client_of(self._service, context, request.input.user)
        asked = read_generate(request.input, self._deadline(context))
        _refuse_resumable(request.input)
        return (await self._collect(client, asked)).generate_response()

    async def generate_stream(self, request: pb.GenerateStreamRequest, context: Context) -> None:
        """Answer with events."""
        client = client_of(self._service, context, request.input.user)
        asked = read_generate(request.input, self._deadline(context))
        resumable = request.input.resumable
        await self._stream(client, asked, context, pb.GenerateStreamResponse, resumable=resumable)

    async def chat(self, request: pb.ChatRequest, context: Context) -> object:
        """Answer a chat with the whole text."""
        client = client_of(self._service, context, request.input.user)
        asked = read_chat(request.input, self._deadline(context))
        _refuse_resumable(request.input)
        return (await self._collect(client, asked)).chat_response()

    async def chat_stream(self, request: pb.ChatStreamRequest, context: Context) -> None:
        """Answer a chat with events."""
        client = client_of(self._service, context, request.input.user)
        asked = read_chat(request.input, self._deadline(context))
        resumable = request.input.resumable
        await self._stream(client, asked, context, pb.ChatStreamResponse, resumable=resumable)

    async def embed(self, request: pb.EmbedRequest, context: Context) -> object:
        """Answer with vectors."""
        client = client_of(self._service, context, request.user)
        asked = read_embed(request, self._deadline(context))
        result = await self._service.embed(client, asked)
        return write_embeddings(asked.request_id, result)

    async def rerank(self, request: pb.RerankRequest, context: Context) -> object:
        """Answer with documents by falling score."""
        client = client_of(self._service, context, request.user)
        asked = read_rerank(request, self._deadline(context))
        result = await self._service.rerank(client, asked)
        return write_ranks(asked, result, with_documents=request.return_documents)

    async def tokenize(self, request: pb.TokenizeRequest, context: Context) -> object:
        """Answer with token ids."""
        version, prepared = await self._service.tokenize(
            client_of(self._service, context),
            request.model,
            request.text,
            add_bos=request.add_bos,
            parse_special=request.parse_special,
        )
        return pb.TokenizeResponse(
            version=version.label, token_ids=prepared.token_ids, pieces=prepared.pieces
        )

    async def detokenize(self, request: pb.DetokenizeRequest, context: Context) -> object:
        """Answer with text."""
        version, text = await self._service.detokenize(
            client_of(self._service, context), request.model, tuple(request.token_ids)
        )
        return pb.DetokenizeResponse(version=version.label, text=text)

    async def resume_stream(self, request: pb.ResumeStreamRequest, context: Context) -> None:
        """Answer with the events of a stream whose connection broke, from one of them on."""
        client = client_of(self._service, context, request.user)
        request_id = RequestId(request.request_id)
        self._service.let_resume(client, request_id)
        frames = self._streams.resume(client, request_id, request.from_seq)
        await _write_frames(frames, context, pb.ResumeStreamResponse)

    async def cancel_request(self, request: pb.CancelRequestRequest, context: Context) -> object:
        """Cancel another call of the same client."""
        client = client_of(self._service, context, request.user)
        found = self._service.cancel(client, RequestId(request.request_id))
        return pb.CancelRequestResponse(found=found)

    def _deadline(self, context: Context) -> float | None:
        left_s = context.time_remaining()
        return None if left_s is None else self._clock() + left_s * _MS

    async def _collect(self, client: Client, asked: GenerateRequest) -> Answer:
        answer = Answer(asked.output.n)
        async with aclosing(self._service.generate(client, asked)) as events:
            async for event in events:
                answer.take(event)
        return answer

    async def _stream(
        self,
        client: Client,
        asked: GenerateRequest,
        context: Context,
        wrap: type[pb.GenerateStreamResponse | pb.ChatStreamResponse],
        *,
        resumable: bool,
    ) -> None:
        if resumable:
            work = partial(self._put_events, client, asked)
            await _write_frames(self._streams.open(client, asked.request_id, work), context, wrap)
            return
        seq = 0
        async with aclosing(self._service.generate(client, asked)) as events:
            async for event in events:
                await context.write(wrap(event=write_event(seq, event)))
                seq += 1

    async def _put_events(self, client: Client, asked: GenerateRequest, put: Put) -> None:
        seq = 0
        async with aclosing(self._service.generate(client, asked)) as events:
            async for event in events:
                put(write_event(seq, event).SerializeToString())
                seq += 1


async def _write_frames(
    frames: Frames,
    context: Context,
    wrap: type[pb.GenerateStreamResponse | pb.ChatStreamResponse | pb.ResumeStreamResponse],
) -> None:
    async with aclosing(frames):
        async for _, frame in frames:
            await context.write(wrap(event=pb.StreamEvent.FromString(frame)))


def _refuse_resumable(given: pb.GenerateInput | pb.ChatInput) -> None:
    if given.resumable:
        raise InvalidRequest(field="resumable", reason="is for streams; a whole answer comes once")


# --- appliance.v1.ModelService --------------------------------------------------------------------


class ModelServicer:
    """Lists what is loaded, and loads and unloads adapters."""

    def __init__(self, service: Service, adapters: AdapterService) -> None:
        """Answer from `service` and `adapters`."""
        self._service = service
        self._adapters = adapters

    async def list(self, request: model_pb2.ListRequest, context: Context) -> object:
        """Answer with every version."""
        del request  # there is nothing to choose yet
        client = client_of(self._service, context)
        return model_pb2.ListResponse(
            models=[_model(status) for status in self._service.models(client)],
            standbys=[_standby(status) for status in self._service.standbys(client)],
        )

    async def get(self, request: model_pb2.GetRequest, context: Context) -> object:
        """Answer with one."""
        status = self._service.model(client_of(self._service, context), request.model)
        return model_pb2.GetResponse(model=_model(status))

    async def load_adapter(self, request: model_pb2.LoadAdapterRequest, context: Context) -> object:
        """Answer when requests may name the adapter."""
        settings = Adapter(
            name=request.name,
            path=request.path,
            scale=request.scale if request.HasField("scale") else 1.0,
        )
        client = client_of(self._service, context)
        status = await self._adapters.load(client, request.model, settings)
        return model_pb2.LoadAdapterResponse(adapter=_adapter(status))

    async def unload_adapter(
        self, request: model_pb2.UnloadAdapterRequest, context: Context
    ) -> object:
        """Answer when the adapter is gone."""
        client = client_of(self._service, context)
        await self._adapters.unload(client, request.model, request.name)
        return model_pb2.UnloadAdapterResponse()

    async def list_adapters(
        self, request: model_pb2.ListAdaptersRequest, context: Context
    ) -> object:
        """Answer with every adapter."""
        statuses = self._adapters.list(client_of(self._service, context), request.model)
        return model_pb2.ListAdaptersResponse(adapters=[_adapter(status) for status in statuses])


def _standby(status: StandbyStatus) -> model_pb2.Standby:
    return model_pb2.Standby(
        label=status.version.label,
        level=status.level.value,
        reason=status.reason,
        resident_ratio=status.resident_ratio,
        locked_bytes=status.locked_bytes,
        rollback_ms=status.rollback_ms,
    )


def _model(status: ModelStatus) -> model_pb2.Model:
    version = status.version
    return model_pb2.Model(
        name=version.model,
        version=version.version,
        digest=version.digest,
        origin=version.origin.value,
        role=_ROLES[status.role],
        state=_STATES[status.state],
        loading_ratio=status.loading_ratio,
        reason=status.reason,
        facts=_facts(status.facts),
        running_count=status.running_count,
        waiting_count=status.waiting_count,
        worker_pid=status.worker_pid,
        worker_restarts=status.worker_restarts,
        kv_cells_used=status.kv_cells_used,
        kv_cells_total=status.kv_cells_total,
        kind=_KINDS[status.kind],
    )


def _adapter(status: AdapterStatus) -> model_pb2.Adapter:
    adapter = status.adapter
    return model_pb2.Adapter(
        name=adapter.name,
        model=adapter.model,
        digest=adapter.digest,
        origin=adapter.origin.value,
        scale=adapter.scale,
        rank=status.rank,
        size_bytes=adapter.blob_bytes,
        state=_ADAPTER_STATES[status.state],
        reason=status.reason,
        requests_count=status.requests_count,
        load_ms=status.load_ms,
    )


def _facts(facts: ModelFacts | None) -> model_pb2.ModelFacts | None:
    if facts is None:
        return None
    names = {field.name for field in model_pb2.ModelFacts.DESCRIPTOR.fields}
    given = msgspec.structs.asdict(facts) | {
        "memory_kind": facts.memory_kind.value,
        "cache_layout": facts.cache_layout.value,
    }
    return model_pb2.ModelFacts(**{name: given[name] for name in names})
