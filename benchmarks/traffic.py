"""Describe a load and what came of it.

What this room does: parts of alike streams; every request drawn from the seed, never one twice; the
times of each request. The words that the client's process and those who order it share.
What it knows: no protocol and no server.
What it never does: send, or measure. Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Some alike streams of a load.

    It begins with the load, or when a request of the part `after` has had `after_tokens` tokens.
    It ends with its last request; with the part `until`, what still runs is broken off.
    """

    name: str = "all"
    streams: int = 1
    requests: int = 1  # of each stream
    prompt_tokens: int = 0
    shared_tokens: int = 0  # of them, at the beginning: the same in every request of the part
    output_tokens: int
    after: str = ""
    after_tokens: int = 1
    until: str = ""
    every_s: float = 0.0  # each stream begins so much later than the one before it
    within_s: float = 0.0  # a request is broken off then; 0: never
    ignore_eos: bool = True
    chats: tuple[str, ...] = ()  # what a user says, in turn, instead of drawn token ids
    schemas: tuple[dict[str, Any], ...] = ()  # the output's JSON schema, in turn
    body: dict[str, Any] = {}  # into every REST request


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. `extra` goes into every REST request, for what only one server knows."""

    way: str  # "rest" or "grpc"
    target: str  # http://HOST:PORT, or unix:PATH
    parts: tuple[Part, ...]
    first_token_id: int  # prompts are drawn from this id ...
    last_token_id: int  # ... to this one
    seed: int
    timeout_s: float
    may_fail: bool = False  # a failed request is an answer; else it ends the load
    extra: dict[str, Any] = {}


class Timed(msgspec.Struct, kw_only=True):
    """One request: when it was sent, and when its deltas came, in seconds after that."""

    part: str
    number: int = 0  # in its part, as it was drawn
    sent_s: float  # after the beginning of the load
    arrivals_s: list[float]
    total_s: float = 0.0
    output_tokens: int = 0
    text: str = ""
    finish: str = ""  # the finish reason; empty if the request did not end by itself
    error: str = ""  # what the server said

    @property
    def is_whole(self) -> bool:
        """Say whether it ended well."""
        return bool(self.finish) and not self.error


class Report(msgspec.Struct, kw_only=True):
    """One load: all its requests."""

    wall_s: float
    client_cpu_s: float
    requests: list[Timed]

    def of(self, part: str) -> list[Timed]:
        """List the requests of one part."""
        return [one for one in self.requests if one.part == part]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request to send: token ids, or what a user says."""

    part: Part
    number: int
    token_ids: list[int]
    chat: str = ""
    schema: dict[str, Any] | None = None


class Event(msgspec.Struct, frozen=True):
    """What one message of a server brought. `tokens` is the request's sum, where it is told."""

    text: str = ""
    tokens: int = 0
    finish: str = ""


class RefusedError(Exception):
    """The server answered a request with an error."""


def asked(load: Load) -> dict[str, list[list[Asked]]]:
    """Draw every request: part → stream → its requests. The same seed draws the same."""
    rng = np.random.default_rng(load.seed)

    def draw(count: int) -> list[int]:
        ids = rng.integers(load.first_token_id, load.last_token_id, count, endpoint=True)
        drawn: list[int] = ids.tolist()
        return drawn

    found: dict[str, list[list[Asked]]] = {}
    for part in load.parts:
        shared = draw(part.shared_tokens)
        own = 0 if part.chats else part.prompt_tokens - part.shared_tokens
        found[part.name] = [
            [
                Asked(
                    part=part,
                    number=at,
                    token_ids=shared + draw(own),
                    chat=part.chats[at % len(part.chats)] if part.chats else "",
                    schema=part.schemas[at % len(part.schemas)] if part.schemas else None,
                )
                for at in range(stream, part.streams * part.requests, part.streams)
            ]
            for stream in range(part.streams)
        ]
    return found
