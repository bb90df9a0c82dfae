"""Answers are the same, token for token, whether or not the engine guesses on.

Weights and cache are float32: with less, a row beside other rows is rounded otherwise than alone,
and a draw that was close falls otherwise, with guesses or without.

The clock of these engines ticks once a reading, so a row costs nothing and every guess pays: the
most guesses there can be, most of them wrong where a text does not repeat.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from appliance.domain import StopOptions
from appliance.errors import DecodeFailed
from appliance.runtime import wire
from appliance.runtime.constrain import Matcher
from appliance.runtime.engine import GeneratingEngine
from appliance.runtime.llama import Context, DecodeCode
from tests.unit.runtime.guessing import CASES, LIMITS, asking, engine_of, gauges, run
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
