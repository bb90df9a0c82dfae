"""What the tests of guessing engines share: requests, answers, and engines to compare.

Weights and cache are float32: with less, a row beside other rows is rounded otherwise than alone,
and a draw that was close falls otherwise, with guesses or without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.domain import (
    Constraint,
    ConstraintKind,
    FinishReason,
    SamplingOptions,
    StopOptions,
    TokenLogprob,
)
from appliance.runtime import wire
from appliance.runtime.draft import DraftLimits
from appliance.runtime.engine import GeneratingEngine
from appliance.runtime.loading import load

CONTEXT_TOKENS = 320
LIMITS = DraftLimits(
    tokens_max=12, streams_max=8, lookback_tokens=2048, ngram_min=2, ngram_max=8, stretch_max=9.0
)
SAMPLED = SamplingOptions(temperature=0.8, top_k=40, top_p=0.95)
SCHEMA = Constraint(
    kind=ConstraintKind.JSON_SCHEMA,
    text=(
        '{"type":"object","properties":{"people":{"type":"array","items":{"enum":["Anna","Karl"]},'
        '"minItems":12,"maxItems":20}},"required":["people"],"additionalProperties":false}'
    ),
)


@dataclass
class Answer:
    """What one choice came to, over all its steps."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list, compare=False)
    finish: FinishReason | None = None

    def take(self, news: wire.News) -> None:
        assert self.finish is None, "news of a choice that had ended"
        self.token_ids.extend(news.token_ids)
        self.text += news.text
        self.logprobs.extend(news.logprobs)
        self.finish = news.finish


@dataclass(frozen=True)
class Ask:
    """A request, without its ticket."""

    prompt: tuple[int, ...]
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(temperature=0.0))
    stop: StopOptions = field(default_factory=lambda: StopOptions(max_tokens=90, ignore_eos=True))
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    seed: int = 7
    n: int = 1

    def submission(self, ticket: int, accepted: tuple[tuple[int, ...], ...] = ()) -> wire.Submit:
        return wire.Submit(
            ticket=ticket,
            prompt_ids=self.prompt,
            n=self.n,
            seed=self.seed,
            sampling=self.sampling,
            stop=self.stop,
            constraint=self.constraint,
            top_logprobs=self.top_logprobs,
            accepted_ids=accepted,
        )


def regex(text: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, text=text)


def engine_of(
    path: Path,
    limits: DraftLimits | None,
    *,
    draft: Path | None = None,
    clock: Callable[[], float] | None = None,
    cells_total: int = 2048,
) -> GeneratingEngine:
    options = wire.EngineOptions(
        path=str(path),
        context_tokens=CONTEXT_TOKENS,
        cells_total=cells_total,
        sequences_max=8,
        batch_tokens=128,
        threads_decode=1,
        threads_prefill=1,
        gpu_layers=0,
        step_ms_while_streaming=300.0,
        step_ms_max=1000.0,
        queue_requests_max=8,
        output_reserve_tokens=16,
        ack_window_steps=16,
        cache_type_k="f32",
        cache_type_v="f32",
        flash_attention="off",
        speculation=limits,
        draft_path="" if draft is None else str(draft),
    )
    engine = load(options, clock or ticking(), lambda _ratio: None).engine
    assert isinstance(engine, GeneratingEngine)
    return engine


def ticking() -> Callable[[], float]:
    now = [0.0]

    def read() -> float:
        now[0] += 1.0
        return now[0]

    return read


def run(engine: GeneratingEngine, *submissions: wire.Submit) -> dict[tuple[int, int], Answer]:
    """Submit and step until idle; returns the answers by ticket and choice."""
    answers: dict[tuple[int, int], Answer] = {}
    for submission in submissions:
        engine.submit(submission)
    while engine.has_work:
        (frame,) = engine.step()
        assert isinstance(frame, wire.Step)
        assert frame.failures == ()
        for news in frame.news:
            answers.setdefault((news.ticket, news.choice), Answer()).take(news)
    return answers


def gauges(engine: GeneratingEngine) -> wire.EngineGauges:
    (frame,) = engine.step()
    assert isinstance(frame, wire.Step)
    return frame.gauges


def prompt(engine: GeneratingEngine, text: str) -> tuple[int, ...]:
    """Spell a text in the model's tokens, the longest first."""
    pieces = engine._submission._vocabulary.pieces  # noqa: SLF001 - a tokenizer of the test's own
    ids = {piece: token_id for token_id, piece in enumerate(pieces) if piece}
    left, found = text.encode(), []
    while left:
        size = next(size for size in range(min(16, len(left)), 0, -1) if left[:size] in ids)
        found.append(ids[left[:size]])
        left = left[size:]
    return tuple(found)


ANY = "[ab]{160}"  # two letters at random: most guesses have a match, half of them are wrong
THREE = SamplingOptions(temperature=0.8, top_p=0.95, logit_bias={70: 60.0, 71: 60.0, 72: 60.0})
STOPS = StopOptions(max_tokens=160, strings=("aabbabb", "bbbbbbb"))
LONG = StopOptions(max_tokens=160)
CASES: dict[str, Ask] = {
    "greedy": Ask(prompt=(), stop=StopOptions(max_tokens=200, ignore_eos=True)),
    "sampled, of three": Ask(
        prompt=(), sampling=THREE, stop=StopOptions(max_tokens=200, ignore_eos=True)
    ),
    "constrained": Ask(prompt=(), sampling=SAMPLED, stop=LONG, constraint=regex(ANY)),
    "penalties": Ask(
        prompt=(),
        sampling=SamplingOptions(
            temperature=0.9, repeat_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.2
        ),
        stop=LONG,
        constraint=regex(ANY),
    ),
    "schema, greedy": Ask(prompt=(), stop=LONG, constraint=SCHEMA),
    "schema, sampled": Ask(prompt=(), sampling=SAMPLED, stop=LONG, constraint=SCHEMA, n=2),
    "stop strings": Ask(prompt=(), sampling=SAMPLED, stop=STOPS, constraint=regex(ANY), n=4),
    "log-probabilities": Ask(
        prompt=(), sampling=SAMPLED, stop=LONG, constraint=regex(ANY), top_logprobs=3
    ),
    "choices": Ask(prompt=(), sampling=SAMPLED, stop=LONG, constraint=regex(ANY), n=6),
    "to the end of the context": Ask(
        prompt=(),
        sampling=SAMPLED,
        stop=StopOptions(max_tokens=None),
        constraint=regex("[ab]{400}"),
    ),
}


def asking(engine: GeneratingEngine, ask: Ask) -> Ask:
    return replace(ask, prompt=prompt(engine, "Name the people in: Anna met Karl. Anna left."))
