"""Turn a submitted frame into a job and the generations of its choices, or refuse it.

What this room does: holds a frame against the vocabulary and the bounds of its words; makes the
sampler, the constraint and the stops of each choice, and accepts replayed tokens again.
What it knows: the frame `Submit`, the vocabulary, the compiler of constraints.
What it never does: schedule, draw, or keep what it made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from appliance.domain import CHOICES_MAX, SEED_MAX, TOP_LOGPROBS_MAX
from appliance.errors import ApplianceError, InvalidRequest
from appliance.runtime import wire
from appliance.runtime.constrain import ConstraintCompiler
from appliance.runtime.generation import Generation, Pieces
from appliance.runtime.jobs import Job
from appliance.runtime.llama import SamplerChain, Vocabulary
from appliance.runtime.sampler import Sampler, needs_chain


class Submission:
    """The door of one engine."""

    def __init__(self, vocabulary: Vocabulary, compiler: ConstraintCompiler) -> None:
        """Make generations for this vocabulary."""
        self._vocabulary = vocabulary
        self._compiler = compiler
        self._pieces = Pieces(
            shown=vocabulary.pieces,
            spelt=vocabulary.spelt,
            end_ids=frozenset(vocabulary.end_ids),
        )

    def job(self, frame: wire.Submit) -> Job:
        """Make the scheduler's view of a frame that was opened."""
        job = Job(
            ticket=frame.ticket,
            prompt=np.array(frame.prompt_ids, dtype=np.int32).tolist(),
            max_tokens=frame.stop.max_tokens,
            deadline_ms=frame.deadline_ms,
            client=frame.client,
            weight=frame.weight,
            priority=frame.priority,
            adapter=frame.adapter,
            cache_key=frame.cache_key,
            is_pin=frame.is_pin,
        )
        for index in range(frame.n):
            job.add_choice(_accepted(frame, index), is_ended=index in frame.ended)
        return job

    def open(self, frame: wire.Submit) -> list[Generation]:
        """Check a frame and make the generation of each choice.

        Raises:
            InvalidRequest, SchemaUnsupported, DecodeFailed: it can't be served.
        """
        check_submit(frame, self._vocabulary.size)
        generations: list[Generation] = []
        try:
            for index in range(frame.n):
                generation = self._generation(frame, index)
                generations.append(generation)
                if index not in frame.ended:
                    generation.replay(_accepted(frame, index))
        except ApplianceError:
            for generation in generations:
                generation.close()
            raise
        return generations

    def _generation(self, frame: wire.Submit, index: int) -> Generation:
        options, stop = frame.sampling, frame.stop
        # First, because it may be refused: the chain is C's, and would not be freed.
        matcher = self._compiler.start(frame.constraint) if frame.constraint else None
        chain = None
        if needs_chain(options):
            chain = SamplerChain(
                size=self._vocabulary.size,
                top_k=options.top_k,
                typical_p=options.typical_p,
                top_p=options.top_p,
                min_p=options.min_p,
            )
        end_ids = self._pieces.end_ids
        sampler = Sampler(
            options,
            seed=frame.seed,
            choice=index,
            suppressed=tuple(end_ids) if stop.ignore_eos else (),
            chain=chain,
        )
        sampler.prime(frame.prompt_ids)
        stop_ids = frozenset(stop.token_ids)
        return Generation(
            sampler=sampler,
            matcher=matcher,
            pieces=self._pieces,
            stop_strings=stop.strings,
            stop_ids=stop_ids if stop.ignore_eos else stop_ids | end_ids,
            max_tokens=stop.max_tokens,
            top_logprobs=frame.top_logprobs,
            shown_ids=frame.constraint.shown_ids if frame.constraint else (),
        )


def check_submit(frame: wire.Submit, vocabulary_size: int) -> None:
    """Refuse a request that C must not see.

    Raises:
        InvalidRequest: names the field and the reason.
    """
    check_ids("prompt", frame.prompt_ids, vocabulary_size)
    if not frame.prompt_ids:
        raise InvalidRequest(field="prompt", reason="must not be empty")
    if not 1 <= frame.n <= CHOICES_MAX:
        raise InvalidRequest(field="n", reason=f"must be from 1 to {CHOICES_MAX}, not {frame.n}")
    if not 0 <= frame.seed <= SEED_MAX:
        raise InvalidRequest(field="seed", reason=f"must be from 0 to {SEED_MAX}")
    if frame.top_logprobs is not None and not 0 <= frame.top_logprobs <= TOP_LOGPROBS_MAX:
        raise InvalidRequest(field="top_logprobs", reason=f"must be from 0 to {TOP_LOGPROBS_MAX}")
    if len(frame.accepted_ids) > frame.n or any(not 0 <= index < frame.n for index in frame.ended):
        raise InvalidRequest(field="n", reason="the replay has more choices than were asked for")
    if len(set(frame.ended)) >= frame.n:
        raise InvalidRequest(field="n", reason="every choice has ended already")
    for accepted in frame.accepted_ids:
        check_ids("accepted", accepted, vocabulary_size)
    check_ids("logit_bias", tuple(frame.sampling.logit_bias), vocabulary_size)
    check_ids("stop_token_ids", frame.stop.token_ids, vocabulary_size)


def check_ids(field: str, token_ids: Sequence[int], vocabulary_size: int) -> None:
    """Refuse token ids that the vocabulary has not.

    Raises:
        InvalidRequest: names the field.
    """
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocabulary_size:
        raise InvalidRequest(
            field=field, reason=f"holds a token id outside 0 to {vocabulary_size - 1}"
        )


def _accepted(frame: wire.Submit, index: int) -> tuple[int, ...]:
    return frame.accepted_ids[index] if index < len(frame.accepted_ids) else ()
