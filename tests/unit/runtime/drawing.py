"""Draw texts under a constraint from random logits, by our own sampler at temperature 1."""

from __future__ import annotations

import numpy as np

from appliance.domain import Constraint, FinishReason, SamplingOptions
from appliance.runtime.constrain import ConstraintCompiler, tokenizer_of
from appliance.runtime.generation import Generation, Pieces
from appliance.runtime.llama import Model
from appliance.runtime.sampler import Sampler

TOKENS_MAX = 200


class Drawing:
    """Draw with the vocabulary of one model; what closes a value is likelier, so that it ends."""

    def __init__(self, model: Model) -> None:
        words = self.words = model.vocabulary
        tokenizer = tokenizer_of(
            words.spelt, words.control_ids, words.end_ids, words.pointer, words.tokenize_address
        )
        self.compiler = ConstraintCompiler(tokenizer, words.spelt)
        lean = self._lean = np.full(words.size, -3.0, dtype=np.float32)
        for token_id, piece in enumerate(words.pieces):
            if len(piece) == 1 and piece in b'"}],:{</':
                lean[token_id] = 3.0
            elif len(piece) == 1 and piece in b"abxyz0123456789-.\\u":
                lean[token_id] = 1.0
        lean[list(words.end_ids)] = 3.0

    def text(self, constraint: Constraint, seed: int) -> str | None:
        """Draw a text; None: it was cut off."""
        words = self.words
        ends = frozenset(words.end_ids)
        options = SamplingOptions(temperature=1.0)
        generation = Generation(
            sampler=Sampler(options, seed=seed, choice=0, suppressed=(), chain=None),
            matcher=self.compiler.start(constraint),
            pieces=Pieces(shown=words.pieces, spelt=words.spelt, end_ids=ends),
            stop_strings=(),
            stop_ids=ends,
            max_tokens=TOKENS_MAX,
            top_logprobs=None,
            shown_ids=constraint.shown_ids,
        )
        rng = np.random.default_rng(seed)
        text = ""
        for position in range(TOKENS_MAX + 1):
            row = (self._lean + rng.standard_normal(words.size)).astype(np.float32)
            drawn = generation.draw(row, position, int(row.argmax()), is_last=False)
            text += drawn.text
            if drawn.finish is not None:
                return text if drawn.finish is FinishReason.STOP else None
        raise AssertionError("a generation must end at max_tokens")
