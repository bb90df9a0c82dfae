"""Turn what the domain answers into OpenAI's JSON.

What this room does: the objects of whole answers and of chunks, logprobs in both of OpenAI's
shapes, embeddings, models and errors. Every function returns what `encode` writes as it is.
What it knows: OpenAI's API reference; a logprob of minus infinity is written as -9999, as there.
What it never does: I/O, or decide anything.
"""

from __future__ import annotations

import base64
import codecs
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import msgspec

from appliance.api.openai_caller import TIER_OF
from appliance.domain import (
    Accepted,
    AdapterStatus,
    EmbedResult,
    FinishReason,
    JsonObject,
    ModelStatus,
    Progress,
    Role,
    TokenLogprob,
    ToolCall,
    Usage,
)

LOGPROB_MIN = -9999.0
encode = msgspec.json.Encoder().encode


@dataclass(slots=True, kw_only=True)
class ChoiceParts:
    """What came so far of one choice."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every object of one answer says of itself. created: seconds since 1970.

    says_tier: the client asked for a tier, so the answer names the one that served it.
    """

    id: str
    created: int
    model: str = ""
    says_tier: bool = False
    tier: str = ""

    def accepted(self, event: Accepted) -> Head:
        """Add what is known once a request is accepted."""
        return replace(self, model=event.version, tier=TIER_OF[event.priority])

    def object(self, kind: str, choices: list[JsonObject]) -> JsonObject:
        """Begin an object of that kind."""
        shown: JsonObject = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.model,
            "choices": choices,
        }
        if self.says_tier:
            shown["service_tier"] = self.tier
        return shown


def usage_object(usage: Usage) -> JsonObject:
    """Write the counts of tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def progress_object(progress: Progress) -> JsonObject:
    """Write how far a prompt has come, in llama-server's words; `processed` counts cached ones."""
    return {
        "total": progress.prompt_tokens_total,
        "cache": progress.cached_tokens,
        "processed": progress.prompt_tokens_done,
    }


# --- chat -----------------------------------------------------------------------------------------


def chat_completion(
    head: Head, parts: list[ChoiceParts], usage: Usage, *, logprobs: bool
) -> JsonObject:
    """Write a whole answer to a chat."""
    choices = []
    for index, part in enumerate(parts):
        text = "".join(part.text)
        message: JsonObject = {
            "role": "assistant",
            "content": None if part.calls and not text else text,
            "refusal": None,
        }
        if part.calls:
            message["tool_calls"] = [_call(call) for call in part.calls]
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(part.logprobs) if logprobs else None,
                "finish_reason": _reason(part.finish_reason),
            }
        )
    return {**head.object("chat.completion", choices), "usage": usage_object(usage)}


def chat_chunk(
    head: Head,
    index: int,
    delta: JsonObject,
    *,
    logprobs: JsonObject | None = None,
    finish_reason: FinishReason | None = None,
) -> JsonObject:
    """Write one chunk of one choice."""
    choice = {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": _reason(finish_reason),
    }
    return head.object("chat.completion.chunk", [choice])


def call_delta(index: int, call: ToolCall) -> JsonObject:
    """Write the delta that brings one whole tool call."""
    return {"tool_calls": [{"index": index, **_call(call)}]}


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> JsonObject:
    """Write logprobs in the chat's shape."""
    content = [
        {
            **_token(token.text_bytes, token.logprob),
            "top_logprobs": [_token(text, logprob) for _, text, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: bytes, logprob: float | None) -> JsonObject:
    return {
        "token": text.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(text),
    }


def _call(call: ToolCall) -> JsonObject:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


# --- completions ----------------------------------------------------------------------------------


class TextLogprobs:
    """Write logprobs in the legacy shape, chunk after chunk: offsets go on, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = 0

    def take(self, tokens: Iterable[TokenLogprob]) -> JsonObject:
        """Write the next tokens of the choice."""
        shown: JsonObject = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in tokens:
            shown["tokens"].append(_legacy_token(token.text_bytes))
            shown["token_logprobs"].append(_finite(token.logprob))
            top = {_legacy_token(text): _finite(logprob) for _, text, logprob in token.top}
            shown["top_logprobs"].append(top or None)
            shown["text_offset"].append(self._chars)
            self._chars += len(self._decoder.decode(token.text_bytes))
        return shown


def text_completion(
    head: Head, parts: list[ChoiceParts], usage: Usage, *, logprobs: bool
) -> JsonObject:
    """Write a whole answer to a completion."""
    choices = [
        text_choice(
            index,
            "".join(part.text),
            logprobs=TextLogprobs().take(part.logprobs) if logprobs else None,
            finish_reason=part.finish_reason,
        )
        for index, part in enumerate(parts)
    ]
    return {**head.object("text_completion", choices), "usage": usage_object(usage)}


def text_choice(
    index: int, text: str, *, logprobs: JsonObject | None, finish_reason: FinishReason | None
) -> JsonObject:
    """Write one choice, whole or a chunk of it."""
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": _reason(finish_reason),
    }


def _legacy_token(text: bytes) -> str:
    """Write a token as text, and part of a character as its bytes in hexadecimal."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


# --- embeddings, models, errors -------------------------------------------------------------------


def embedding_list(result: EmbedResult, *, as_base64: bool) -> JsonObject:
    """Write the vectors as numbers, or as base64 of little-endian float32."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector).decode("ascii")
            if as_base64
            else array("f", vector).tolist(),
        }
        for index, vector in enumerate(result.vectors)
    ]
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return {"object": "list", "data": data, "model": result.version, "usage": usage}


def model_id(status: ModelStatus) -> str:
    """Name a version as clients may: an active one by its model, others by model@version."""
    return status.version.model if status.role is Role.ACTIVE else status.version.label


def model_object(status: ModelStatus, name: str) -> JsonObject:
    """Write one model under the name it was asked by."""
    return {
        "id": name,
        "object": "model",
        "created": status.created_utc_ms // 1000,
        "owned_by": status.version.origin.value,
        "kind": status.kind.value,
        "version": status.version.label,
        "state": status.state.value,
    }


def model_list(statuses: Iterable[ModelStatus]) -> JsonObject:
    """Write every loaded version, and every adapter after them."""
    listed = tuple(statuses)
    data = [model_object(status, model_id(status)) for status in listed]
    data += [adapter_object(adapter) for status in listed for adapter in status.adapters]
    return {"object": "list", "data": data}


def adapter_object(status: AdapterStatus, name: str = "") -> JsonObject:
    """Write one adapter as clients of vLLM know it: an entry of the models, with a parent."""
    adapter = status.adapter
    return {
        "id": name or adapter.name,
        "object": "model",
        "created": status.created_utc_ms // 1000,
        "owned_by": adapter.origin.value,
        "parent": adapter.model.partition("@")[0],
        "version": f"{adapter.model}:{adapter.name}",
        "state": status.state.value,
        "scale": adapter.scale,
    }


def error_object(*, message: str, kind: str, code: str, param: str | None) -> JsonObject:
    """Write an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _reason(reason: FinishReason | None) -> str | None:
    return None if reason is None else reason.value


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is None or math.isfinite(logprob) else LOGPROB_MIN
