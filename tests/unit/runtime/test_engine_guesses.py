"""Answers are the same, token for token, whether or not the engine guesses on.

Weights and cache are float32: with less, a row beside other rows is rounded otherwise than alone,
and a draw that was close falls otherwise, with guesses or without.

The clock of these engines ticks once a reading, so a row costs nothing and every guess pays: the
most guesses there can be, most of them wrong where a text does not repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from appliance.domain import (
    Constraint,
    ConstraintKind,
    FinishReason,
    SamplingOptions,
    StopOptions,
    TokenLogprob,
)
from appliance.errors import DecodeFailed
from appliance.runtime import wire
from appliance.runtime.constrain import Matcher
from appliance.runtime.draft import DraftLimits
from appliance.runtime.engine import GeneratingEngine
from appliance.runtime.llama import Context, DecodeCode
from appliance.runtime.loading import load
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def engine_of(path: Path, limits: DraftLimits | None) -> GeneratingEngine:
    options = wire.EngineOptions(
        path=str(path),
        context_tokens=CONTEXT_TOKENS,
        cells_total=2048,
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
    )
    engine = load(options, ticking(), lambda _ratio: None).engine
    assert isinstance(engine, GeneratingEngine)
    return engine


def ticking() -> Callable[[], float]:
    now = [0.0]

    def read() -> float:
        now[0] += 1.0
        return now[0]

    return read


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("guesses") / "tiny.gguf"
    write_llama(made, SHAPES["tiny"], byte_vocabulary(), Quantisation.F32)
    return made


@pytest.fixture(scope="module")
def plain(path: Path) -> GeneratingEngine:
    return engine_of(path, None)


@pytest.fixture(scope="module")
def guessing(path: Path) -> GeneratingEngine:
    return engine_of(path, LIMITS)


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


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_the_same_with_guesses(
    plain: GeneratingEngine, guessing: GeneratingEngine, case: str
) -> None:
    ask = asking(plain, CASES[case])
    before = gauges(guessing)
    expected = run(plain, ask.submission(1))
    answers = run(guessing, ask.submission(1))
    assert answers == expected
    for key, answer in answers.items():
        # Not to the last bit: kernels for other numbers of rows add up in another order.
        logprobs = [one.logprob for one in expected[key].logprobs]
        assert [one.logprob for one in answer.logprobs] == pytest.approx(logprobs, abs=1e-3)
        assert len(answer.logprobs) == (0 if ask.top_logprobs is None else len(answer.token_ids))
    after = gauges(guessing)
    accepted = after.draft_accepted_total - before.draft_accepted_total
    assert 0 < accepted < after.drafted_total - before.drafted_total


def test_an_answer_may_end_at_any_token(
    plain: GeneratingEngine, guessing: GeneratingEngine
) -> None:
    for max_tokens in range(1, 40, 2):
        stop = StopOptions(max_tokens=max_tokens)
        ask = asking(plain, replace(CASES["constrained"], stop=stop))
        answers = run(guessing, ask.submission(1))
        assert len(answers[1, 0].token_ids) == max_tokens
        assert answers == run(plain, ask.submission(1))


def test_many_at_once_are_the_same_with_guesses(
    plain: GeneratingEngine, guessing: GeneratingEngine
) -> None:
    asks = [
        asking(plain, replace(CASES["constrained"], seed=seed, stop=StopOptions(max_tokens=size)))
        for seed, size in ((1, 20), (2, 40), (3, 60), (4, 80), (5, 100))
    ]
    submissions = [ask.submission(number) for number, ask in enumerate(asks)]
    assert run(guessing, *submissions) == run(plain, *submissions)


@pytest.mark.parametrize("case", ["constrained", "penalties", "stop strings", "schema, sampled"])
def test_a_replay_goes_on_with_guesses_where_it_was_lost(
    plain: GeneratingEngine, guessing: GeneratingEngine, case: str
) -> None:
    ask = asking(plain, replace(CASES[case], n=1))
    whole = run(plain, ask.submission(1))[1, 0]
    for sent in (1, 6, len(whole.token_ids) // 2, len(whole.token_ids) - 2):
        accepted = tuple(whole.token_ids[:sent])
        rest = run(guessing, ask.submission(1, (accepted,)))[1, 0]
        assert [*accepted, *rest.token_ids] == whole.token_ids
        assert whole.text.endswith(rest.text)
        assert rest.finish is whole.finish


@pytest.mark.parametrize("code", [DecodeCode.NO_ROOM, DecodeCode.ABORTED, DecodeCode.INVALID])
def test_a_step_with_guesses_that_did_not_happen_changes_nothing(
    plain: GeneratingEngine,
    guessing: GeneratingEngine,
    monkeypatch: pytest.MonkeyPatch,
    code: DecodeCode,
) -> None:
    ask = asking(plain, CASES["constrained"])
    expected = run(plain, ask.submission(1))
    decode = Context.decode
    refused: list[int] = []

    def refuse_some(context: Context, count: int) -> DecodeCode:
        if 4 < count < 14 and len(refused) < 3:  # neither a prompt nor a row alone
            refused.append(count)
            return code
        return decode(context, count)

    monkeypatch.setattr(Context, "decode", refuse_some)
    assert run(guessing, ask.submission(1)) == expected
    assert len(refused) == 3


def test_a_constraint_that_gives_up_ends_its_job_after_what_was_drawn(
    guessing: GeneratingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = asking(guessing, CASES["constrained"])
    allowed, calls = Matcher.allowed, [0]

    def give_up(matcher: Matcher) -> NDArray[np.bool_]:
        calls[0] += 1
        if calls[0] > 100:
            raise DecodeFailed(reason="gave up")
        return allowed(matcher)

    monkeypatch.setattr(Matcher, "allowed", give_up)
    guessing.submit(ask.submission(1))
    tokens = 0
    failures: list[wire.Failure] = []
    while guessing.has_work:
        (frame,) = guessing.step()
        assert isinstance(frame, wire.Step)
        tokens += sum(len(news.token_ids) for news in frame.news)
        failures += frame.failures
    assert [failure.code for failure in failures] == ["DECODE_FAILED"]
    assert tokens == 100


def asking(engine: GeneratingEngine, ask: Ask) -> Ask:
    return replace(ask, prompt=prompt(engine, "Name the people in: Anna met Karl. Anna left."))
