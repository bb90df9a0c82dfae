"""Turn llama-server's JSON for filling in the middle into the domain, and what comes into its JSON.

What this room does: the body of /infill; its whole answer, and its chunks.
What it knows: llama-server's names beside our own (n_predict, repeat_last_n, seed -1), and which of
its parameters have no effect here: they are named in the header of what was ignored. Options that
are not given have our defaults, not llama-server's.
What it never does: I/O, or cut off what is too long: that is refused.
"""

from __future__ import annotations

from appliance.api.json_body import convert, drop, members_of, refuse
from appliance.api.openai import Asked, sampling_of, stop_of
from appliance.api.openai_caller import priority_of, user_of
from appliance.api.openai_chunks import Whole
from appliance.api.openai_formats import constraint_of
from appliance.api.openai_shapes import REFUSED_ANY, SamplingBody, Shape
from appliance.domain import (
    Delta,
    Event,
    FinishReason,
    GenerateRequest,
    InfillFile,
    InfillPrompt,
    JsonObject,
    RequestId,
    Timings,
    Usage,
)
from appliance.errors import InvalidRequest

_IGNORED = frozenset(
    {
        "cache_prompt",
        "id_slot",
        "n_cache_reuse",
        "n_indent",
        "n_keep",
        "response_fields",
        "samplers",
        "t_max_predict_ms",
        "t_max_prompt_ms",
        "timings_per_token",
    }
)
_ALL = -1  # llama-server: no limit, and any seed
_S = 1000.0


class ExtraBody(Shape):
    """A file, or a piece of one, that may help."""

    text: str
    filename: str | None = None


class InfillBody(SamplingBody, kw_only=True):
    """POST /infill."""

    input_prefix: str
    input_suffix: str
    model: str = ""
    input_extra: list[ExtraBody] | None = None
    prompt: str | None = None
    n_predict: int | None = None
    repeat_last_n: int | None = None


def read_infill(body: bytes, request_id: RequestId) -> Asked:
    """Read the body.

    Raises:
        InvalidRequest: names the field that is missing, unknown, wrong, or contradicts another.
    """
    members = members_of(body)
    refuse(members, REFUSED_ANY)
    ignored = drop(members, _IGNORED)
    if members.get("seed") == _ALL:
        del members["seed"]
    if "repeat_last_n" in members:
        members.setdefault("penalty_last_n", members["repeat_last_n"])
    asked = convert(members, InfillBody)
    if asked.n not in (None, 1):
        raise InvalidRequest(field="n", reason="must be 1 here")
    if asked.stream_options is not None:
        raise InvalidRequest(field="stream_options", reason="the last chunk has the usage here")
    request = GenerateRequest(
        request_id=request_id,
        model=asked.model,
        # What is typed already stands before the gap (llama-server does the same).
        prompt=InfillPrompt(
            prefix=asked.input_prefix + (asked.prompt or ""),
            suffix=asked.input_suffix,
            files=tuple(
                InfillFile(text=extra.text, name=extra.filename or "")
                for extra in asked.input_extra or ()
            ),
        ),
        sampling=sampling_of(asked),
        stop=stop_of(asked, _output_tokens(asked)),
        constraint=constraint_of(asked),
        priority=priority_of(asked),
        adapter=asked.adapter or "",
        cache_salt=asked.cache_salt or "",
    )
    return Asked(
        requests=(request,),
        stream=bool(asked.stream),
        include_usage=False,
        ignored=tuple(sorted(ignored)),
        user=user_of(asked.user, asked.safety_identifier),
        timeout_s=asked.timeout,
    )


def infill_answer(whole: Whole) -> JsonObject:
    """Write the whole answer; call after Final."""
    return _last(whole, "".join(whole.parts[0].text))


class InfillChunks:
    """Write the chunks of one answer."""

    def __init__(self) -> None:
        self._whole = Whole(1)
        self._tokens = 0

    def turn(self, _request: int, event: Event) -> list[JsonObject]:
        """Write the chunks of one event."""
        if not isinstance(event, Delta):
            self._whole.take(event)
            return []
        self._tokens += len(event.token_ids)
        if not event.text:
            return []
        return [
            {
                "index": 0,
                "content": event.text,
                "stop": False,
                "tokens_predicted": self._tokens,
            }
        ]

    def last(self) -> list[JsonObject]:
        """Write what follows Final."""
        return [_last(self._whole, "")]


def _last(whole: Whole, content: str) -> JsonObject:
    assert whole.accepted is not None
    usage = whole.usage
    limited = whole.parts[0].finish_reason is FinishReason.LENGTH
    return {
        "index": 0,
        "content": content,
        "stop": True,
        "stop_type": "limit" if limited else "eos",
        "model": whole.accepted.version,
        "seed": whole.accepted.seed,
        "tokens_predicted": usage.completion_tokens,
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_cached": usage.cached_tokens,
        "truncated": False,
        "timings": _timings(whole.timings, usage),
    }


def _timings(timings: Timings, usage: Usage) -> JsonObject:
    prompt_n = usage.prompt_tokens - usage.cached_tokens
    prompt_ms = max(0.0, timings.first_token_ms - timings.queue_ms)
    predicted_ms = max(0.0, timings.total_ms - timings.first_token_ms)
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_second": prompt_n / prompt_ms * _S if prompt_ms else 0.0,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_second": usage.completion_tokens / predicted_ms * _S
        if predicted_ms
        else 0.0,
    }


def _output_tokens(asked: InfillBody) -> int | None:
    given = asked.n_predict if asked.n_predict != _ALL else None
    if given is not None and asked.max_tokens not in (None, given):
        reason = f"is {given} and contradicts 'max_tokens', {asked.max_tokens}"
        raise InvalidRequest(field="n_predict", reason=reason)
    if given is not None and given < 0:
        raise InvalidRequest(field="n_predict", reason="must be -1 or not negative")
    return asked.max_tokens if given is None else given
