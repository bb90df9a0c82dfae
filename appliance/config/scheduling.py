"""Hold the keys of scheduling: what is shared, who goes first, and what pressure may cost.

What this room does: one table of the file as a struct.
What it knows: each key's default, unit and bounds.
What it never does: read anything.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from appliance.config.section import Section

_GIB = 1024**3


class Scheduling(Section):
    """Who gets the engine's time and cells. A sequence is one answer being generated."""

    prefix_sequences: Annotated[
        int,
        Meta(
            ge=0,
            le=255,
            description=(
                "Finished sequences kept so that later prompts can take over what they begin "
                "with; 0: none, and no prefix is ever shared."
            ),
        ),
    ] = 64
    prefix_share: Annotated[
        float,
        Meta(ge=0, le=0.95, description="Most KV cells that finished sequences hold, of all."),
    ] = 0.5
    prefix_tokens_min: Annotated[
        int, Meta(ge=1, le=65_536, description="Shortest prefix worth taking over, in tokens.")
    ] = 16
    normal_share: Annotated[
        float,
        Meta(
            ge=0.01,
            le=1,
            description="Time that the class normal gets beside interactive requests, of all.",
        ),
    ] = 0.3
    batch_share: Annotated[
        float,
        Meta(
            ge=0.01, le=1, description="Time that the class batch gets beside higher ones, of all."
        ),
    ] = 0.1
    ageing_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="Wait after which a request counts as one class higher when it starts.",
        ),
    ] = 30.0
    turn_ms: Annotated[
        float,
        Meta(
            ge=1,
            le=60_000,
            description="Longest that one client's output rows make a step beside others, in ms.",
        ),
    ] = 100.0
    adapter_turn_steps: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Steps that one adapter may run while others wait."),
    ] = 8
    swap_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1024 * _GIB,
            description="Host memory of one model for sequences that had to make way, in bytes.",
        ),
    ] = 256 * 1024 * 1024
    draft: Annotated[
        Literal["ngram", "off"],
        Meta(
            description=(
                "What guesses a stream's next tokens, for one step to check many: ngram, what "
                "followed the same tokens earlier in the stream; off. Answers are the same."
            )
        ),
    ] = "ngram"
    draft_tokens_max: Annotated[
        int, Meta(ge=1, le=64, description="Most tokens guessed for one stream in one step.")
    ] = 16
    draft_streams_max: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Most streams decoding together with which tokens are still guessed.",
        ),
    ] = 16
    draft_stretch_max: Annotated[
        float,
        Meta(
            ge=1,
            le=10,
            description="Most that guesses lengthen a step for a stream without any, as a factor.",
        ),
    ] = 1.25
    draft_lookback_tokens: Annotated[
        int,
        Meta(
            ge=128,
            le=1_048_576,
            description="Latest tokens of a stream in which earlier occurrences are looked up.",
        ),
    ] = 8192
    draft_ngram_min: Annotated[
        int,
        Meta(ge=1, le=32, description="Tokens that an earlier place must have in common."),
    ] = 2
    draft_ngram_max: Annotated[
        int,
        Meta(ge=1, le=32, description="Tokens that places are compared over, to take the best."),
    ] = 16
