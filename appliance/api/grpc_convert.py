"""Turn the messages of the protos into the domain, and back.

What this room does: every request message to its value, every event and answer to its message.
What it knows: `appliance.v1`; which fields have presence, so that 0 and absent stay different.
What it never does: check a limit (`generate` does), or hold state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec

from appliance.api.limits import new_request_id
from appliance.api.proto import inference_pb2 as pb
from appliance.api.turns import check_message, check_tool_name
from appliance.domain import (
    Accepted,
    ChatPrompt,
    ChoiceEnd,
    Constraint,
    ConstraintKind,
    Delta,
    Event,
    Final,
    FinishReason,
    GenerateRequest,
    InfillFile,
    InfillPrompt,
    Message,
    OutputOptions,
    Priority,
    Progress,
    Prompt,
    RequestId,
    SamplingOptions,
    StopOptions,
    TextPrompt,
    Timings,
    TokenLogprob,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolCallMade,
    ToolChoice,
    ToolChoiceMode,
    Usage,
)
from appliance.errors import InvalidRequest

_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "penalty_last_n",
    "seed",
)
_ROLES = {
    pb.Message.ROLE_SYSTEM: "system",
    pb.Message.ROLE_USER: "user",
    pb.Message.ROLE_ASSISTANT: "assistant",
    pb.Message.ROLE_TOOL: "tool",
    pb.Message.ROLE_DEVELOPER: "developer",
}
_MODES = {
    pb.ToolChoice.MODE_UNSPECIFIED: ToolChoiceMode.AUTO,
    pb.ToolChoice.MODE_AUTO: ToolChoiceMode.AUTO,
    pb.ToolChoice.MODE_NONE: ToolChoiceMode.NONE,
    pb.ToolChoice.MODE_REQUIRED: ToolChoiceMode.REQUIRED,
    pb.ToolChoice.MODE_NAMED: ToolChoiceMode.NAMED,
}
_PRIORITIES = {
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_BATCH: Priority.BATCH,
}
_PRIORITY_OF = {priority: number for number, priority in _PRIORITIES.items()}
_TEXT_KINDS = {
    "json_schema": ConstraintKind.JSON_SCHEMA,
    "regex": ConstraintKind.REGEX,
    "gbnf": ConstraintKind.GBNF,
    "lark": ConstraintKind.LARK,
}
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}


# --- requests -------------------------------------------------------------------------------------


def read_generate(given: pb.GenerateInput, deadline_ms: float | None) -> GenerateRequest:
    """Read a text or token prompt with its options.

    Raises:
        InvalidRequest: no prompt is set, or an option is out of range.
    """
    prompt: Prompt
    kind = given.WhichOneof("prompt")
    if kind == "text":
        prompt = TextPrompt(text=given.text)
    elif kind == "token_ids":
        prompt = TokenPrompt(token_ids=tuple(given.token_ids.ids))
    elif kind == "infill":
        prompt = InfillPrompt(
            prefix=given.infill.prefix,
            suffix=given.infill.suffix,
            files=tuple(InfillFile(text=f.text, name=f.name) for f in given.infill.files),
        )
    else:
        raise InvalidRequest(field="prompt", reason="is missing")
    return _request(given, prompt, deadline_ms)


def read_chat(given: pb.ChatInput, deadline_ms: float | None) -> GenerateRequest:
    """Read a chat with its tools and options.

    Raises:
        InvalidRequest: a role or a tool is missing, or an option is out of range.
    """
    tools = _tools(given.tools)
    prompt = ChatPrompt(
        messages=tuple(_message(index, turn) for index, turn in enumerate(given.messages)),
        tools=tools,
        tool_choice=_tool_choice(given.tool_choice, tools),
    )
    return _request(given, prompt, deadline_ms)


def _request(
    given: pb.GenerateInput | pb.ChatInput, prompt: Prompt, deadline_ms: float | None
) -> GenerateRequest:
    stop, output = given.stop, given.output
    return GenerateRequest(
        request_id=request_id_of(given.request_id),
        model=given.model,
        prompt=prompt,
        sampling=_sampling(given.sampling),
        stop=StopOptions(
            max_tokens=stop.max_tokens if stop.HasField("max_tokens") else None,
            strings=tuple(stop.strings),
            token_ids=tuple(stop.token_ids),
            ignore_eos=stop.ignore_eos,
        ),
        output=OutputOptions(
            n=output.n or 1,
            top_logprobs=output.top_logprobs if output.HasField("top_logprobs") else None,
            echo=output.echo,
        ),
        constraint=_constraint(given.constraint),
        deadline_ms=deadline_ms,
        priority=_priority(given.priority),
        adapter=given.adapter,
        cache_salt=given.cache_salt,
    )


def _priority(given: pb.Priority) -> Priority | None:
    if given == pb.PRIORITY_UNSPECIFIED:
        return None
    priority = _PRIORITIES.get(given)
    if priority is None:
        raise InvalidRequest(field="priority", reason=f"{given} is not a class")
    return priority


def request_id_of(given: str) -> RequestId:
    """Take the client's id, or make one."""
    return RequestId(given) if given else new_request_id()


def _sampling(given: pb.SamplingOptions) -> SamplingOptions:
    options = {name: getattr(given, name) for name in _SAMPLING if given.HasField(name)}
    return SamplingOptions(**options, logit_bias=dict(given.logit_bias))


def _constraint(given: pb.Constraint) -> Constraint | None:
    kind = given.WhichOneof("kind")
    if kind is None or (kind == "json_object" and not given.json_object):
        return None
    if kind == "json_object":
        return Constraint(kind=ConstraintKind.JSON_OBJECT)
    if kind != "choices":
        return Constraint(kind=_TEXT_KINDS[kind], text=getattr(given, kind))
    texts = json.dumps(list(given.choices.texts), ensure_ascii=False)
    return Constraint(kind=ConstraintKind.CHOICES, text=texts)


def _tools(given: Iterable[pb.Tool]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for index, tool in enumerate(given):
        check_tool_name(f"tools[{index}].name", tool.name, tools)
        parameters = tool.parameters_json or "{}"
        tools.append(Tool(name=tool.name, description=tool.description, parameters=parameters))
    return tuple(tools)


def _tool_choice(given: pb.ToolChoice, tools: tuple[Tool, ...]) -> ToolChoice:
    mode = _MODES.get(given.mode)
    if mode is None:
        raise InvalidRequest(field="tool_choice.mode", reason=f"{given.mode} is not a mode")
    named = mode is ToolChoiceMode.NAMED
    if named and all(tool.name != given.name for tool in tools):
        raise InvalidRequest(field="tool_choice.name", reason="is not among the tools")
    if mode is ToolChoiceMode.REQUIRED and not tools:
        raise InvalidRequest(field="tool_choice.mode", reason="demands a call; there are no tools")
    return ToolChoice(mode=mode, name=given.name if named else "", parallel=not given.one_call)


def _message(index: int, given: pb.Message) -> Message:
    field = f"messages[{index}]"
    role = _ROLES.get(given.role)
    if role is None:
        raise InvalidRequest(field=f"{field}.role", reason="is missing or unknown")
    message = Message(
        role=role,
        content=given.content,
        name=given.name,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.name, arguments=call.arguments_json)
            for call in given.tool_calls
        ),
        tool_call_id=given.tool_call_id,
    )
    check_message(field, message)
    return message


# --- answers --------------------------------------------------------------------------------------


def write_event(seq: int, event: Event) -> pb.StreamEvent:
    """Write one event of a stream."""
    if isinstance(event, Delta):
        return pb.StreamEvent(seq=seq, delta=_delta(event))
    if isinstance(event, ToolCallMade):
        delta = pb.Delta(choice=event.choice, tool_calls=[_call(event.call)])
        return pb.StreamEvent(seq=seq, delta=delta)
    if isinstance(event, ChoiceEnd):
        delta = pb.Delta(choice=event.choice, finish_reason=_REASONS[event.finish_reason])
        return pb.StreamEvent(seq=seq, delta=delta)
    if isinstance(event, Progress):
        progress = pb.Progress(
            prompt_tokens_done=event.prompt_tokens_done,
            prompt_tokens_total=event.prompt_tokens_total,
            cached_tokens=event.cached_tokens,
        )
        return pb.StreamEvent(seq=seq, progress=progress)
    if isinstance(event, Accepted):
        accepted = pb.Accepted(
            request_id=event.request_id,
            version=event.version,
            seed=event.seed,
            prompt_tokens=event.prompt_tokens,
            priority=_PRIORITY_OF[event.priority],
        )
        return pb.StreamEvent(seq=seq, accepted=accepted)
    final = pb.Final(
        usage=usage_of(event.usage),
        timings=_timings(event.timings),
        finish_reasons=[_REASONS[reason] for reason in event.finish_reasons],
    )
    return pb.StreamEvent(seq=seq, final=final)


class Answer:
    """Collect the events of one request into a whole answer."""

    def __init__(self, choices: int) -> None:
        self._accepted: Accepted | None = None
        self._final: Final | None = None
        self._choices = [pb.Choice(index=index) for index in range(choices)]
        self._texts: list[list[str]] = [[] for _ in range(choices)]

    def take(self, event: Event) -> None:
        """Add one event."""
        if isinstance(event, Delta):
            choice = self._choices[event.choice]
            self._texts[event.choice].append(event.text)
            choice.token_ids.extend(event.token_ids)
            choice.logprobs.extend(_logprob(token) for token in event.logprobs)
        elif isinstance(event, ToolCallMade):
            self._choices[event.choice].tool_calls.append(_call(event.call))
        elif isinstance(event, ChoiceEnd):
            self._choices[event.choice].finish_reason = _REASONS[event.finish_reason]
        elif isinstance(event, Accepted):
            self._accepted = event
        elif isinstance(event, Final):
            self._final = event

    def generate_response(self) -> pb.GenerateResponse:
        """Write the answer to Generate; call after Final."""
        response = pb.GenerateResponse()
        self._fill(response)
        return response

    def chat_response(self) -> pb.ChatResponse:
        """Write the answer to Chat; call after Final."""
        response = pb.ChatResponse()
        self._fill(response)
        return response

    def _fill(self, response: pb.GenerateResponse | pb.ChatResponse) -> None:
        assert self._accepted is not None
        assert self._final is not None
        response.request_id = self._accepted.request_id
        response.version = self._accepted.version
        response.seed = self._accepted.seed
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.text = "".join(texts)
            response.choices.append(choice)
        response.usage.CopyFrom(usage_of(self._final.usage))
        response.timings.CopyFrom(_timings(self._final.timings))


def _delta(event: Delta) -> pb.Delta:
    return pb.Delta(
        choice=event.choice,
        text=event.text,
        token_ids=event.token_ids,
        logprobs=[_logprob(token) for token in event.logprobs],
    )


def _logprob(token: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=token.token_id,
        text=token.text_bytes,
        logprob=token.logprob,
        top=[
            pb.TokenAlternative(token_id=token_id, text=text, logprob=logprob)
            for token_id, text, logprob in token.top
        ],
    )


def _call(call: ToolCall) -> pb.ToolCall:
    return pb.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)


def usage_of(usage: Usage) -> pb.Usage:
    """Write what a request used."""
    return pb.Usage(**msgspec.structs.asdict(usage))


def _timings(timings: Timings) -> pb.Timings:
    return pb.Timings(**msgspec.structs.asdict(timings))
