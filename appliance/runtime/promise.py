"""Hold what one kind of guesses promised against what came of it.

What this room does: says how much a kind of guesses must promise to be put to the model, how many
rows it may take, and when it is worth looking for them again.
What it knows: gains: tokens per ms as a multiple of those of the same step without guesses.
What it never does: guess, or read a price.

Promises are believed by as much as the last ones were kept. While there are no guesses that
mistrust fades, over some thousand steps: what did not pay is tried again, for a step or two.
"""

from __future__ import annotations

import math

FADING_STEPS = 2048.0
_BEGIN = 1.05
_GO_ON = 1.01
_ROWS_MIN = 4
_GROWTH = 2
_PAUSE_MAX = 7  # steps without a look, where the last looks found nothing that pays
_WEIGHT_KEPT = 0.1  # of the newest step in how far promises are kept
_OUTLIER = 2.0


class Promise:
    """The promises of one kind of guesses. `is_on`: the last step had some; `gain`: promised."""

    def __init__(self) -> None:
        """Begin with a promise that is believed."""
        self.is_on = False
        self.gain = 1.0
        self._kept = 1.0
        self._kept_step = 0
        self._rows_paid = 0
        self._pause = 0  # steps until guesses are looked for again
        self._pauses = 0

    def is_due(self) -> bool:
        """Say whether to look for guesses in this step; call once a step in which one could."""
        self._pause -= 1
        return self._pause < 0

    def rows_max(self, streams: int) -> int:
        """Bound the rows of the next step: twice what paid last, and a few in any case."""
        return max(_ROWS_MIN, streams, self._rows_paid * _GROWTH)

    def needed(self, step: int) -> float:
        """Say which gain must be promised at least: 5 % more to begin with, 1 % to go on."""
        return (_GO_ON if self.is_on else _BEGIN) / self.trust(step)

    def make(self, gain: float, *, is_made: bool) -> None:
        """Note what a look found: guesses that promise this gain, or none that promise enough."""
        self.gain = gain
        self._pauses = 0 if is_made else min(_PAUSE_MAX, 2 * self._pauses + 1)
        self._pause = self._pauses

    def keep(self, gain: float, rows: int, step: int) -> None:
        """Note what a step with so many guesses gained, by measurement."""
        kept = self.trust(step)
        now = min(max(gain / self.gain, kept / _OUTLIER), kept * _OUTLIER)
        self._kept = kept + _WEIGHT_KEPT * (now - kept)
        self._kept_step = step
        self._rows_paid = rows if gain > 1.0 else min(self._rows_paid, rows // 2)

    def trust(self, step: int) -> float:
        """Say how much of a promise is kept, faded by the steps since that was last seen."""
        fading = math.exp((self._kept_step - step) / FADING_STEPS)
        return 1.0 + (self._kept - 1.0) * fading
