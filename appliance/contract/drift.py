"""Measure how far a model's log-probabilities lie from those of the original. Pure.

What this room does: one number for a set of answers, in nats: the mean distance of the
log-probabilities of what the original thought likely, over all tokens that both wrote alike.
What it knows: both answered greedily, so up to the first token that differs, and there, both saw
the same text. A token that the candidate does not name among its likeliest counts as if it were
the least of them: the distance is then at least so much.
What it never does: judge; the bar is signed with the release.

Greedy answers alone are too blunt: a model whose weights are 5 % noise may write the same text. The
distance grows with the error of the weights, whatever it comes from (docs/adr/0023).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from appliance.contract.release import Likely

NOTHING = math.inf  # no token could be compared: as far as can be


def distances(
    original: Sequence[Likely], answered: Sequence[tuple[int, Mapping[int, float]]]
) -> list[float]:
    """List the distances of one answer, one for each token and each that was likely there.

    answered: of each token that was written, its id, and the log-probabilities of the likeliest.
    An answer that ended before the original did lacks what it did not write.
    """
    found = []
    for likely, (token_id, logprobs) in zip(original, answered, strict=False):
        least = min(logprobs.values(), default=-math.inf)
        for wanted, logprob in zip(likely.ids, likely.logprobs, strict=True):
            found.append(abs(logprob - logprobs.get(wanted, min(least, logprob))))
        if token_id != likely.ids[0]:
            break
    return found


def drift(answers: Iterable[list[float]]) -> float:
    """Average the distances of all answers; `NOTHING` where one answer or all have none."""
    every = list(answers)
    flat = [distance for answer in every for distance in answer]
    if not flat or not all(every):
        return NOTHING
    return sum(flat) / len(flat)
