"""Ask a running daemon about models, and for answers, over gRPC.

What this room does: requests and events as values of `domain`; what is served.
What it knows: the protos of inference and models.
What it never does: print, retry, or let a message of the wire out of this file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeAlias

import grpc.aio
import msgspec

from appliance import domain
from appliance.api.proto import inference_pb2 as pb
from appliance.api.proto import inference_pb2_grpc, model_pb2, model_pb2_grpc
from appliance.cli.connection import CALL_TIMEOUT_S, Connection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROLES = {
    "system": pb.Message.ROLE_SYSTEM,
    "developer": pb.Message.ROLE_DEVELOPER,
    "user": pb.Message.ROLE_USER,
    "assistant": pb.Message.ROLE_ASSISTANT,
    "tool": pb.Message.ROLE_TOOL,
}
_TOOL_MODES = {
    domain.ToolChoiceMode.AUTO: pb.ToolChoice.MODE_AUTO,
    domain.ToolChoiceMode.NONE: pb.ToolChoice.MODE_NONE,
    domain.ToolChoiceMode.REQUIRED: pb.ToolChoice.MODE_REQUIRED,
    domain.ToolChoiceMode.NAMED: pb.ToolChoice.MODE_NAMED,
}
_PRIORITIES: dict[domain.Priority | None, pb.Priority] = {
    domain.Priority.INTERACTIVE: pb.PRIORITY_INTERACTIVE,
    domain.Priority.NORMAL: pb.PRIORITY_NORMAL,
    domain.Priority.BATCH: pb.PRIORITY_BATCH,
}
_FINISH = {
    pb.FINISH_REASON_STOP: domain.FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: domain.FinishReason.LENGTH,
    pb.FINISH_REASON_TOOL_CALLS: domain.FinishReason.TOOL_CALLS,
}


_EventCall: TypeAlias = (
    grpc.aio.UnaryStreamCall[pb.ChatStreamRequest, pb.ChatStreamResponse]
    | grpc.aio.UnaryStreamCall[pb.GenerateStreamRequest, pb.GenerateStreamResponse]
)


class ServedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine read from a file, as `ModelService` tells it."""

    architecture: str
    description: str
    parameters_count: int
    size_bytes: int
    context_tokens: int
    context_train_tokens: int
    embedding_size: int
    vocabulary_size: int
    pooling: str
    has_chat_template: bool
    kv_bytes_per_token: int
    sequences_max: int
    memory_kind: str
    cache_layout: str
    cache_layout_reason: str
    partitioned_speedup: float


class HeldStandby(msgspec.Struct, frozen=True, kw_only=True):
    """The version a rollback goes back to: its level, h0 to h4, and why it is not higher."""

    label: str
    level: str
    reason: str
    resident_ratio: float
    locked_bytes: int
    rollback_ms: float | None


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded version, as `ModelService` tells it. `loading_ratio` is 0 to 1."""

    name: str
    version: str
    digest: str
    origin: str
    role: str
    kind: str
    state: str
    loading_ratio: float
    reason: str
    running_count: int
    waiting_count: int
    worker_pid: int
    worker_restarts: int
    kv_cells_used: int
    kv_cells_total: int
    facts: ServedFacts | None

    @property
    def label(self) -> str:
        """Name the version: model@version."""
        return f"{self.name}@{self.version}"


class LoadedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """One LoRA adapter of a version, as `ModelService` tells it."""

    name: str
    model: str
    digest: str
    origin: str
    scale: float
    rank: int
    size_bytes: int
    state: str
    reason: str
    requests_count: int
    load_ms: float


class Client(Connection):
    """What commands ask of a daemon about models and answers; an async context manager."""

    def __init__(self, address: str) -> None:
        """Prepare a connection to "unix:PATH" or "HOST:PORT"; nothing is sent yet."""
        super().__init__(address)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)

    async def stream(
        self, request: domain.GenerateRequest, user: str = ""
    ) -> AsyncGenerator[domain.Event, None]:
        """Send a request, for a user if one is named, and yield its events.

        Leaving early cancels it.

        Raises:
            CallFailed: it was refused, or the connection broke.
        """
        messages = self._call(request, user)
        try:
            with self._failures():
                async for message in messages:
                    for event in _events(message.event):
                        yield event
        finally:
            messages.cancel()

    def _call(self, request: domain.GenerateRequest, user: str) -> _EventCall:
        if isinstance(request.prompt, domain.ChatPrompt):
            chat = _chat_input(request, request.prompt)
            chat.user = user
            return self._inference.ChatStream(pb.ChatStreamRequest(input=chat))
        text = _generate_input(request)
        text.user = user
        return self._inference.GenerateStream(pb.GenerateStreamRequest(input=text))

    async def embed(self, model: str, texts: Sequence[str], *, raw: bool) -> list[list[float]]:
        """Turn texts into vectors, in order.

        Raises:
            CallFailed: it was refused, or the connection broke.
        """
        message = pb.EmbedRequest(
            model=model, raw=raw, inputs=[pb.EmbedInput(text=text) for text in texts]
        )
        with self._failures():
            answer = await self._inference.Embed(message)
        return [list(embedding.values) for embedding in answer.embeddings]

    async def standbys(self) -> tuple[HeldStandby, ...]:
        """Say how each standby is held. Raises as `models`."""
        with self._failures():
            answer = await self._models.List(model_pb2.ListRequest(), timeout=CALL_TIMEOUT_S)
        return tuple(_held(standby) for standby in answer.standbys)

    async def models(self) -> tuple[ServedModel, ...]:
        """List every loaded version.

        Raises:
            CallFailed: nobody answers within CALL_TIMEOUT_S, or it was refused.
        """
        with self._failures():
            answer = await self._models.List(model_pb2.ListRequest(), timeout=CALL_TIMEOUT_S)
        return tuple(_served(model) for model in answer.models)

    async def load_adapter(self, model: str, name: str, path: str, scale: float) -> LoadedAdapter:
        """Have the daemon load a file of its machine as an adapter; blocks until that is done.

        Raises:
            CallFailed: it was refused, or the connection broke.
        """
        request = model_pb2.LoadAdapterRequest(model=model, name=name, path=path, scale=scale)
        with self._failures():
            answer = await self._models.LoadAdapter(request)
        return _adapter(answer.adapter)

    async def unload_adapter(self, model: str, name: str) -> None:
        """Have the daemon unload an adapter; blocks until no request names it any more.

        Raises:
            CallFailed: it was refused, or the connection broke.
        """
        request = model_pb2.UnloadAdapterRequest(model=model, name=name)
        with self._failures():
            await self._models.UnloadAdapter(request)

    async def adapters(self, model: str) -> tuple[LoadedAdapter, ...]:
        """List the adapters of one model, or of all.

        Raises:
            CallFailed: nobody answers within CALL_TIMEOUT_S, or it was refused.
        """
        request = model_pb2.ListAdaptersRequest(model=model)
        with self._failures():
            answer = await self._models.ListAdapters(request, timeout=CALL_TIMEOUT_S)
        return tuple(_adapter(one) for one in answer.adapters)


# --- values → messages --------------------------------------------------------------------------


def _generate_input(request: domain.GenerateRequest) -> pb.GenerateInput:
    message = pb.GenerateInput(
        request_id=request.request_id,
        model=request.model,
        sampling=_sampling(request.sampling),
        stop=_stop(request.stop),
        output=_output(request.output),
        constraint=_constraint(request.constraint),
        adapter=request.adapter,
        priority=_PRIORITIES.get(request.priority),
        cache_salt=request.cache_salt,
    )
    if isinstance(request.prompt, domain.TokenPrompt):
        message.token_ids.ids.extend(request.prompt.token_ids)
    elif isinstance(request.prompt, domain.TextPrompt):
        message.text = request.prompt.text
    return message


def _chat_input(request: domain.GenerateRequest, prompt: domain.ChatPrompt) -> pb.ChatInput:
    return pb.ChatInput(
        request_id=request.request_id,
        model=request.model,
        messages=[_message(message) for message in prompt.messages],
        tools=[
            pb.Tool(name=tool.name, description=tool.description, parameters_json=tool.parameters)
            for tool in prompt.tools
        ],
        tool_choice=pb.ToolChoice(
            mode=_TOOL_MODES[prompt.tool_choice.mode],
            name=prompt.tool_choice.name,
            one_call=not prompt.tool_choice.parallel,
        ),
        sampling=_sampling(request.sampling),
        stop=_stop(request.stop),
        output=_output(request.output),
        constraint=_constraint(request.constraint),
        adapter=request.adapter,
        priority=_PRIORITIES.get(request.priority),
        cache_salt=request.cache_salt,
    )


def _message(message: domain.Message) -> pb.Message:
    return pb.Message(
        role=_ROLES[message.role],
        content=message.content,
        name=message.name,
        tool_calls=[
            pb.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def _sampling(options: domain.SamplingOptions) -> pb.SamplingOptions:
    """Send only what differs from the service's defaults, which are those of the value."""
    default = domain.SamplingOptions()
    changed = {
        name: getattr(options, name)
        for name in options.__struct_fields__
        if getattr(options, name) != getattr(default, name)
    }
    return pb.SamplingOptions(**changed)


def _stop(options: domain.StopOptions) -> pb.StopOptions:
    return pb.StopOptions(
        max_tokens=options.max_tokens,
        strings=options.strings,
        token_ids=options.token_ids,
        ignore_eos=options.ignore_eos,
    )


def _output(options: domain.OutputOptions) -> pb.OutputOptions:
    return pb.OutputOptions(n=options.n, top_logprobs=options.top_logprobs, echo=options.echo)


def _constraint(constraint: domain.Constraint | None) -> pb.Constraint | None:
    if constraint is None:
        return None
    kind = domain.ConstraintKind
    if constraint.kind is kind.JSON_OBJECT:
        return pb.Constraint(json_object=True)
    if constraint.kind is kind.JSON_SCHEMA:
        return pb.Constraint(json_schema=constraint.text)
    if constraint.kind is kind.REGEX:
        return pb.Constraint(regex=constraint.text)
    texts = msgspec.json.decode(constraint.text, type=list[str])
    return pb.Constraint(choices=pb.Choices(texts=texts))


# --- messages → values --------------------------------------------------------------------------


def _events(message: pb.StreamEvent) -> Iterator[domain.Event]:
    kind = message.WhichOneof("event")
    if kind == "accepted":
        accepted = message.accepted
        yield domain.Accepted(
            request_id=domain.RequestId(accepted.request_id),
            version=accepted.version,
            seed=accepted.seed,
            prompt_tokens=accepted.prompt_tokens,
        )
    elif kind == "progress":
        yield domain.Progress(
            prompt_tokens_done=message.progress.prompt_tokens_done,
            prompt_tokens_total=message.progress.prompt_tokens_total,
            cached_tokens=message.progress.cached_tokens,
        )
    elif kind == "delta":
        yield from _deltas(message.delta)
    elif kind == "final":
        yield _final(message.final)


def _deltas(delta: pb.Delta) -> Iterator[domain.Event]:
    """Cut one delta of the wire into text, calls of tools and the end of its choice."""
    if delta.text or delta.token_ids:
        yield domain.Delta(choice=delta.choice, text=delta.text, token_ids=tuple(delta.token_ids))
    for index, call in enumerate(delta.tool_calls):
        made = domain.ToolCall(id=call.id, name=call.name, arguments=call.arguments_json)
        yield domain.ToolCallMade(choice=delta.choice, index=index, call=made)
    if delta.finish_reason in _FINISH:
        yield domain.ChoiceEnd(choice=delta.choice, finish_reason=_FINISH[delta.finish_reason])


def _final(final: pb.Final) -> domain.Final:
    return domain.Final(
        usage=domain.Usage(
            prompt_tokens=final.usage.prompt_tokens,
            completion_tokens=final.usage.completion_tokens,
            cached_tokens=final.usage.cached_tokens,
        ),
        timings=domain.Timings(
            queue_ms=final.timings.queue_ms,
            first_token_ms=final.timings.first_token_ms,
            total_ms=final.timings.total_ms,
        ),
        finish_reasons=tuple(_FINISH[reason] for reason in final.finish_reasons),
    )


def _held(standby: model_pb2.Standby) -> HeldStandby:
    return HeldStandby(
        label=standby.label,
        level=standby.level,
        reason=standby.reason,
        resident_ratio=standby.resident_ratio,
        locked_bytes=standby.locked_bytes,
        rollback_ms=standby.rollback_ms if standby.HasField("rollback_ms") else None,
    )


def _served(model: model_pb2.Model) -> ServedModel:
    own = {"role", "kind", "state", "facts"}
    plain = {
        name: getattr(model, name) for name in ServedModel.__struct_fields__ if name not in own
    }
    facts = None
    if model.HasField("facts"):
        facts = ServedFacts(
            **{name: getattr(model.facts, name) for name in ServedFacts.__struct_fields__}
        )
    return ServedModel(
        role=model_pb2.Role.Name(model.role).removeprefix("ROLE_").lower(),
        kind=model_pb2.ModelKind.Name(model.kind).removeprefix("MODEL_KIND_").lower(),
        state=model_pb2.VersionState.Name(model.state).removeprefix("VERSION_STATE_").lower(),
        facts=facts,
        **plain,
    )


def _adapter(adapter: model_pb2.Adapter) -> LoadedAdapter:
    plain = {
        name: getattr(adapter, name) for name in LoadedAdapter.__struct_fields__ if name != "state"
    }
    state = model_pb2.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_").lower()
    return LoadedAdapter(state=state, **plain)
