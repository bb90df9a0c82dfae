"""Answers are the same, token for token, whatever a draft model guesses.

Time is told by the decodes themselves: the big model's step takes 10 ms, the draft model's 1, and a
row next to nothing, so that guessing pays wherever some of it is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.domain import StopOptions
from appliance.errors import ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.engine import GeneratingEngine
from appliance.runtime.llama import Context, DecodeCode, EngineLost
from tests.unit.runtime.guessing import (
    CASES,
    LIMITS,
    asking,
    engine_of,
    gauges,
    run,
)
from tools.gguf_writer import (
    SHAPES,
    Architecture,
    Quantisation,
    byte_vocabulary,
    silent_layers,
    write_llama,
    write_other,
)
from tools.gguf_writer.vocabulary import Vocabulary

STEP_MS, DRAFT_MS, ROW_MS = 10.0, 1.0, 0.02
CHOOSY = replace(LIMITS, ngram_min=30, ngram_max=31)  # hardly ever is there a match to look up


class Machine:
    """A clock, and the contexts of one engine in the order in which they first decoded."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.contexts: list[Context] = []
        self.codes: list[tuple[int, DecodeCode]] = []  # (which context, what it returns next)
        self.decode = Context.decode
        self.rows = [0, 0]

    def read(self) -> float:
        self.now_ms += 0.001
        return self.now_ms

    def step(self, context: Context, count: int) -> DecodeCode:
        if context not in self.contexts:
            self.contexts.append(context)
        which = self.contexts.index(context)
        is_small = 2 - which <= count <= LIMITS.tokens_max + 1  # neither a prompt nor a row alone
        if self.codes and self.codes[0][0] == which and is_small:
            return self.codes.pop(0)[1]
        if which < len(self.rows):
            self.now_ms += (STEP_MS, DRAFT_MS)[which] + ROW_MS * count
            self.rows[which] += count
        return self.decode(context, count)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("drafts")
    made = {name: directory / f"{name}.gguf" for name in ("model", "stranger")}
    for seed, path in enumerate(made.values()):
        write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.F32, seed=seed)
    return made


@pytest.fixture(scope="module")
def plain(files: dict[str, Path]) -> GeneratingEngine:
    return engine_of(files["model"], None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(
        Context,
        "decode",
        lambda context, count: made.step(context, count),  # noqa: PLW0108 - a method, to be bound
    )
    return made


@pytest.fixture
def guessing(files: dict[str, Path], machine: Machine) -> Iterator[GeneratingEngine]:
    """Guess with a draft model that always knows: it is the model itself."""
    engine = engine_of(files["model"], CHOOSY, draft=files["model"], clock=machine.read)
    yield engine
    assert not engine.has_work
    assert engine._draft_model is not None  # noqa: SLF001
    engine._draft_model.check_idle()  # noqa: SLF001


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_the_same_with_a_draft_model(
    plain: GeneratingEngine, guessing: GeneratingEngine, case: str
) -> None:
    run(guessing, asking(plain, CASES["greedy"]).submission(1))  # so that its guesses are believed
    before = gauges(guessing)
    ask = asking(plain, CASES[case])
    expected = run(plain, ask.submission(1))
    assert run(guessing, ask.submission(1)) == expected
    assert gauges(guessing).model_drafted_total > before.model_drafted_total


def test_a_draft_model_that_is_the_model_is_right_and_gains(
    plain: GeneratingEngine, guessing: GeneratingEngine
) -> None:
    run(guessing, asking(plain, CASES["greedy"]).submission(1))
    after = gauges(guessing)
    assert after.model_draft_accepted_total == after.model_drafted_total > 100
    assert after.draft_gain > 2.0


def test_a_draft_model_that_knows_nothing_is_not_asked_for_long(
    plain: GeneratingEngine, files: dict[str, Path], machine: Machine
) -> None:
    engine = engine_of(files["model"], CHOOSY, draft=files["stranger"], clock=machine.read)
    ask = asking(plain, CASES["greedy"])
    assert run(engine, ask.submission(1)) == run(plain, ask.submission(1))
    after = gauges(engine)
    assert 0 < after.model_drafted_total < 40
    assert after.draft_gain > 0.95


def test_a_model_of_silent_layers_says_what_its_first_ones_say(
    machine: Machine, tmp_path: Path
) -> None:
    large, small = tmp_path / "large.gguf", tmp_path / "small.gguf"
    shape, vocabulary = SHAPES["tiny"], byte_vocabulary()
    write_llama(large, shape, vocabulary, Quantisation.F32, alter=silent_layers(1))
    write_llama(small, replace(shape, layers=1), vocabulary, Quantisation.F32)
    engine = engine_of(large, CHOOSY, draft=small, clock=machine.read)
    run(engine, asking(engine, CASES["greedy"]).submission(1))
    after = gauges(engine)
    # The draft model's cache holds half floats: a near tie falls otherwise, and ends that draft.
    assert after.model_draft_accepted_total > 0.85 * after.model_drafted_total > 100


def test_lookup_and_draft_model_guess_side_by_side(
    plain: GeneratingEngine, files: dict[str, Path], machine: Machine
) -> None:
    engine = engine_of(files["model"], LIMITS, draft=files["model"], clock=machine.read)
    for case in ("greedy", "schema, sampled", "choices"):
        ask = asking(plain, CASES[case])
        assert run(engine, ask.submission(1)) == run(plain, ask.submission(1))
    after = gauges(engine)
    assert 0 < after.model_drafted_total < after.drafted_total


def test_many_at_once_are_the_same_and_nobody_guesses_for_more_than_the_bound(
    plain: GeneratingEngine, files: dict[str, Path], machine: Machine
) -> None:
    limits = replace(CHOOSY, streams_max=3)
    engine = engine_of(files["model"], limits, draft=files["model"], clock=machine.read)
    submissions = many(plain, (20, 40, 60, 80, 100))
    assert run(engine, *submissions) == run(plain, *submissions)
    assert gauges(engine).model_drafted_total > 0


def test_requests_that_make_way_for_each_other_are_the_same(
    plain: GeneratingEngine, files: dict[str, Path], machine: Machine
) -> None:
    engine = engine_of(
        files["model"], CHOOSY, draft=files["model"], clock=machine.read, cells_total=330
    )
    submissions = many(plain, (140, 150, 160))
    assert run(engine, *submissions) == run(plain, *submissions)
    after = gauges(engine)
    assert after.preemptions_total > 0
    assert after.model_drafted_total > 0


def test_a_cancelled_request_leaves_nothing_in_the_draft_model(
    plain: GeneratingEngine, guessing: GeneratingEngine
) -> None:
    first, second = many(plain, (200, 200), "greedy")
    guessing.submit(first)
    guessing.submit(second)
    while guessing.has_work and gauges(guessing).model_drafted_total < 30:
        pass
    guessing.cancel(first.ticket)
    assert {ticket for ticket, _ in run(guessing)} == {second.ticket}


@pytest.mark.parametrize("sent", [1, 30, 100])
def test_a_replay_goes_on_where_it_was_lost(
    plain: GeneratingEngine, guessing: GeneratingEngine, sent: int
) -> None:
    ask = asking(plain, CASES["penalties"])
    whole = run(plain, ask.submission(1))[1, 0]
    accepted = tuple(whole.token_ids[:sent])
    rest = run(guessing, ask.submission(1, (accepted,)))[1, 0]
    assert [*accepted, *rest.token_ids] == whole.token_ids


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("code", [DecodeCode.NO_ROOM, DecodeCode.ABORTED, DecodeCode.INVALID])
def test_a_step_of_either_model_that_did_not_happen_changes_nothing(
    plain: GeneratingEngine,
    guessing: GeneratingEngine,
    machine: Machine,
    which: int,
    code: DecodeCode,
) -> None:
    ask = asking(plain, CASES["constrained"])
    expected = run(plain, ask.submission(1))
    machine.codes = [(which, code), (which, code)]
    assert run(guessing, ask.submission(1)) == expected
    assert machine.codes == []


def test_a_draft_model_whose_context_is_lost_ends_the_engine(
    plain: GeneratingEngine, files: dict[str, Path], machine: Machine
) -> None:
    engine = engine_of(files["model"], CHOOSY, draft=files["model"], clock=machine.read)
    machine.codes = [(1, DecodeCode.FATAL)]
    with pytest.raises(EngineLost, match="draft model"):
        run(engine, asking(plain, CASES["greedy"]).submission(1))


# --- what can't be a draft model -----------------------------------------------------------------


def test_padding_at_the_end_of_a_vocabulary_is_no_difference(
    plain: GeneratingEngine, files: dict[str, Path], machine: Machine, tmp_path: Path
) -> None:
    padded = tmp_path / "padded.gguf"
    write_llama(padded, SHAPES["tiny"], byte_vocabulary(infill=True), Quantisation.F32)
    engine = engine_of(files["model"], CHOOSY, draft=padded, clock=machine.read)
    ask = asking(plain, CASES["greedy"])
    assert run(engine, ask.submission(1)) == run(plain, ask.submission(1))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "the file does not exist"),
        ("cut off", "it is not a whole model"),
        ("other words", "token 260 is b'other' in its vocabulary, and b'er' in the model's"),
        ("other ends", "the tokens that end an answer are others than the model's"),
        ("larger", "its vocabulary has 559 tokens, and the model's 287"),
        ("window", "what it remembers can't be cut"),
    ],
)
def test_what_can_not_guess_for_a_model_is_refused_with_the_names_of_both(
    files: dict[str, Path], tmp_path: Path, kind: str, reason: str
) -> None:
    path = tmp_path / "draft.gguf"
    _write(path, kind)
    with pytest.raises(ModelUnloadable) as error:
        engine_of(files["model"], LIMITS, draft=path)
    assert error.value.path == str(path)
    assert str(files["model"]) in error.value.reason
    assert reason in error.value.reason


def test_a_model_that_can_not_be_cut_takes_no_draft_model(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "window.gguf"
    _write(path, "window")
    with pytest.raises(ModelUnloadable, match="what that one remembers can't be cut"):
        engine_of(path, LIMITS, draft=files["model"])


def _write(path: Path, kind: str) -> None:
    vocabulary = byte_vocabulary()
    if kind == "window":
        write_other(path, Architecture.SLIDING_WINDOW, vocabulary)
        return
    if kind == "missing":
        return
    if kind == "other words":
        vocabulary = _changed(vocabulary, "tokenizer.ggml.tokens", 260, "other")
    elif kind == "other ends":
        vocabulary = _changed(vocabulary, "tokenizer.ggml.eos_token_id", 0, 70)
    elif kind == "larger":
        vocabulary = _padded(vocabulary, 272)
    write_llama(path, SHAPES["tiny"], vocabulary, Quantisation.F32)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-4096])


def _changed(vocabulary: Vocabulary, key: str, at: int, value: str | int) -> Vocabulary:
    """Give another value to a key, or to the item at `at` of its list."""
    fields = []
    for field in vocabulary.fields:
        changed: Any = value
        if isinstance(field.value, list):
            changed = [*field.value[:at], value, *field.value[at + 1 :]]
        fields.append(replace(field, value=changed) if field.key == key else field)
    return replace(vocabulary, fields=tuple(fields))


def _padded(vocabulary: Vocabulary, count: int) -> Vocabulary:
    more: dict[str, list[Any]] = {
        "tokenizer.ggml.tokens": [f"[pad{number}]" for number in range(count)],
        "tokenizer.ggml.token_type": [5] * count,  # unused
    }
    fields = []
    for field in vocabulary.fields:
        longer: Any = field.value
        if field.key in more:
            assert isinstance(longer, list)
            longer = longer + more[field.key]
        fields.append(replace(field, value=longer))
    return replace(vocabulary, size=vocabulary.size + count, fields=tuple(fields))


def many(
    engine: GeneratingEngine, sizes: tuple[int, ...], case: str = "sampled, of three"
) -> list[wire.Submit]:
    """Ask for answers of these lengths, with tickets from 0."""
    return [
        asking(engine, replace(CASES[case], seed=at, stop=_as_long_as(size))).submission(at)
        for at, size in enumerate(sizes)
    ]


def _as_long_as(size: int) -> StopOptions:
    return StopOptions(max_tokens=size, ignore_eos=True)
