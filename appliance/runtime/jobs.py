"""Name what the scheduler works with: jobs, their choices, and the plan of a step.

What this room does: the state of one request while it waits and runs, and the values that pass
between the scheduler and the engine.
What it knows: how a choice's tokens lie: the prompt, then what was drawn.
What it never does: decide anything (`scheduler` does), or touch the engine.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from appliance.domain import Priority
from appliance.errors import ApplianceError
from appliance.runtime.cost import StepShape
from appliance.runtime.draft import Track
from appliance.runtime.fairness import Party
from appliance.runtime.foresight import Acceptance

UNTOLD = -1  # in the place of a guess that the draft model is yet to make


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The bounds that config sets. Sizes in tokens or cells, times in milliseconds.

    parked_max, parked_cells_max: finished sequences kept for their prefixes, 0 where prefixes
    can't be shared. normal_share, batch_share: of the time of steps with higher classes in them.
    swap_bytes_max: host memory for preempted sequences, of cell_bytes a token.
    """

    context_tokens: int
    cells_total: int
    sequences_max: int
    batch_tokens: int
    queue_requests_max: int
    output_reserve_tokens: int
    step_ms_while_streaming: float
    step_ms_max: float
    overtakes_max: int = 16
    parked_max: int = 0
    parked_cells_max: int = 0
    prefix_tokens_min: int = 16
    normal_share: float = 0.3
    batch_share: float = 0.1
    ageing_ms: float = 30_000.0
    turn_ms: float = 100.0
    adapter_turn_steps: int = 8
    swap_bytes_max: int = 0
    cell_bytes: int = 0


@dataclass(slots=True, eq=False)
class Choice:
    """One answer being generated. `evaluated` counts its tokens that lie in the cache.

    swapped: how many of its tokens lie in host memory instead, as `state`. last_ms: when the last
    step with a row of it was planned.
    track: what its next tokens are guessed from, None while nothing is guessed. acceptance: how
    often a draft model guessed them.
    """

    job: Job
    index: int
    outputs: list[int]
    seq_id: int = -1
    evaluated: int = 0
    is_ended: bool = False
    swapped: int = 0
    state: int = -1
    last_ms: float = 0.0
    track: Track | None = None
    acceptance: Acceptance | None = None

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
        """Slice its tokens by position."""
        size = len(self.job.prompt)
        if start >= size:
            return self.outputs[start - size : start - size + count]
        if start + count <= size:
            return self.job.prompt[start : start + count]
        return [*self.job.prompt[start:], *self.outputs[: start + count - size]]


@dataclass(slots=True, eq=False)
class Job:
    """One request. `max_tokens` None: as far as the context goes.

    cache_key: whose prefixes it may share. is_pin: evaluated for its prefix, which then stays.
    cached: prompt tokens that it did not have to evaluate when it first started.
    """

    ticket: int
    prompt: Sequence[int]
    max_tokens: int | None
    deadline_ms: float | None = None
    client: str = ""
    weight: float = 1.0
    priority: Priority = Priority.NORMAL
    adapter: str = ""
    cache_key: str = ""
    is_pin: bool = False
    choices: list[Choice] = field(default_factory=list)
    order: int = -1
    submitted_ms: float = 0.0
    overtaken: int = 0
    displaced: int = 0
    started_ms: float = -1.0
    is_forked: bool = False
    prompt_reported: int = 0
    cached: int = 0

    def add_choice(self, accepted: Sequence[int] = (), *, is_ended: bool = False) -> Choice:
        """Add the next choice, with the tokens that it has already (a replay)."""
        choice = Choice(self, len(self.choices), list(accepted), is_ended=is_ended)
        self.choices.append(choice)
        return choice

    @property
    def party(self) -> Party:
        """Name whose time it takes."""
        return Party(self.priority, self.client)

    @property
    def live(self) -> list[Choice]:
        """List the choices that are not complete, by index."""
        return [choice for choice in self.choices if not choice.is_ended]

    def may_draw(self, choice: Choice) -> int:
        """Count the tokens this choice may still draw by its own limit."""
        limit = 2**31 if self.max_tokens is None else self.max_tokens
        return max(0, limit - len(choice.outputs))

    def decoding(self) -> list[Choice]:
        """List the choices that need exactly one row: also a prompt's last token, left alone."""
        if not self.is_forked:
            leader = self.live[0]
            return [leader] if not leader.outputs and leader.pending == 1 else []
        return [choice for choice in self.live if choice.pending == 1]

    def prefilling(self) -> list[tuple[Choice, int]]:
        """List the choices that need more rows, each with how many until its next boundary."""
        if not self.is_forked:
            leader = self.live[0]
            pending = len(self.prompt) - leader.evaluated
            return [] if self.decoding() else [(leader, pending)]
        return [(choice, choice.pending) for choice in self.live if choice.pending > 1]


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one choice in a step; `row` is its logits row, -1 for none.

    The guesses of `draft` follow its one token, with the logits rows after its own. by_model: they
    are a draft model's, UNTOLD until it has made them.
    """

    choice: Choice
    seq_id: int
    start: int
    count: int
    row: int
    draft: tuple[int, ...] = ()
    by_model: bool = False

    @property
    def rows(self) -> int:
        """Count its rows in the batch."""
        return self.count + len(self.draft)

    @property
    def row_last(self) -> int:
        """Find the logits row of its last guess, `row` without guesses."""
        return self.row + len(self.draft)


class MoveKind(enum.Enum):
    """What is done to a sequence between steps."""

    REMOVE = "remove"  # empty it
    COPY = "copy"  # let it share the first `tokens` of `source`; moves no data
    SAVE = "save"  # keep its state in host memory, as `state`
    TAKE_BACK = "take_back"  # restore `state`, which is then gone
    RESTORE = "restore"  # restore `state`, which stays, and keep the first `tokens` of it
    FORGET = "forget"  # drop `state`


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One act on a sequence. They are done in the order of the plan, before its spans."""

    kind: MoveKind
    seq_id: int = -1
    source: int = -1
    tokens: int = 0
    state: int = -1
    ticket: int = -1  # whose sequence it is, where something is restored


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The next step. Its moves come first, also when it has no spans.

    All its spans run with one adapter. `started` jobs begin for the first time, with `cached`
    prompt tokens each. `exhausted` choices ended because the cells are full. `failed` jobs ended
    by their deadline. `readings`: tokens of choices that the draft model evaluates to guess later.
    """

    moves: tuple[Move, ...]
    spans: tuple[Span, ...]
    shape: StepShape
    predicted_ms: float
    adapter: str
    started: tuple[Job, ...]
    exhausted: tuple[Choice, ...]
    failed: tuple[tuple[Job, ApplianceError], ...]
    readings: tuple[tuple[Choice, int], ...] = ()

    @property
    def singles(self) -> int:
        """Count the spans of decode rows, which come first."""
        return self.shape.decode - self.drafted

    @property
    def drafted(self) -> int:
        """Count the rows that are guesses."""
        return sum(len(span.draft) for span in self.spans)

    @property
    def by_model(self) -> int:
        """Count the guesses that are the draft model's."""
        return sum(len(span.draft) for span in self.spans if span.by_model)

    def told(self, drafts: Sequence[tuple[int, ...]]) -> Plan:
        """Put in what the draft model guessed, perhaps less than was planned: one for each span."""
        spans, row = [], 0
        for span, draft in zip(self.spans, drafts, strict=True):
            has_row = span.row >= 0
            spans.append(replace(span, draft=draft, row=row if has_row else -1))
            row += has_row + len(draft)
        fewer = self.drafted - sum(map(len, drafts))
        shape = StepShape(
            decode=self.shape.decode - fewer,
            prefill=self.shape.prefill,
            kv_span=self.shape.kv_span - fewer,
        )
        return replace(self, spans=tuple(spans), shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What a decoded step leads to: copy `forks` (source, target), then draw (choice, span).

    Each choice is drawn from the row of its span, and from the rows of those guesses that its draws
    make true; `Scheduler.settle` is told how many those were.
    """

    forks: tuple[tuple[int, int], ...]
    draws: tuple[tuple[Choice, Span], ...]
    prefills: tuple[tuple[Job, int], ...]  # prompt tokens done
