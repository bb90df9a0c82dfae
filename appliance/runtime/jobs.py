"""Name what the scheduler works with: jobs, their choices, and the plan of a step.

What this room does: the state of one request while it waits and runs, and the values that pass
between the scheduler and the engine.
What it knows: how a choice's tokens lie: the prompt, then what was drawn.
What it never does: decide anything (`scheduler` does), or touch the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.errors import ApplianceError
from appliance.runtime.cost import StepShape


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The bounds that config sets. Sizes in tokens or cells, times in milliseconds."""

    context_tokens: int
    cells_total: int
    sequences_max: int
    batch_tokens: int
    queue_requests_max: int
    output_reserve_tokens: int
    step_ms_while_streaming: float
    step_ms_max: float
    overtakes_max: int = 16


@dataclass(slots=True, eq=False)
class Choice:
    """One answer being generated. `evaluated` counts its tokens that lie in the cache."""

    job: Job
    index: int
    outputs: list[int]
    seq_id: int = -1
    evaluated: int = 0
    is_ended: bool = False

    @property
    def length(self) -> int:
        """Count its tokens, prompt and drawn."""
        return len(self.job.prompt) + len(self.outputs)

    @property
    def pending(self) -> int:
        """Count its tokens that the cache does not hold yet."""
        return len(self.job.prompt) + len(self.outputs) - self.evaluated

    def token_at(self, position: int) -> int:
        """Read one of its tokens by position."""
        size = len(self.job.prompt)
        return self.job.prompt[position] if position < size else self.outputs[position - size]

    def tokens(self, start: int, count: int) -> Sequence[int]:
        """Slice its tokens by position; a slice never lies across the end of the prompt."""
        size = len(self.job.prompt)
        if start < size:
            return self.job.prompt[start : start + count]
        return self.outputs[start - size : start - size + count]


@dataclass(slots=True, eq=False)
class Job:
    """One request. `max_tokens` None: as far as the context goes."""

    ticket: int
    prompt: Sequence[int]
    max_tokens: int | None
    deadline_ms: float | None = None
    choices: list[Choice] = field(default_factory=list)
    order: int = -1
    overtaken: int = 0
    started_ms: float = -1.0
    is_forked: bool = False
    prompt_reported: int = 0

    def add_choice(self, accepted: Sequence[int] = (), *, is_ended: bool = False) -> Choice:
        """Add the next choice, with the tokens that it has already (a replay)."""
        choice = Choice(self, len(self.choices), list(accepted), is_ended=is_ended)
        self.choices.append(choice)
        return choice

    @property
    def live(self) -> list[Choice]:
        """List the choices that are not complete, by index."""
        return [choice for choice in self.choices if not choice.is_ended]

    def may_draw(self, choice: Choice) -> int:
        """Count the tokens this choice may still draw by its own limit."""
        limit = 2**31 if self.max_tokens is None else self.max_tokens
        return max(0, limit - len(choice.outputs))


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one choice in a step; `row` is its logits row, -1 for none."""

    choice: Choice
    seq_id: int
    start: int
    count: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The next step. `removed` sequences are emptied before it, also when it has no spans.

    `exhausted` choices ended because the cells are full. `failed` jobs ended by their deadline.
    """

    spans: tuple[Span, ...]
    shape: StepShape
    predicted_ms: float
    removed: tuple[int, ...]
    started: tuple[int, ...]
    exhausted: tuple[Choice, ...]
    failed: tuple[tuple[Job, ApplianceError], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What a decoded step leads to: copy `forks` (source, target), then draw (choice, row)."""

    forks: tuple[tuple[int, int], ...]
    draws: tuple[tuple[Choice, int], ...]
    prefills: tuple[tuple[int, int, int], ...]  # ticket, tokens done, tokens in all
