"""Thousands of random texts, machines and draft models: it gains where it can, and costs little.

A trace is made from a seed that a failure prints: a machine, a draft model that is quicker by some
factor and right as often as it happens to be, streams with prompts it has not read, and texts that
a lookup finds nothing in. What a stream says does not depend on the guesses, so the same trace
without them is one division away. All the time of the draft model counts: guessing, reading, and
guessing in vain.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from appliance.runtime.cost import StepShape
from appliance.runtime.draft import DraftLimits
from appliance.runtime.jobs import UNTOLD, Choice, Job, Plan, Span
from appliance.runtime.speculation import Speculation
from tests.simulation.book_draft import VOCABULARY, BookContext, BookDraft
from tests.simulation.test_speculation_sim import (
    Machine,
    compute_bound,
    memory_bound,
    warm_cost,
    with_stairs,
)

TRACES_PER_CASE = 40
STEPS = 200
SHARE_LOST_MAX = 0.02
STEPS_LOST_MAX = 8.0
ROWS_MAX = 80
LIMITS = DraftLimits(
    tokens_max=12, streams_max=16, lookback_tokens=1024, ngram_min=2, ngram_max=16, stretch_max=1.25
)


class Trace:
    """One machine with a draft model, its streams, and what the guesses came to."""

    def __init__(
        self,
        rng: random.Random,
        machine: Machine,
        *,
        streams: int,
        rate: float,
        share: float,
        prompt: int,
    ) -> None:
        """Let a step of the draft model take `share` of one of the big one's."""
        self.rng = rng
        self.machine = machine
        self.rate = rate
        self.cost = warm_cost(machine)
        context = BookContext(rng, sequences=16, cells=16_384, batch=512)
        context.step_ms = lambda rows: share * machine(rows) * rng.uniform(0.9, 1.1)
        self.draft = BookDraft(rng, self.say, context, context_tokens=4096)
        self.draft.rate = lambda _choice: self.rate
        self.speculation = Speculation(LIMITS, self.cost, self.draft.cache)
        self.choices = []
        for ticket in range(streams):
            job = Job(ticket=ticket, prompt=[rng.randrange(900) for _ in range(prompt)],
                      max_tokens=None)  # fmt: skip
            self.choices.append(job.add_choice([self.text(ticket, 0)]))
        self.ms = self.plain_ms = 0.0
        self.drafted = self.accepted = 0

    def text(self, ticket: int, position: int) -> int:
        return random.Random(ticket * 100_003 + position).randrange(VOCABULARY)

    def say(self, choice: Choice, position: int) -> int:
        return self.text(choice.job.ticket, position - len(choice.job.prompt))

    def run(self, steps: int) -> Trace:
        for _ in range(steps):
            self.step()
        return self

    def step(self) -> None:
        streams = len(self.choices)
        shape = StepShape(decode=streams, prefill=0, kv_span=0)
        drafts = self.speculation.draft(
            self.choices,
            lambda _choice: LIMITS.tokens_max,
            shape,
            rows_max=ROWS_MAX - streams,
            step_ms_max=1000.0,
        )
        told = self.draft.tell(self.plan(shape, drafts))
        spans = told.plan.spans
        drafted = told.plan.drafted
        accepted = sum(self.verify(span) for span in spans)
        true_ms = self.machine(streams + drafted)
        measured_ms = true_ms * self.rng.uniform(0.9, 1.1) * self.rng.choice([1.0] * 49 + [5.0])
        done = StepShape(decode=streams + drafted, prefill=0, kv_span=0)
        self.speculation.observe(
            done,
            drafted=drafted,
            accepted=accepted,
            step_ms=measured_ms + told.draft_ms,
            by_model=told.plan.by_model,
            reading_ms=told.reading_ms,
        )
        self.cost.observe(done, measured_ms)
        self.ms += true_ms + told.draft_ms + told.reading_ms
        self.plain_ms += self.machine(streams) * (streams + accepted) / streams
        self.drafted += drafted
        self.accepted += accepted

    def plan(self, shape: StepShape, drafts: list[tuple[int, ...]]) -> Plan:
        spans, row = [], 0
        for at, (choice, draft) in enumerate(zip(self.choices, drafts, strict=True)):
            by_model = draft[:1] == (UNTOLD,)
            spans.append(Span(choice, at, choice.length - 1, 1, row, draft, by_model))
            row += 1 + len(draft)
        return Plan(
            moves=(), spans=tuple(spans), shape=shape, predicted_ms=0.0, adapter="", started=(),
            exhausted=(), failed=(), readings=self.speculation.readings,
        )  # fmt: skip

    def verify(self, span: Span) -> int:
        """Say the next tokens of a stream, as many as were guessed right and one."""
        choice, kept = span.choice, 0
        for guess in (*span.draft, None):
            choice.outputs.append(self.say(choice, choice.length))
            if choice.outputs[-1] != guess:
                break
            kept += 1
        if span.draft and span.by_model:
            self.speculation.settle(choice, kept=kept, guessed=len(span.draft))
        return kept

    @property
    def gain(self) -> float:
        return self.plain_ms / self.ms


@pytest.mark.parametrize("machine", [memory_bound, compute_bound, with_stairs])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6, 0.8, 0.95])
def test_a_draft_model_never_costs_more_than_a_little(
    machine: Callable[[random.Random], Machine], rate: float
) -> None:
    for seed in range(TRACES_PER_CASE):
        rng = random.Random(f"{machine.__name__} {rate} {seed}")
        streams, share = rng.choice([1, 1, 2, 4, 8, 16]), rng.choice([0.02, 0.1, 0.3, 0.7])
        prompt = rng.choice([1, 40, 400])
        trace = Trace(rng, machine(rng), streams=streams, rate=rate, share=share, prompt=prompt)
        trace.run(STEPS)
        bound_ms = trace.plain_ms * (1 + SHARE_LOST_MAX) + STEPS_LOST_MAX * trace.machine(streams)
        assert trace.ms <= bound_ms, f"seed {seed}: {streams} streams, gain {trace.gain:.3f}"


@pytest.mark.parametrize(
    ("streams", "rate", "gain"), [(1, 0.95, 4.0), (1, 0.7, 1.7), (4, 0.8, 1.7), (8, 0.9, 1.2)]
)
def test_a_good_draft_model_gains_where_rows_are_cheap(
    streams: int, rate: float, gain: float
) -> None:
    for seed in range(10):
        trace = Trace(random.Random(seed), cheap_rows, streams=streams, rate=rate, share=0.05,
                      prompt=40).run(300)  # fmt: skip
        assert trace.gain > gain, f"seed {seed}: {trace.gain:.2f}"


def test_it_ends_by_itself_when_streams_join_and_comes_back_when_they_leave() -> None:
    trace = Trace(random.Random(7), lambda rows: 5.0 + 1.0 * rows, streams=16, rate=0.8,
                  share=0.02, prompt=20)  # fmt: skip
    everyone = trace.choices
    drafted = []
    for streams in (1, 16, 1):
        trace.choices = everyone[:streams]
        before = trace.drafted
        trace.run(200)
        drafted.append((trace.drafted - before) / 200 / streams)
    assert drafted[0] > 2.0
    assert drafted[1] < 0.5
    assert drafted[2] > 2.0


def test_a_draft_model_that_fails_is_left_alone_and_tried_again_later() -> None:
    trace = Trace(random.Random(3), cheap_rows, streams=2, rate=0.85, share=0.1, prompt=20)
    assert trace.run(200).gain > 1.5
    trace.rate = 0.0
    trace.ms = trace.plain_ms = 0.0
    assert trace.run(400).gain > 0.95
    trace.rate = 0.85
    trace.ms = trace.plain_ms = 0.0
    assert trace.run(1500).gain > 1.2


def cheap_rows(rows: int) -> float:
    return 10.0 + 0.3 * rows
