"""Hold text to a language from where a trigger has been written: a call, once it is opened.

What this room does: lets every token pass and watches the text for the trigger, then hands over to
the matcher, beginning with what the same token brought behind the trigger.
What it knows: the bytes of each token, control tokens spelt out.
What it never does: mask anything before the trigger: free text costs a search per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from appliance.domain import Trigger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from appliance.runtime.constrain import Matcher


class TriggeredMatcher:
    """The place of one generation before and in its language.

    If what stands behind a trigger can't begin the language, it was no trigger.
    """

    def __init__(
        self,
        matcher: Matcher,
        trigger: Trigger,
        pieces: Sequence[bytes],
        tokenize: Callable[[bytes], list[int]],
    ) -> None:
        """Own this matcher, which stands at the beginning."""
        self._matcher = matcher
        self._pieces = pieces
        self._tokenize = tokenize
        self._opens = trigger.opens.encode()
        self._marks = tuple(self._opens + head.encode() for head in trigger.heads)
        self._kept = max(map(len, self._marks)) - 1
        self._at_start = trigger.at_start
        self._tail = b""
        self._is_on = False

    def allowed(self) -> NDArray[np.bool_] | None:
        """Compute which tokens may come next; None: all of them. Raises as `Matcher.allowed`."""
        return self._matcher.allowed() if self._is_on else None

    def allows(self, token_id: int) -> bool:
        """Tell whether this one token may come next. Raises as `Matcher.allows`."""
        return not self._is_on or self._matcher.allows(token_id)

    def accept(self, token_id: int) -> None:
        """Go on past a token that was allowed. Raises as `Matcher.accept`."""
        if self._is_on:
            self._matcher.accept(token_id)
        elif self._at_start:
            self._watch_start(self._pieces[token_id])
        else:
            self._watch(self._pieces[token_id])

    @property
    def is_complete(self) -> bool:
        """Say whether nothing but an end token may follow."""
        return self._is_on and self._matcher.is_complete

    def _watch(self, piece: bytes) -> None:
        text = self._tail + piece
        for mark in self._marks:
            at = text.find(mark)
            if at >= 0:
                self._begin(text[at + len(self._opens) :])
                break
        self._tail = text[len(text) - min(self._kept, len(text)) :]

    def _watch_start(self, piece: bytes) -> None:
        text = (self._tail + piece).lstrip()
        self._tail = text
        if any(text.startswith(mark) for mark in self._marks):
            self._begin(text[len(self._opens) :])
            self._marks = ()
        else:  # none is left to watch for as soon as another text has begun
            self._marks = tuple(mark for mark in self._marks if mark.startswith(text))
        if not self._marks:
            self._at_start, self._tail = False, b""

    def _begin(self, rest: bytes) -> None:
        self._is_on = self._matcher.accept_all(self._tokenize(rest))
