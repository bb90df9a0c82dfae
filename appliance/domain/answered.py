"""Say what comes of a request: events in order, and the one end.

What this room does: the events of a generation, usage and timings, embeddings, ranks.
What it knows: a request ends in one Final, or in one ApplianceError instead.
What it never does: hold a text longer than its event.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from appliance.domain.asked import Priority, RequestId, ToolCall
from appliance.domain.value import Value


class FinishReason(enum.Enum):
    """Why a choice ended well. Everything else is an ApplianceError."""

    STOP = "stop"  # end of turn, a stop string or a stop token
    LENGTH = "length"  # max_tokens, or the context is full
    TOOL_CALLS = "tool_calls"


class TokenLogprob(Value):
    """The natural-log probability of one drawn token, before any sampling option.

    `top` holds (token id, bytes, logprob), best first. `text_bytes` may be part of a character.
    """

    token_id: int
    text_bytes: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


class Usage(Value):
    """Tokens of a request: evaluated for the prompt, drawn over all choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Accepted(Value, tag="accepted"):
    """The first event: the request holds a ticket on a worker. `seed` is the resolved one.

    It comes again, before anything is answered, if another version takes over.
    """

    request_id: RequestId
    version: str
    seed: int
    prompt_tokens: int
    priority: Priority = Priority.NORMAL


class Progress(Value, tag="progress"):
    """How far a long prompt has come, in tokens; sent at most once a step.

    cached_tokens: of those done, taken from a prompt computed before.
    """

    prompt_tokens_done: int
    prompt_tokens_total: int
    cached_tokens: int = 0


class Delta(Value, tag="delta"):
    """More of one choice. `text` is whole characters; the tokens are those accepted since.

    Text may lag behind its tokens while it could still become a stop string or half a character.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class ToolCallMade(Value, tag="tool_call"):
    """One whole call of a tool by one choice; `index` counts the calls of that choice from 0."""

    choice: int
    index: int
    call: ToolCall


class ChoiceEnd(Value, tag="choice_end"):
    """One choice is complete; others of the same request may go on."""

    choice: int
    finish_reason: FinishReason


class Timings(Value):
    """Durations of one request in ms; the queue ends when the first prompt token is planned."""

    queue_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


class Final(Value, tag="final"):
    """The last event of a request that ended well; exactly one, or exactly one error instead."""

    usage: Usage
    timings: Timings
    finish_reasons: tuple[FinishReason, ...]


Event: TypeAlias = Accepted | Progress | Delta | ToolCallMade | ChoiceEnd | Final


class EmbedResult(Value):
    """Vectors as little-endian float32 bytes, in the order of the inputs; each `size` long."""

    version: str
    size: int
    vectors: tuple[bytes, ...]
    prompt_tokens: int


class RankedDocument(Value):
    """One document by its index in the request, and what the model's head says of it.

    The score is the model's own: for most a logit, of which only the order means something; for
    some a probability.
    """

    index: int
    score: float


class RerankResult(Value):
    """Documents by falling score; of equal ones the earlier first."""

    version: str
    ranked: tuple[RankedDocument, ...]
    prompt_tokens: int
