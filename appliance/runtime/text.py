"""Turn the bytes of tokens into text that may be shown.

What this room does: whole characters out of bytes, and the end at a stop string.
What it knows: a token may hold a part of a character, and a stop string may lie across tokens.
What it never does: show half a character, show a part of a stop string, or take back what it
has shown.

Bytes that can't become UTF-8 are shown as U+FFFD as soon as that is certain; a character still
unfinished at the end becomes one U+FFFD.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_DECODER = codecs.getincrementaldecoder("utf-8")


class TextAssembler:
    """The text of one generation: what it returns, joined.

    The same tokens in the same order give the same returns, which makes a replay seamless.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Stop before the first of these strings; none of them is empty."""
        self._stops = tuple(stops)
        self._decoder = _DECODER(errors="replace")
        self._held = ""
        self.is_stopped = False

    def feed(self, piece: bytes) -> str:
        """Take one token's bytes; returns what may be shown now. After a stop: nothing more."""
        if self.is_stopped:
            return ""
        text = self._decoder.decode(piece)
        if not self._stops:
            return text
        return self._cut(self._held + text)

    def finish(self) -> str:
        """Return what was held back; no token follows."""
        if self.is_stopped:
            return ""
        text = self._cut(self._held + self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _cut(self, text: str) -> str:
        starts = [start for start in map(text.find, self._stops) if start >= 0]
        if starts:
            self.is_stopped = True
            self._held = ""
            return text[: min(starts)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        shown = len(text) - keep
        self._held = text[shown:]
        return text[:shown]


def _overlap(text: str, stop: str) -> int:
    """Measure the longest end of the text that is a beginning of the stop string."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
