"""Load a draft model beside the model it guesses for, or say why that can't be.

What this room does: holds the two files against each other; loads the second, makes its context,
and has its first steps priced.
What it knows: a guess is a token id, so both must mean the same by it; and that wrong guesses must
be taken back, so its memory must be one that can be cut.
What it never does: load a file that was not signed (`local_versions` did), or guess.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.domain import MemoryKind
from appliance.errors import ModelUnloadable
from appliance.gguf import GgufFault, GgufHead, read_head
from appliance.runtime.cost import CostModel
from appliance.runtime.draft_cache import DraftCache
from appliance.runtime.draft_model import DraftModel
from appliance.runtime.llama import Context, ContextOptions, EngineFault, Model, Vocabulary
from appliance.runtime.pool import Pool
from appliance.runtime.threads import Counts
from appliance.runtime.warm_up import warm_up
from appliance.runtime.wire import EngineOptions

_PADDING_MAX = 256  # tokens at the end that only one of two vocabularies has, as padding
_SHOWN_BYTES = 40


def read_draft_head(options: EngineOptions) -> GgufHead | None:
    """Read what the draft model's file says of itself; None if there is none.

    Raises:
        ModelUnloadable: it is no whole model; names both files.
    """
    if not options.draft_path or options.speculation is None:
        return None
    try:
        head = read_head(Path(options.draft_path))
    except GgufFault as fault:
        raise _refusal(options, str(fault)) from fault
    if head.data_bytes_missing or not head.tensors:
        raise _refusal(options, "it is not a whole model")
    return head


def load_draft(
    options: EngineOptions,
    model: Model,
    context: Context,
    pool: Pool,
    clock: Callable[[], float],
) -> tuple[DraftModel, DraftCache]:
    """Load the draft model of a model that is loaded; blocks for that and for its first steps.

    Raises:
        ModelUnloadable: it can't guess for this model; names both files.
    """
    try:
        draft = Model(
            Path(options.draft_path), gpu_layers=options.gpu_layers, on_progress=lambda _ratio: None
        )
        _check_same(model.vocabulary, draft.vocabulary)
        opened = _open(options, draft, context)
        cost = CostModel()
        counts = Counts(decode=options.threads_decode, prefill=options.threads_prefill)
        warm_up(opened, cost, clock, counts)
    except EngineFault as fault:
        raise _refusal(options, str(fault)) from fault
    threads = pool.counts.decode
    cost.use(decode_threads=threads, prefill_threads=threads)
    cache = DraftCache(
        cost,
        sequences_max=opened.sequences_max,
        cells_total=opened.cells,
        context_tokens=min(opened.sequence_tokens_max, draft.context_train_tokens),
    )
    size = min(model.vocabulary.size, draft.vocabulary.size)
    return DraftModel(opened, cache, vocabulary_size=size, clock=clock), cache


def _open(options: EngineOptions, draft: Model, context: Context) -> Context:
    """Make the draft model's context: as many cells as the other's, and few sequences."""
    assert options.speculation is not None, "a draft model without speculation"
    if context.memory_kind is not MemoryKind.CUTTABLE:
        raise EngineFault("what that one remembers can't be cut, so wrong guesses can't be undone")
    sequences = min(options.sequences_max, options.speculation.streams_max)
    opened = draft.open_context(
        ContextOptions(
            cells=context.cells,
            batch_tokens=max(context.batch_tokens, sequences),
            sequences_max=sequences,
            threads_decode=options.threads_decode,
            threads_prefill=options.threads_prefill,
            embedding=False,
            flash_attention=options.flash_attention,
        )
    )
    if draft.has_encoder or not opened.has_cache:
        raise EngineFault("it generates no text")
    if opened.memory_kind is not MemoryKind.CUTTABLE:
        raise EngineFault("what it remembers can't be cut, so wrong guesses can't be undone")
    return opened


def _refusal(options: EngineOptions, reason: str) -> ModelUnloadable:
    """Say why a draft model can't be had, with the names of both files."""
    return ModelUnloadable(
        path=options.draft_path, reason=f"it can't be the draft model of {options.path}: {reason}"
    )


def _check_same(ours: Vocabulary, its: Vocabulary) -> None:
    """Refuse a vocabulary in which a token id means something else.

    Raises:
        EngineFault: names the first token that differs.
    """
    if abs(ours.size - its.size) > _PADDING_MAX:
        raise EngineFault(
            f"its vocabulary has {its.size} tokens, and the model's {ours.size}; by at most "
            f"{_PADDING_MAX} may they differ, as padding"
        )
    pairs = zip(ours.spelt, its.spelt, strict=False)
    for token_id, (piece, other) in enumerate(pairs):
        if piece != other:
            raise EngineFault(
                f"token {token_id} is {other[:_SHOWN_BYTES]!r} in its vocabulary, and "
                f"{piece[:_SHOWN_BYTES]!r} in the model's"
            )
    common = min(ours.size, its.size)
    if [one for one in ours.end_ids if one < common] != [
        one for one in its.end_ids if one < common
    ]:
        raise EngineFault("the tokens that end an answer are others than the model's")
