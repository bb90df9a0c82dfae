"""Turn OpenAI's JSON into requests of the domain, strictly.

What this room does: decoding a body; naming the field that is wrong and, if it is unknown, the
nearest known one; the meaning of each parameter in the domain.
What it knows: `openai_shapes`. A parameter is honoured, refused, or (OpenAI's own that mean nothing
here) accepted and named in `ignored`; nothing is dropped in silence.
What it never does: I/O, limits of the operator (`generate`), or answers (`openai_answers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from appliance.api.json_body import convert, drop, members_of, refuse
from appliance.api.openai_caller import priority_of, user_of
from appliance.api.openai_chat import messages_of, tool_choice_of, tools_of
from appliance.api.openai_formats import constraint_of
from appliance.api.openai_shapes import (
    IGNORED_CHAT,
    REFUSED_ANY,
    REFUSED_CHAT,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    SamplingBody,
)
from appliance.domain import (
    SEED_MAX,
    ChatPrompt,
    EmbedRequest,
    GenerateRequest,
    InfillPrompt,
    OutputOptions,
    RequestId,
    SamplingOptions,
    StopOptions,
    TextPrompt,
    TokenPrompt,
    ToolChoiceMode,
)
from appliance.errors import InvalidRequest

PROMPTS_MAX = 64
COMPLETION_TOKENS_DEFAULT = 16  # OpenAI's own for the legacy endpoint
_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a generating body asks for. One request, or for completions one per prompt, in order.

    says_tier: the body names a service_tier, so the answer says which one served it.
    """

    requests: tuple[GenerateRequest, ...]
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    include_progress: bool = False
    resumable: bool = False
    user: str = ""
    says_tier: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsAsked:
    """What an embeddings body asks for."""

    request: EmbedRequest
    base64: bool
    dimensions: int | None
    user: str
    timeout_s: float | None


# --- the three endpoints --------------------------------------------------------------------------


def read_chat(body: bytes, request_id: RequestId) -> Asked:
    """Read the body of POST /v1/chat/completions.

    Raises:
        InvalidRequest: names the field that is missing, unknown, wrong, or contradicts another.
        SchemaUnsupported: a constraint of a kind that is not served.
    """
    members = members_of(body)
    refuse(members, REFUSED_CHAT)
    ignored = drop(members, IGNORED_CHAT)
    chat = convert(members, ChatBody)
    tools = tools_of(chat)
    choice = tool_choice_of(chat, tools)
    constraint = constraint_of(chat)
    if constraint is not None and choice.mode in (ToolChoiceMode.REQUIRED, ToolChoiceMode.NAMED):
        raise InvalidRequest(
            field="response_format", reason="contradicts a 'tool_choice' that demands a call"
        )
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise InvalidRequest(field="modalities", reason="only ['text'] is served here")
    request = GenerateRequest(
        request_id=request_id,
        model=chat.model,
        prompt=ChatPrompt(messages=messages_of(chat), tools=tools, tool_choice=choice),
        sampling=sampling_of(chat),
        stop=stop_of(chat, _output_tokens(chat)),
        output=OutputOptions(n=_n(chat), top_logprobs=_chat_logprobs(chat)),
        constraint=constraint,
        priority=priority_of(chat),
        adapter=chat.adapter or "",
        cache_salt=chat.cache_salt or "",
    )
    if chat.modalities is not None:
        ignored.append("modalities")
    if chat.parallel_tool_calls is not None and not tools:
        ignored.append("parallel_tool_calls")
    return Asked(
        requests=(request,),
        stream=bool(chat.stream),
        include_usage=_include_usage(chat, ignored),
        ignored=tuple(sorted(ignored)),
        user=user_of(chat.user, chat.safety_identifier),
        says_tier=chat.service_tier is not None,
        include_progress=_include_progress(chat),
        resumable=_resumable(chat),
        timeout_s=chat.timeout,
    )


def read_completion(body: bytes, request_id: RequestId) -> Asked:
    """Read the body of POST /v1/completions. See `read_chat` for what is raised."""
    members = members_of(body)
    refuse(members, REFUSED_ANY)
    asked = convert(members, CompletionBody)
    ignored: list[str] = []
    if asked.best_of is not None and asked.best_of != _n(asked):
        raise InvalidRequest(field="best_of", reason="must be equal to 'n' if it is given")
    prompts = _with_suffix(_inputs("prompt", asked.prompt), asked.suffix)
    if len(prompts) > PROMPTS_MAX:
        raise InvalidRequest(
            field="prompt", reason=f"has {len(prompts)} prompts; the limit is {PROMPTS_MAX}"
        )
    constraint = constraint_of(asked)
    tokens = COMPLETION_TOKENS_DEFAULT if asked.max_tokens is None else asked.max_tokens
    requests = tuple(
        GenerateRequest(
            request_id=RequestId(request_id if len(prompts) == 1 else f"{request_id}-{index}"),
            model=asked.model,
            prompt=prompt,
            sampling=sampling_of(asked),
            stop=stop_of(asked, tokens),
            output=OutputOptions(n=_n(asked), top_logprobs=asked.logprobs, echo=bool(asked.echo)),
            priority=priority_of(asked),
            adapter=asked.adapter or "",
            cache_salt=asked.cache_salt or "",
            constraint=constraint,
        )
        for index, prompt in enumerate(prompts)
    )
    return Asked(
        requests=requests,
        stream=bool(asked.stream),
        include_usage=_include_usage(asked, ignored),
        ignored=tuple(ignored),
        user=user_of(asked.user, asked.safety_identifier),
        says_tier=asked.service_tier is not None,
        include_progress=_include_progress(asked),
        resumable=_resumable(asked),
        timeout_s=asked.timeout,
    )


def read_embeddings(body: bytes, request_id: RequestId) -> EmbeddingsAsked:
    """Read the body of POST /v1/embeddings. See `read_chat` for what is raised."""
    asked = convert(members_of(body), EmbeddingBody)
    if asked.encoding_format not in (None, "float", "base64"):
        raise InvalidRequest(field="encoding_format", reason="must be 'float' or 'base64'")
    return EmbeddingsAsked(
        request=EmbedRequest(
            request_id=request_id, model=asked.model, inputs=_inputs("input", asked.input)
        ),
        base64=asked.encoding_format == "base64",
        dimensions=asked.dimensions,
        user=user_of(asked.user, None),
        timeout_s=asked.timeout,
    )


# --- parameters -----------------------------------------------------------------------------------


def sampling_of(body: SamplingBody) -> SamplingOptions:
    """Read how tokens are drawn."""
    given: dict[str, Any] = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "frequency_penalty",
            "presence_penalty",
            "top_k",
            "min_p",
            "typical_p",
            "repeat_penalty",
            "penalty_last_n",
        )
        if (value := getattr(body, name)) is not None
    }
    if body.seed is not None and not 0 <= body.seed <= SEED_MAX:
        raise InvalidRequest(field="seed", reason=f"must be from 0 to {SEED_MAX}")
    return SamplingOptions(**given, seed=body.seed, logit_bias=_logit_bias(body.logit_bias))


def _logit_bias(given: dict[str, float] | None) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= len(str(2**31))):
            raise InvalidRequest(
                field="logit_bias", reason=f"'{key[:_SHOWN_CHARS]}' is not a token id"
            )
        biases[int(key)] = bias
    return biases


def stop_of(body: SamplingBody, max_tokens: int | None) -> StopOptions:
    """Read when generation ends."""
    strings = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return StopOptions(
        max_tokens=max_tokens,
        strings=strings,
        token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
    )


def _output_tokens(chat: ChatBody) -> int | None:
    old, new = chat.max_tokens, chat.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            field="max_tokens", reason=f"is {old} and contradicts 'max_completion_tokens', {new}"
        )
    return old if new is None else new


def _n(body: SamplingBody) -> int:
    return 1 if body.n is None else body.n


def _chat_logprobs(chat: ChatBody) -> int | None:
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequest(field="top_logprobs", reason="needs 'logprobs' to be true")
    return (chat.top_logprobs or 0) if chat.logprobs else None


def _include_usage(body: SamplingBody, ignored: list[str]) -> bool:
    if body.stream_options is None:
        return False
    if not body.stream:
        raise InvalidRequest(field="stream_options", reason="needs 'stream' to be true")
    if body.stream_options.include_obfuscation is not None:
        ignored.append("stream_options.include_obfuscation")
    return bool(body.stream_options.include_usage)


def _include_progress(body: SamplingBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_progress)


def _with_suffix(
    prompts: tuple[TextPrompt | TokenPrompt, ...], suffix: str | None
) -> tuple[TextPrompt | TokenPrompt | InfillPrompt, ...]:
    """Put the suffix after each prompt: what is wanted then stands between them."""
    if not suffix:
        return prompts
    texts = [prompt.text for prompt in prompts if isinstance(prompt, TextPrompt)]
    if len(texts) != len(prompts):
        raise InvalidRequest(field="suffix", reason="needs the prompt as text, not as tokens")
    return tuple(InfillPrompt(prefix=text, suffix=suffix) for text in texts)


def _resumable(body: SamplingBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.resumable)


def _inputs(
    field: str, given: str | list[str | int | list[int]] | None
) -> tuple[TextPrompt | TokenPrompt, ...]:
    """Read a text, a list of texts, a token list or a list of token lists; one prompt for each."""
    if given is None:
        raise InvalidRequest(field=field, reason="is missing")
    if isinstance(given, str):
        return (TextPrompt(text=given),)
    if not given:
        raise InvalidRequest(field=field, reason="is empty")
    kinds = {type(item) for item in given}
    if len(kinds) != 1:
        raise InvalidRequest(field=field, reason="must not mix texts, tokens and token lists")
    if kinds == {str}:
        return tuple(TextPrompt(text=text) for text in cast("list[str]", given))
    if kinds == {int}:
        return (TokenPrompt(token_ids=tuple(cast("list[int]", given))),)
    return tuple(TokenPrompt(token_ids=tuple(ids)) for ids in cast("list[list[int]]", given))
