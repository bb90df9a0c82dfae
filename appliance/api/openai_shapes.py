"""Describe what OpenAI's clients send: the shape of each body, and which parameters mean nothing.

What this room does: one struct per JSON object of a request; the names that are accepted and have
no effect here (the answer names them in a header); the names that are refused with advice.
What it knows: OpenAI's API reference of chat, completions and embeddings, and the parameters this
appliance adds to it (top_k, min_p, typical_p, repeat_penalty, penalty_last_n, stop_token_ids,
ignore_eos; priority, cache_salt, timeout, adapter; stream_options.include_progress; llama-server's
grammar and vLLM's structured_outputs).
What it never does: turn a body into the domain (`openai`), or hold a value of a client.
"""

from __future__ import annotations

from typing import Any, dataclass_transform

import msgspec


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base: an unknown field is an error that names it."""


# --- accepted without effect ----------------------------------------------------------------------

IGNORED_CHAT = frozenset(
    {
        "metadata",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "store",
        "verbosity",
    }
)

# --- refused with advice --------------------------------------------------------------------------

# Older names of what `structured_outputs` has, and llama-server's own of what the format has.
REFUSED_ANY = {
    "guided_choice": "use 'structured_outputs': {'choice': [...]}",
    "guided_decoding_backend": "there is one here; leave it out",
    "guided_grammar": "use 'structured_outputs': {'grammar': ...}",
    "guided_json": "use 'structured_outputs': {'json': ...} or 'response_format'",
    "guided_regex": "use 'structured_outputs': {'regex': ...}",
    "guided_whitespace_pattern": "there may be 24 characters between tokens; leave it out",
    "json_schema": "use 'response_format'",
}
REFUSED_CHAT = {
    **REFUSED_ANY,
    "audio": "audio is not served here; this appliance answers with text",
    "function_call": "is deprecated and not supported; use 'tool_choice'",
    "functions": "is deprecated and not supported; use 'tools'",
    "web_search_options": "this appliance searches nothing on the web",
}


# --- chat -----------------------------------------------------------------------------------------


class ContentPart(Shape):
    """One part of a message; only parts of type text (or refusal) are served."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    video_url: Any = None


class FunctionCall(Shape):
    """The call inside a tool call; the arguments are JSON text."""

    name: str
    arguments: str = "{}"


class ToolCallPart(Shape):
    """One tool call of an earlier answer."""

    id: str
    function: FunctionCall | None = None
    type: str = "function"
    index: int | None = None
    custom: Any = None


class MessageBody(Shape):
    """One turn. What an answer carries beside its text may come back as it is."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallPart] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None


class FunctionBody(Shape):
    """What a tool is called, is for and takes."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Shape):
    """One tool; only functions are served."""

    type: str
    function: FunctionBody | None = None
    custom: Any = None


class NamedFunction(Shape):
    """The function a tool_choice names."""

    name: str


class ToolChoiceBody(Shape):
    """A tool_choice that is not a word."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: Any = None
    custom: Any = None


class JsonSchemaBody(Shape):
    """The schema of a response_format."""

    name: str = ""
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Shape):
    """text, json_object (with a schema if it is of llama-server's clients) or json_schema."""

    type: str
    json_schema: JsonSchemaBody | None = None
    schema: dict[str, Any] | None = None


class StructuredOutputs(Shape):
    """vLLM's constraints on the output, one at a time."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Shape):
    """Whether a last chunk has the usage, and whether chunks tell how far a long prompt has come.

    resumable: events are numbered, and the stream may be read on when its connection breaks.
    Obfuscation pads OpenAI's own streams; none is needed.
    """

    include_usage: bool | None = None
    include_progress: bool | None = None
    resumable: bool | None = None
    include_obfuscation: bool | None = None


class CallerBody(Shape, kw_only=True):
    """Who asks, how urgently, and how long it may take in s: on every generating endpoint."""

    user: str | None = None
    safety_identifier: str | None = None
    priority: str | None = None
    service_tier: str | None = None
    cache_salt: str | None = None
    timeout: float | None = None


class SamplingBody(CallerBody, kw_only=True):
    """What every generating endpoint takes."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    penalty_last_n: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    grammar: str | None = None
    adapter: str | None = None


class ChatBody(SamplingBody, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolBody] | None = None
    tool_choice: str | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None


class CompletionBody(SamplingBody, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


class EmbeddingBody(Shape):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
    timeout: float | None = None


def field_names(shape: type[Shape]) -> frozenset[str]:
    """List the fields of a body and of everything that may stand inside it."""
    found: set[str] = set(shape.__struct_fields__)
    if shape is ChatBody:
        inside: tuple[type[Shape], ...] = (
            ContentPart,
            FunctionBody,
            FunctionCall,
            JsonSchemaBody,
            MessageBody,
            ResponseFormat,
            StreamOptions,
            StructuredOutputs,
            ToolBody,
            ToolCallPart,
            ToolChoiceBody,
        )
        for other in inside:
            found.update(other.__struct_fields__)
    return frozenset(found)
