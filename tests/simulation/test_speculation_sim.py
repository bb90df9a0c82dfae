"""Thousands of random texts on random machines: guesses gain where they can and cost next to none.

A trace is made from a seed that a failure prints: a machine (what a step of so many rows takes,
with noise, stairs and other processes' interruptions), streams, and texts of several kinds. What a
stream says does not depend on the guesses, so the same trace without them is one division away.

The bound: over a whole trace, at most 2 % more time than without guesses, and beside that a few
steps, in which a machine unlike the cost model's line shows what it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.draft import DraftLimits
from appliance.runtime.jobs import Job
from appliance.runtime.speculation import Speculation

TRACES_PER_CASE = 60
STEPS = 120
SHARE_LOST_MAX = 0.02
STEPS_LOST_MAX = 8.0
ROWS_MAX = 80
LIMITS = DraftLimits(
    tokens_max=12, streams_max=16, lookback_tokens=1024, ngram_min=2, ngram_max=16, stretch_max=1.25
)
Machine = Callable[[int], float]
Text = Callable[[random.Random], Iterator[int]]


def at_random(rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.randrange(1000)


def repeating(rng: random.Random) -> Iterator[int]:
    phrase = [rng.randrange(1000) for _ in range(rng.randrange(4, 40))]
    while True:
        yield from phrase


def nearly_repeating(rng: random.Random) -> Iterator[int]:
    wrong = rng.choice([0.02, 0.1, 0.3])
    for token_id in repeating(rng):
        yield token_id if rng.random() > wrong else rng.randrange(1000)


def habitual(rng: random.Random) -> Iterator[int]:
    """Follow each token by one of three, the first much oftener: short matches, often wrong."""
    after: dict[int, list[int]] = {}
    token_id = 0
    while True:
        following = after.setdefault(token_id, [rng.randrange(200) for _ in range(3)])
        token_id = following[min(int(rng.expovariate(1.2)), 2)]
        yield token_id


def in_phases(rng: random.Random) -> Iterator[int]:
    said: list[int] = []
    while True:
        size = rng.randrange(20, 120)
        if said and rng.random() < 0.5:
            start = rng.randrange(len(said))
            phase = said[start : start + size]
        else:
            text = rng.choice([at_random, habitual])(rng)
            phase = [next(text) for _ in range(size)]
        said += phase
        yield from phase


def mixed(rng: random.Random) -> Iterator[int]:
    return rng.choice([at_random, repeating, nearly_repeating, habitual, in_phases])(rng)


def memory_bound(rng: random.Random) -> Machine:
    base, row = rng.uniform(5.0, 50.0), rng.uniform(0.05, 0.5)
    return lambda rows: base + row * rows


def compute_bound(rng: random.Random) -> Machine:
    base, row = rng.uniform(0.05, 0.5), rng.uniform(1.0, 10.0)
    return lambda rows: base + row * rows


def with_stairs(rng: random.Random) -> Machine:
    """Let kernels change at some numbers of rows: a jump there, and another slope after it."""
    at = sorted(rng.sample(range(2, 40), 3))
    slopes = [rng.uniform(0.1, 2.0) for _ in range(4)]
    jumps = [rng.uniform(0.0, 3.0) for _ in range(3)]
    base = rng.uniform(0.5, 8.0)

    def step_ms(rows: int) -> float:
        ms, last = base, 0
        for edge, slope, jump in zip([*at, 10_000], slopes, [*jumps, 0.0], strict=True):
            ms += slope * (min(rows, edge) - last) + jump * (rows >= edge)
            if rows <= edge:
                break
            last = edge
        return ms

    return step_ms


def warm_cost(machine: Machine) -> CostModel:
    cost = CostModel()
    for rows in (1, 8, 16):
        cost.observe(StepShape(decode=0, prefill=rows, kv_span=0), machine(rows))
        cost.observe(StepShape(decode=rows, prefill=0, kv_span=0), machine(rows))
    cost.settle()
    return cost


class Trace:
    """One machine, its streams, and what the guesses came to."""

    def __init__(self, rng: random.Random, machine: Machine, text: Text, streams: int) -> None:
        self.rng = rng
        self.machine = machine
        self.cost = warm_cost(machine)
        self.speculation = Speculation(LIMITS, self.cost)
        self.texts = [text(rng) for _ in range(streams)]
        job = Job(ticket=0, prompt=[], max_tokens=None)
        for said in self.texts:
            job.add_choice([next(said) for _ in range(60)])
        self.choices = job.choices
        self.ms = 0.0
        self.plain_ms = 0.0

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
        drafted = sum(len(draft) for draft in drafts)
        assert drafted <= ROWS_MAX - streams
        accepted = sum(self.verify(at, draft) for at, draft in enumerate(drafts))
        true_ms = self.machine(streams + drafted)
        measured_ms = true_ms * self.rng.uniform(0.9, 1.1) * self.rng.choice([1.0] * 49 + [5.0])
        done = StepShape(decode=streams + drafted, prefill=0, kv_span=0)
        self.speculation.observe(done, drafted=drafted, accepted=accepted, step_ms=measured_ms)
        self.cost.observe(done, measured_ms)
        self.ms += true_ms
        self.plain_ms += self.machine(streams) * (streams + accepted) / streams

    def verify(self, at: int, draft: tuple[int, ...]) -> int:
        """Say the next tokens of a stream, as many as were guessed right and one."""
        drawn = []
        for guess in [*draft, -1]:
            assert len(draft) <= LIMITS.tokens_max
            drawn.append(next(self.texts[at]))
            if drawn[-1] != guess:
                break
        self.choices[at].outputs.extend(drawn)
        return len(drawn) - 1

    @property
    def gain(self) -> float:
        return self.plain_ms / self.ms


@pytest.mark.parametrize("machine", [memory_bound, compute_bound, with_stairs])
@pytest.mark.parametrize(
    "text", [at_random, repeating, nearly_repeating, habitual, in_phases, mixed]
)
def test_guesses_never_cost_more_than_a_little(
    machine: Callable[[random.Random], Machine], text: Text
) -> None:
    for seed in range(TRACES_PER_CASE):
        rng = random.Random(f"{machine.__name__} {text.__name__} {seed}")
        streams = rng.choice([1, 1, 2, 4, 8, 16])
        trace = Trace(rng, machine(rng), text, streams).run(STEPS)
        bound_ms = trace.plain_ms * (1 + SHARE_LOST_MAX) + STEPS_LOST_MAX * trace.machine(streams)
        assert trace.ms <= bound_ms, f"seed {seed}: {streams} streams, gain {trace.gain:.3f}"


@pytest.mark.parametrize(("streams", "gain"), [(1, 4.0), (4, 2.0), (16, 1.3)])
def test_a_repeating_text_gains_where_rows_are_cheap(streams: int, gain: float) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        trace = Trace(rng, lambda rows: 10.0 + 0.5 * rows, repeating, streams).run(200)
        assert trace.gain > gain, f"seed {seed}"


@pytest.mark.parametrize("streams", [1, 4, 16])
def test_a_repeating_text_is_left_alone_where_every_row_has_its_price(streams: int) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        trace = Trace(rng, lambda rows: 0.05 + 3.0 * rows, repeating, streams).run(200)
        assert trace.speculation.drafted_total < 40, f"seed {seed}"


def test_guesses_end_by_themselves_when_streams_join_and_come_back_when_they_leave() -> None:
    trace = Trace(random.Random(7), lambda rows: 1.0 + 1.0 * rows, repeating, 16)
    everyone = trace.choices
    drafted = []
    for streams in (1, 16, 1):
        trace.choices = everyone[:streams]
        before = trace.speculation.drafted_total
        trace.run(200)
        drafted.append((trace.speculation.drafted_total - before) / 200 / streams)
    assert drafted[0] > 2.0
    assert drafted[1] < 0.5
    assert drafted[2] > 2.0


def test_a_machine_that_becomes_slow_per_row_turns_guesses_off_again() -> None:
    rng = random.Random(3)
    trace = Trace(rng, lambda rows: 10.0 + 0.5 * rows, habitual, 2).run(200)
    assert trace.gain > 1.1
    trace.machine = lambda rows: 0.5 + 5.0 * rows
    trace.ms = trace.plain_ms = 0.0
    assert trace.run(400).gain > 0.95
    before = trace.speculation.drafted_total
    trace.run(200)
    assert trace.speculation.drafted_total - before < 40
