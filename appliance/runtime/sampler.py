"""Draw the next token of one generation from a row of logits.

What this room does: bias, penalties and masks on a row; the cut of the distribution (by llama.cpp's
samplers); the draw; log-probabilities.
What it knows: the sampling options, the tokens so far, and that a draw depends on nothing but
(seed, choice, position): a replay in another process draws the same.
What it never does: change the row it is given (choices share rows), or keep random state.

The order is llama.cpp's: bias, mask, penalties, top_k, typical_p, top_p, min_p, temperature, draw.
Bias and penalties are numpy over the few tokens they touch; llama.cpp's own penalty sampler looks
each token of the vocabulary up in a hash map, some hundred times dearer for the same numbers.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from appliance.domain import SamplingOptions, TokenLogprob
from appliance.errors import DecodeFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NO_FINITE = "the model produced no finite logit that is allowed"


class Chain(Protocol):
    """Cut a row; `llama.SamplerChain` is one."""

    def apply(
        self, logits: NDArray[np.float32], ids: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the (ids, logits) still in play; ids None: the logits are a whole row."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Sampler:
    """The drawing of one choice. `is_plain`: the largest logit of the raw row, nothing else."""

    def __init__(
        self,
        options: SamplingOptions,
        *,
        seed: int,
        choice: int,
        suppressed: Sequence[int],
        chain: Chain | None,
    ) -> None:
        """Draw by these options; `suppressed` tokens are never drawn; chain None: nothing to cut.

        The chain is owned and freed by `close`.
        """
        self._seed = seed
        self._choice = choice
        self._chain = chain
        self._temperature = options.temperature
        self._is_greedy = options.temperature == 0.0
        self._suppressed = np.array(suppressed, dtype=np.int64)
        self._bias_ids = np.fromiter(options.logit_bias.keys(), dtype=np.int64)
        self._bias = np.fromiter(options.logit_bias.values(), dtype=np.float32)
        window = options.penalty_last_n
        self._repeat = options.repeat_penalty
        self._frequency = options.frequency_penalty
        self._presence = options.presence_penalty
        self._seen = _Window(window if self._repeat != 1.0 else 0)
        penalises = self._frequency != 0.0 or self._presence != 0.0
        self._drawn = _Window(window if penalises else 0)
        self._shapes = bool(
            len(self._suppressed) or len(self._bias_ids) or self._seen.size or self._drawn.size
        )
        self.is_plain = self._is_greedy and not self._shapes

    def prime(self, prompt: Sequence[int]) -> None:
        """Let the repeat penalty see the prompt."""
        if self._seen.size:
            self._seen.extend(prompt[-self._seen.size :])

    def accept(self, token_id: int) -> None:
        """Let the penalties see a drawn (or replayed) token."""
        if self._seen.size:
            self._seen.extend((token_id,))
        if self._drawn.size:
            self._drawn.extend((token_id,))

    def draw(self, row: NDArray[np.float32], mask: NDArray[np.bool_] | None, position: int) -> int:
        """Draw the token for a position from raw logits (n_vocab,); mask: what is allowed.

        What a mask forbids is left out at once: most masks leave little of a vocabulary.

        Raises:
            DecodeFailed: no allowed token has a finite logit.
        """
        logits = self.shape(row) if self._shapes else row
        ids: NDArray[np.int64] | NDArray[np.int32] | None = None
        if mask is not None:
            ids = allowed = np.flatnonzero(mask)
            logits = logits[allowed]
        if not len(logits):
            raise DecodeFailed(reason=_NO_FINITE)
        if self._is_greedy:
            drawn = checked_argmax(logits)
        else:
            if self._chain is not None:
                ids, logits = self._chain.apply(logits, None if mask is None else allowed)
            point = uniform(self._seed, self._choice, position)
            drawn = _inverse_cdf(logits, self._temperature, point)
        return drawn if ids is None else int(ids[drawn])

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            self._chain.close()
            self._chain = None

    def shape(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply bias and penalties to a copy of the row."""
        shaped = row.copy()
        if len(self._bias_ids):
            shaped[self._bias_ids] += self._bias
        if len(self._suppressed):
            shaped[self._suppressed] = -np.inf
        if self._seen.counts:
            ids = np.fromiter(self._seen.counts, dtype=np.int64)
            values = shaped[ids]
            # A negative logit is multiplied: dividing it would make the token likelier.
            shaped[ids] = np.where(values <= 0.0, values * self._repeat, values / self._repeat)
        if self._drawn.counts:
            ids = np.fromiter(self._drawn.counts.keys(), dtype=np.int64)
            counts = np.fromiter(self._drawn.counts.values(), dtype=np.float32)
            shaped[ids] -= counts * self._frequency + self._presence
        return shaped


class _Window:
    """How often each token occurs among the last `size` ones."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.counts: Counter[int] = Counter()
        self._tokens: deque[int] = deque()

    def extend(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            self._tokens.append(token_id)
            self.counts[token_id] += 1
            if len(self._tokens) > self.size:
                oldest = self._tokens.popleft()
                self.counts[oldest] -= 1
                if not self.counts[oldest]:
                    del self.counts[oldest]


def needs_chain(options: SamplingOptions) -> bool:
    """Say whether the options cut the distribution before the draw."""
    return options.temperature > 0.0 and (
        options.top_k > 0 or options.typical_p < 1.0 or options.top_p < 1.0 or options.min_p > 0.0
    )


def checked_argmax(row: NDArray[np.float32]) -> int:
    """Find the largest logit.

    Raises:
        DecodeFailed: it isn't finite (a damaged model, or a mask that allows nothing).
    """
    best = int(row.argmax())
    if not np.isfinite(row[best]):
        raise DecodeFailed(reason=_NO_FINITE)
    return best


def uniform(seed: int, choice: int, position: int) -> float:
    """Make a number in [0, 1) that depends on these three only, the same on every machine."""
    name = struct.pack("<QIQ", seed, choice, position)
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def log_softmax_top(
    row: NDArray[np.float32], token_id: int, top: int, pieces: Sequence[bytes]
) -> TokenLogprob:
    """Give the log-probability of a token in the raw row, and the `top` best ones beside it."""
    wide = row.astype(np.float64)
    best = wide.max()
    wide -= best + np.log(np.exp(wide - best).sum())
    count = min(top, len(wide))
    leaders: list[int] = []
    if count:
        found = np.argpartition(wide, -count)[-count:]
        leaders = found[np.lexsort((found, -wide[found]))].tolist()
    return TokenLogprob(
        token_id=token_id,
        text_bytes=pieces[token_id],
        logprob=float(wide[token_id]),
        top=tuple((leader, pieces[leader], float(wide[leader])) for leader in leaders),
    )


def _inverse_cdf(logits: NDArray[np.float32], temperature: float, point: float) -> int:
    """Draw from the tempered softmax. In float64 from the best down: no temperature overflows."""
    best = logits.max()
    if not np.isfinite(best):
        raise DecodeFailed(reason=_NO_FINITE)
    below = logits.astype(np.float64) - best
    with np.errstate(over="ignore"):  # far below, and cold: minus infinity is right
        sums = np.cumsum(np.exp(below / temperature))
    drawn = int(np.searchsorted(sums, point * sums[-1], side="right"))
    return min(drawn, len(logits) - 1)
