"""Hold what a candidate answers to its health pack against what its publisher expects. Pure.

What this room does: one answer against one expectation; all answers, the tokeniser, the distance
from the original and the speed against the pack; the memory against what was stated.
What it knows: answers are drawn greedily, so the same version gives the same answer each time, but
for what another batch or machine moves; the pack says how many must be right.
What it never does: ask, or judge the answers of real requests.

A publisher's regular expression runs here, with Python's `re`, over one answer cut to
`SEARCHED_CHARS`. It is signed, so it is believed to be well meant; one that backtracks without end
would hold up the loop, so `check` belongs into a thread with nothing else to wait for it.
"""

from __future__ import annotations

import json
import re

from appliance.contract.drift import distances, drift
from appliance.contract.release import Expectation, Facts, HealthPack
from appliance.domain import Answer, Loaded, Value

SEARCHED_CHARS = 16_384


class Gate(Value):
    """Whether a candidate passed its checks, and why not."""

    ok: bool
    reason: str


def check(expectation: Expectation, answer: Answer) -> str:
    """Name the first property that an answer lacks; empty: it has all."""
    text = answer.text[:SEARCHED_CHARS]
    if answer.token_count < expectation.tokens_min:
        return f"{answer.token_count} tokens, at least {expectation.tokens_min} are expected"
    if expectation.equals and text.strip() != expectation.equals.strip():
        return "is not the text that is expected"
    if expectation.contains and expectation.contains not in text:
        return "does not contain the text that is expected"
    if expectation.is_json and not _is_json(text):
        return "is no JSON"
    return _unmatched(expectation.matches, text) if expectation.matches else ""


def gate(
    pack: HealthPack,
    facts: Facts,
    loaded: Loaded,
    answers: tuple[Answer | None, ...],
    active_answers: tuple[Answer | None, ...],
) -> Gate:
    """Decide whether a loaded candidate may meet requests.

    answers: one for each prompt, None where it gave none. active_answers: of the active version to
    the same prompts, for the speed; empty where there is none to compare with.
    """
    assert len(answers) == len(pack.prompts), "one answer for each prompt"
    if loaded.tokenizer_sha256 and loaded.tokenizer_sha256 != facts.tokenizer_sha256:
        return Gate(ok=False, reason="its tokeniser is not the one its publisher signed")
    faults = [
        (number, "gave no answer" if answer is None else check(expectation, answer))
        for number, (expectation, answer) in enumerate(
            zip(pack.prompts, answers, strict=True), start=1
        )
    ]
    wrong = [(number, fault) for number, fault in faults if fault]
    right = len(faults) - len(wrong)
    if wrong and right < pack.pass_ratio_min * len(faults):
        number, fault = wrong[0]
        return Gate(
            ok=False, reason=f"{right} of {len(faults)} answers are right; answer {number} {fault}"
        )
    fault = _far(pack, answers) or _slow(pack, answers, active_answers)
    return Gate(ok=not fault, reason=fault or f"{right} of {len(faults)} answers are right")


def overrun(loaded: Loaded, *, stated_bytes: int, slack_bytes: int) -> str:
    """Say by how much a candidate takes more memory than was signed; empty: it does not.

    stated_bytes: its files included, which an engine may copy.
    """
    allowed = stated_bytes + slack_bytes
    if loaded.memory_bytes <= allowed:
        return ""
    return (
        f"it takes {loaded.memory_bytes} bytes of memory without its KV cells, at most {allowed} "
        f"are allowed: {stated_bytes} that its publisher states, and {slack_bytes} more"
    )


def drift_of(pack: HealthPack, answers: tuple[Answer | None, ...]) -> float:
    """Measure how far a candidate's log-probabilities lie from the original's, in nats.

    Infinite where an answer is missing, or nothing is known of the original's.
    """
    return drift(
        distances(
            expectation.likely,
            [
                (token.token_id, {token_id: logprob for token_id, _, logprob in token.top})
                for token in answer.logprobs
            ]
            if answer is not None
            else [],
        )
        for expectation, answer in zip(pack.prompts, answers, strict=True)
        if expectation.likely
    )


def _far(pack: HealthPack, answers: tuple[Answer | None, ...]) -> str:
    if not pack.drift_max:
        return ""
    found = drift_of(pack, answers)
    if found <= pack.drift_max:
        return ""
    return f"it is {found:.3f} nats from the original, at most {pack.drift_max:g} are allowed"


def tokens_per_s(answers: tuple[Answer | None, ...]) -> float:
    """Measure how fast tokens came over all answers; 0.0 where nothing can be said."""
    given = [answer for answer in answers if answer is not None and answer.decode_ms > 0]
    total_ms = sum(answer.decode_ms for answer in given)
    return 1000 * sum(answer.token_count for answer in given) / total_ms if total_ms else 0.0


def _slow(
    pack: HealthPack, answers: tuple[Answer | None, ...], active_answers: tuple[Answer | None, ...]
) -> str:
    usual = tokens_per_s(active_answers)
    if not pack.speed_ratio_min or not active_answers:
        return ""
    speed, floor = tokens_per_s(answers), usual * pack.speed_ratio_min
    if not speed or not usual:
        return "its speed could not be measured against the active version's"
    if speed >= floor:
        return ""
    return f"{speed:.1f} tokens a second, at least {floor:.1f} are asked for"


def _unmatched(pattern: str, text: str) -> str:
    try:
        found = re.search(pattern, text, re.DOTALL)
    except re.error as error:
        return f"can't be held against its expression: {error}"
    return "" if found else "does not match the expression that is expected"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
