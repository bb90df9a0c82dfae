"""What a candidate must answer before anybody meets it."""

from __future__ import annotations

import msgspec
import pytest

from appliance.contract.release import Expectation, Facts, HealthPack, Likely
from appliance.domain import Answer, Digest, Loaded, TokenLogprob
from appliance.sync.health import check, gate, overrun, tokens_per_s

FACTS = Facts(
    architecture="llama",
    parameters_count=1,
    quantisation="Q8_0",
    context_train_tokens=1,
    tokenizer_sha256="a" * 64,
)
LOADED = Loaded(digest=Digest("d"), load_ms=1.0, memory_bytes=1, tokenizer_sha256="a" * 64)


def answer(text: str = "four", token_count: int = 4, decode_ms: float = 40.0) -> Answer:
    return Answer(text=text, token_count=token_count, decode_ms=decode_ms)


def expect(**fields: object) -> Expectation:
    return Expectation(prompt="2 + 2?", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expectation", "text", "is_right"),
    [
        (expect(equals="four"), " four\n", True),
        (expect(equals="four"), "four!", False),
        (expect(contains="our"), "four", True),
        (expect(contains="five"), "four", False),
        (expect(matches=r"^f.*r$"), "fo\nur", True),
        (expect(matches=r"\d"), "four", False),
        (expect(matches="("), "four", False),
        (expect(is_json=True), '{"a": 1}', True),
        (expect(is_json=True), "{", False),
        (expect(is_json=True), "[" * 100_000, False),
        (expect(tokens_min=4), "four", True),
        (expect(tokens_min=5), "four", False),
        (expect(contains="f", matches="z"), "four", False),
    ],
)
def test_an_answer_has_all_that_is_expected(
    expectation: Expectation, text: str, *, is_right: bool
) -> None:
    assert (check(expectation, answer(text)) == "") == is_right


def test_a_candidate_passes_with_as_many_right_answers_as_the_pack_asks_for() -> None:
    prompts = (expect(equals="four"), expect(equals="four"), expect(contains="x"))
    answers = (answer(), answer(), answer())
    assert gate(HealthPack(prompts=prompts, pass_ratio_min=0.6), FACTS, LOADED, answers, ()).ok
    refused = gate(HealthPack(prompts=prompts), FACTS, LOADED, answers, ())
    assert not refused.ok
    assert "answer 3" in refused.reason


def test_no_answer_is_a_wrong_answer() -> None:
    pack = HealthPack(prompts=(expect(tokens_min=1),))
    assert not gate(pack, FACTS, LOADED, (None,), ()).ok


def test_another_tokeniser_is_refused() -> None:
    other = Loaded(digest=Digest("d"), load_ms=1.0, memory_bytes=1, tokenizer_sha256="b" * 64)
    assert not gate(HealthPack(), FACTS, other, (), ()).ok
    assert gate(HealthPack(), FACTS, LOADED, (), ()).ok


def test_a_candidate_that_takes_more_than_was_stated_is_refused_with_both_numbers() -> None:
    loaded = Loaded(digest=Digest("d"), load_ms=1.0, memory_bytes=1_500)
    assert overrun(loaded, stated_bytes=1_000, slack_bytes=500) == ""
    reason = overrun(loaded, stated_bytes=1_000, slack_bytes=499)
    assert "takes 1500 bytes" in reason
    assert "at most 1499 are allowed: 1000" in reason


def test_a_candidate_slower_than_its_floor_is_refused() -> None:
    pack = HealthPack(prompts=(expect(tokens_min=1),), speed_ratio_min=0.9)
    active = (answer(decode_ms=40.0),)
    assert gate(pack, FACTS, LOADED, (answer(decode_ms=42.0),), active).ok
    assert not gate(pack, FACTS, LOADED, (answer(decode_ms=80.0),), active).ok
    assert not gate(pack, FACTS, LOADED, (answer(decode_ms=0.0),), active).ok
    assert not gate(pack, FACTS, LOADED, (answer(),), (None,)).ok
    assert gate(pack, FACTS, LOADED, (answer(decode_ms=80.0),), ()).ok


def test_speed_is_counted_over_all_answers() -> None:
    assert tokens_per_s((answer(token_count=10, decode_ms=500.0), None)) == 20.0
    assert tokens_per_s(()) == 0.0


def test_a_candidate_too_far_from_the_original_is_refused_though_it_writes_the_same() -> None:
    likely = Likely(ids=(7, 8), logprobs=(-0.1, -2.5))
    prompts = (expect(equals="four", likely=(likely,)),)
    pack = HealthPack(prompts=prompts, drift_max=0.2)
    token = TokenLogprob(token_id=7, text_bytes=b"four", logprob=-0.1)
    near = msgspec.structs.replace(token, top=((7, b"four", -0.2), (8, b"five", -2.4)))
    far = msgspec.structs.replace(token, top=((7, b"four", -0.2), (8, b"five", -3.5)))
    for top, is_near in ((near, True), (far, False), (token, False)):
        candidate = msgspec.structs.replace(answer(), logprobs=(top,))
        found = gate(pack, FACTS, LOADED, (candidate,), ())
        assert found.ok == is_near
        assert is_near or "from the original" in found.reason
    assert not gate(pack, FACTS, LOADED, (answer(),), ()).ok  # nothing was told of its tokens
    silent = HealthPack(prompts=(*prompts, *prompts), pass_ratio_min=0.5, drift_max=0.2)
    both = (msgspec.structs.replace(answer(), logprobs=(near,)), None)
    assert not gate(silent, FACTS, LOADED, both, ()).ok
