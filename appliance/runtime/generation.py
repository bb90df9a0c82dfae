"""Carry one choice from its first draw to its end: sampler, constraint, text and stops together.

What this room does: decides, for each drawn token, what it shows and whether it ends the choice;
rebuilds all of that state from tokens already accepted (a replay).
What it knows: the request's options and the vocabulary.
What it never does: schedule, or know where a token's logits came from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from appliance.domain import FinishReason, TokenLogprob
from appliance.runtime.sampler import Sampler, log_softmax_top
from appliance.runtime.text import TextAssembler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.runtime.constrain import Matcher
    from appliance.runtime.triggered import TriggeredMatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one draw came to. token_id None: nothing was added, the choice only ended."""

    token_id: int | None
    text: str
    logprob: TokenLogprob | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The bytes of each token: as shown, and with control tokens spelt out; and the end tokens."""

    shown: Sequence[bytes]
    spelt: Sequence[bytes]
    end_ids: frozenset[int]


class Generation:
    """One choice being written. Freed by `close`."""

    def __init__(
        self,
        *,
        sampler: Sampler,
        matcher: Matcher | TriggeredMatcher | None,
        pieces: Pieces,
        stop_strings: Sequence[str],
        stop_ids: frozenset[int],
        max_tokens: int | None,
        top_logprobs: int | None,
        shown_ids: Collection[int] = (),
    ) -> None:
        """Begin before the first token.

        Args:
            sampler: draws.
            matcher: holds the text to a language.
            pieces: the vocabulary's.
            stop_strings: end it, and are not shown.
            stop_ids: end it; includes the end tokens if those do.
            max_tokens: end it.
            top_logprobs: how many alternatives of each token are told.
            shown_ids: control tokens whose text is shown, since it is read for calls.
        """
        self._sampler = sampler
        self._matcher = matcher
        self._pieces = pieces
        self._text = TextAssembler(stop_strings)
        self._stop_ids = stop_ids
        self._left = max_tokens
        self._top_logprobs = top_logprobs
        self._is_plain = sampler.is_plain
        self._shown_ids = frozenset(shown_ids)

    def replay(self, token_ids: Sequence[int]) -> None:
        """Accept tokens again that were sent already; shows nothing.

        Raises:
            DecodeFailed: the constraint does not allow them.
        """
        for token_id in token_ids:
            self._accept(token_id)

    def ended(self) -> FinishReason | None:
        """Say whether no token may be drawn any more, and why."""
        if self._text.is_stopped or (self._matcher is not None and self._matcher.is_complete):
            return FinishReason.STOP
        return FinishReason.LENGTH if self._left is not None and self._left <= 0 else None

    def draw(self, row: NDArray[np.float32], position: int, best: int, *, is_last: bool) -> Drawn:
        """Draw one token from its raw logits and say what follows from it.

        Args:
            row: (n_vocab,) float32, not changed.
            position: of the token in the sequence.
            best: the row's largest index: a greedy draw, where it is allowed.
            is_last: the context has room for this token and no further one.

        Raises:
            DecodeFailed: nothing may be drawn, or the constraint's parser gave up.
        """
        ended = self.ended()
        if ended is not None:
            return self._end(ended)
        matcher = self._matcher
        if self._is_plain and (matcher is None or matcher.allows(best)):
            token_id = best
        else:
            mask = matcher.allowed() if matcher is not None else None
            token_id = self._sampler.draw(row, mask, position)
        if token_id in self._stop_ids:
            return self._end(FinishReason.STOP)
        logprob = None
        if self._top_logprobs is not None:
            logprob = log_softmax_top(row, token_id, self._top_logprobs, self._pieces.spelt)
        text = self._accept(token_id)
        finish = self.ended() or (FinishReason.LENGTH if is_last else None)
        if finish is not None:
            text += self._text.finish()
        return Drawn(token_id=token_id, text=text, logprob=logprob, finish=finish)

    def cut_off(self) -> Drawn:
        """End it because there is no room left, without a draw."""
        return self._end(FinishReason.LENGTH)

    def close(self) -> None:
        """Free what the sampler holds."""
        self._sampler.close()

    def _accept(self, token_id: int) -> str:
        self._sampler.accept(token_id)
        if self._matcher is not None:
            self._matcher.accept(token_id)
        if self._left is not None:
            self._left -= 1
        pieces = self._pieces
        is_spelt = token_id in self._shown_ids
        return self._text.feed((pieces.spelt if is_spelt else pieces.shown)[token_id])

    def _end(self, finish: FinishReason) -> Drawn:
        return Drawn(token_id=None, text=self._text.finish(), finish=finish)
