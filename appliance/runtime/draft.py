"""Guess what a choice says next from what it has said: prompt lookup, and how far to trust it.

What this room does: for one choice, finds the place in its own tokens that the present repeats,
offers what followed there as draft, and keeps score of how often such guesses are right.
What it knows: the latest `lookback_tokens` tokens of the choice, its prompt included.
What it never does: decide whether a guess is worth its row (`speculation` does), or touch a model.

The lookup is that of LZ77: each n-gram of `ngram_min` tokens leads to where it was seen last, and
from there to where it was seen before that. Of the places found, the one that agrees with the
present over the most tokens wins (counted up to `ngram_max`; the latest among equals). From then
on a pointer runs along beside the text for as long as the two agree, and the number of tokens they
have agreed over, the match, is what a guess is trusted by: a match of two tokens is a coincidence
in most texts, one of thirty is a copy.

Each token drawn while a pointer runs is one observation of the match it had, whether or not the
guess had been put to the model: the tokens are the same with drafts and without. So a score costs
nothing while drafts are off, and a change of the text is seen without a trial.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

_NONE = -1
_PLACES_MAX = 8  # places compared in one lookup
# Matches of these lengths and above are scored alike, up to the next one.
_CLASSES = (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33)
_MATCH_MAX = _CLASSES[-1]
_CLASS_OF = tuple(bisect_right(_CLASSES, match) - 1 for match in range(_MATCH_MAX + 1))
_FORGETTING = 0.94  # of a choice: half of the weight lies in the last 11 observations of a class
_FORGETTING_ALL = 0.99  # of a model
_TRUST_ALL = 6.0  # observations: what the model's other choices weigh for one choice
_TRUST_START = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftLimits:
    """The bounds that config sets, all in tokens but `streams_max`; stretch_max is a ratio."""

    tokens_max: int
    streams_max: int
    lookback_tokens: int
    ngram_min: int
    ngram_max: int
    stretch_max: float

    def __post_init__(self) -> None:
        """Refuse what config has checked already."""
        assert self.tokens_max >= 1
        assert self.streams_max >= 1
        assert 1 <= self.ngram_min <= self.ngram_max < self.lookback_tokens // 2
        assert self.stretch_max >= 1.0


class Score:
    """How often a guess was right, by the match it was made with; recent ones count more."""

    __slots__ = ("_all", "_chances", "_hits", "_tries")

    def __init__(self, of_all: Score | None = None) -> None:
        """Begin with the score of all choices of the model, or as one that hasn't seen any."""
        self._all = of_all
        self._hits = [0.0] * len(_CLASSES)
        self._tries = [0.0] * len(_CLASSES)
        self._chances: list[float] = []

    def note(self, match: int, *, hit: bool) -> None:
        """Count one guess that was made with this match, here and for all choices."""
        kind = _CLASS_OF[min(match, _MATCH_MAX)]
        forgetting = _FORGETTING if self._all else _FORGETTING_ALL
        self._hits[kind] = self._hits[kind] * forgetting + hit
        self._tries[kind] = self._tries[kind] * forgetting + 1.0
        if self._all:
            self._all.note(match, hit=hit)
        if self._chances:  # those of other classes move with the other choices, but slowly
            self._chances[kind] = self._cautious(kind)

    def chance(self, match: int) -> float:
        """Estimate the probability that a guess with this match is right, with due caution.

        One standard error is taken off: of many guesses the best looking ones are put forward, and
        those are the ones that were only lucky so far.
        """
        if not self._chances:
            self._chances = [self._cautious(kind) for kind in range(len(_CLASSES))]
        return self._chances[_CLASS_OF[match] if match < _MATCH_MAX else -1]

    def _cautious(self, kind: int) -> float:
        chance, weight = self._estimate(kind)
        return max(0.0, chance - math.sqrt(chance * (1.0 - chance) / weight))

    def _estimate(self, kind: int) -> tuple[float, float]:
        if self._all:
            trust, before = _TRUST_ALL, self._all._estimate(kind)[0]  # noqa: SLF001 - a Score too
        else:
            trust, before = _TRUST_START, _CLASSES[kind] / (_CLASSES[kind] + 4.0)
        weight = self._tries[kind] + trust
        return (self._hits[kind] + trust * before) / weight, weight


class Track:
    """The tokens of one choice and the pointer into them. Bounded by `lookback_tokens`.

    `drawn` is for whoever follows the choice: how many of its tokens that were drawn are here.
    """

    __slots__ = (
        "_earlier",
        "_indexed",
        "_latest",
        "_limits",
        "_match",
        "_pointer",
        "_score",
        "_tokens",
        "drawn",
    )

    def __init__(self, prompt: Sequence[int], limits: DraftLimits, of_all: Score) -> None:
        """Begin with the tokens there are; they are indexed by and by (`index`)."""
        self._limits = limits
        self._score = Score(of_all)
        self._tokens = list(prompt[-limits.lookback_tokens // 2 :])
        self._pointer = _NONE
        self._match = 0
        self._indexed = 0
        self._latest: dict[tuple[int, ...], int] = {}
        self._earlier: list[int] = []  # for each indexed token: where its n-gram was before
        self.drawn = 0

    @property
    def is_repeating(self) -> bool:
        """Say whether there is an earlier place that the present goes on from."""
        return self._pointer != _NONE

    def follow(self, token_ids: Sequence[int]) -> None:
        """Take in the tokens that were drawn since, in order."""
        tokens = self._tokens
        for token_id in token_ids:
            if self._pointer != _NONE:
                hit = tokens[self._pointer] == token_id
                self._score.note(self._match, hit=hit)
                self._pointer = self._pointer + 1 if hit else _NONE
                self._match = self._match + 1 if hit else 0
            tokens.append(token_id)
        if len(tokens) > self._limits.lookback_tokens:
            self._cut(len(tokens) - self._limits.lookback_tokens // 2)

    def index(self, tokens_max: int) -> int:
        """Index at most so many tokens more and look the present up; returns how many it were."""
        tokens, size = self._tokens, self._limits.ngram_min
        start = self._indexed
        end = min(len(tokens), start + tokens_max)
        latest, earlier = self._latest, self._earlier
        for at in range(start, end):
            gram = tuple(tokens[max(0, at + 1 - size) : at + 1])
            earlier.append(latest.get(gram, _NONE))
            latest[gram] = at
        self._indexed = end
        if self._pointer == _NONE and end == len(tokens) and end >= size:
            self._seek()
        return end - start

    def guess(self, count: int) -> list[int]:
        """Read on from the pointer: what follows if the text goes on repeating; [] without one.

        Where the pointer reaches the present it reads its own guesses, so a period repeats.
        """
        if self._pointer == _NONE:
            return []
        tokens, start = self._tokens, self._pointer
        guessed = tokens[start : start + count]
        period = len(guessed)
        while len(guessed) < count:
            guessed.append(guessed[len(guessed) - period])
        return guessed

    def chances(self, count: int, least: float) -> list[float]:
        """Estimate, for each of the next guesses, that it and all before it are right.

        Ends before the first chance that is below `least`.
        """
        if self._pointer == _NONE:
            return []
        chances: list[float] = []
        chance = 1.0
        for match in range(self._match, self._match + count):
            chance *= self._score.chance(match)
            if chance < least:
                break
            chances.append(chance)
        return chances

    def _seek(self) -> None:
        """Point behind the earlier place that agrees with the present over the most tokens."""
        tokens, limits = self._tokens, self._limits
        last = len(tokens) - 1
        place = self._earlier[last]
        best = 0
        for _ in range(_PLACES_MAX):
            if place == _NONE or best == limits.ngram_max:
                break
            match = limits.ngram_min
            while (
                match < limits.ngram_max
                and match <= place
                and tokens[place - match] == tokens[last - match]
            ):
                match += 1
            if match > best:
                best = match
                self._pointer = place + 1
            place = self._earlier[place]
        self._match = best

    def _cut(self, count: int) -> None:
        """Drop the oldest tokens. What is left is indexed anew, by and by."""
        del self._tokens[:count]
        self._pointer = self._pointer - count if self._pointer >= count else _NONE
        self._match = self._match if self._pointer != _NONE else 0
        self._indexed = 0
        self._latest.clear()
        self._earlier.clear()
