"""Load a model into a warm engine, or say in one sentence why it can't be served.

What this room does: looks at the file and at the memory before llama.cpp does; loads; makes the
context; has it warmed up; gathers the facts.
What it knows: what a broken file looks like, and how much memory a model takes.
What it never does: leave a half-loaded model behind with the process going on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from appliance.domain import MemoryKind, ModelFacts, ModelKind
from appliance.errors import ModelUnloadable
from appliance.gguf import (
    GgufFault,
    GgufHead,
    ggml_type,
    head_sizes,
    kv_cache_bytes,
    read_head,
    row_bytes,
)
from appliance.runtime.cache_layout import LayoutChoice, settle_layout
from appliance.runtime.constrain import ConstraintCompiler, tokenizer_of
from appliance.runtime.contention import open_contention
from appliance.runtime.cost import CostModel
from appliance.runtime.devices import available_bytes, physical_cores
from appliance.runtime.draft_cache import DraftCache
from appliance.runtime.embedder import EmbeddingEngine
from appliance.runtime.engine import Engine, GeneratingEngine
from appliance.runtime.jobs import SchedulerLimits
from appliance.runtime.llama import (
    SEQUENCES_MAX,
    Context,
    ContextOptions,
    DecodeCode,
    EngineFault,
    Model,
    supports_gpu,
)
from appliance.runtime.load_draft import load_draft, read_draft_head
from appliance.runtime.loaded_adapters import LoadedAdapters
from appliance.runtime.pool import Pool
from appliance.runtime.scheduler import Scheduler
from appliance.runtime.speculation import Speculation
from appliance.runtime.submission import Submission
from appliance.runtime.threads import Counts
from appliance.runtime.warm_up import warm_up
from appliance.runtime.wire import EngineOptions

_COMPUTE_BYTES = 64 * 1024 * 1024  # a graph's buffers, beside the rows of logits
_POOLINGS = {ModelKind.EMBED: ("mean", "cls", "last"), ModelKind.RERANK: ("rank",)}
_POSITIONS = "position_embd.weight"
_HEADS = frozenset({"cls.weight", "cls.output.weight"})
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A warm engine and what there is to know about its model."""

    engine: Engine
    facts: ModelFacts


def load(
    options: EngineOptions, clock: Callable[[], float], on_progress: Callable[[float], None]
) -> Loaded:
    """Load and warm up; blocks, for seconds to minutes.

    Raises:
        ModelUnloadable: names the file and one reason.
    """
    path = Path(options.path)
    try:
        head = read_head(path)
        _check_whole(head)
        _check_head(head, options.kind)
        _check_positions(head, options.context_tokens)
        _check_cache_types(head, options)
        if not (options.gpu_layers and supports_gpu()):
            cells = fit_cells(head, options, available_bytes(), read_draft_head(options))
            options = msgspec.structs.replace(options, cells_total=cells)
        model = Model(path, gpu_layers=options.gpu_layers, on_progress=on_progress)
        wanted, layout = settle_layout(
            options.cache_layout,
            model,
            _context_options(options),
            options.context_tokens,
            clock,
        )
        context = model.open_context(_with_parked(wanted, options, model))
        _check_kind(model, context, options.kind)
        pool = _pool(options, context, clock)
        if options.kind is not ModelKind.GENERATE:
            return _embedding_engine(options, model, context, pool, clock)
        loaded = _generating_engine(options, model, context, pool, clock)
        return replace(loaded, facts=_with_layout(loaded.facts, layout))
    except (GgufFault, EngineFault) as error:
        raise ModelUnloadable(path=options.path, reason=str(error)) from error


def _pool(options: EngineOptions, context: Context, clock: Callable[[], float]) -> Pool:
    """Price the first steps, unless whole inputs of a length to come are the only steps."""
    cost = CostModel()
    contention = open_contention(clock) if options.threads_follow else None
    counts = Counts(decode=options.threads_decode, prefill=options.threads_prefill)
    if options.kind is ModelKind.GENERATE:
        physical = physical_cores(frozenset(os.sched_getaffinity(0)))
        counts = warm_up(context, cost, clock, counts, physical, contention)
    return Pool(context, cost, counts, contention)


def _generating_engine(
    options: EngineOptions,
    model: Model,
    context: Context,
    pool: Pool,
    clock: Callable[[], float],
) -> Loaded:
    vocabulary = model.vocabulary
    tokenizer = tokenizer_of(
        vocabulary.spelt,
        vocabulary.control_ids,
        vocabulary.end_ids or (max(vocabulary.eos_id, 0),),
        vocabulary.pointer,
        vocabulary.tokenize_address,
    )
    cell_bytes = _kv_bytes_per_token(context)
    limits = _limits(options, context, cell_bytes)
    draft_model = draft_cache = None
    if options.draft_path and options.speculation is not None:
        draft_model, draft_cache = load_draft(options, model, context, pool, clock)
    speculation = _speculation(options, context, pool.cost, draft_cache)
    engine = GeneratingEngine(
        context=context,
        scheduler=Scheduler(limits, pool.cost, speculation),
        submission=Submission(vocabulary, ConstraintCompiler(tokenizer, vocabulary.spelt)),
        adapters=LoadedAdapters(model, context, clock),
        clock=clock,
        stall_factor=options.stall_factor,
        pool=pool,
        draft_model=draft_model,
    )
    facts = _facts(options, model, context, limits.context_tokens, cell_bytes)
    return Loaded(engine=engine, facts=facts)


def _speculation(
    options: EngineOptions, context: Context, cost: CostModel, draft_cache: DraftCache | None
) -> Speculation | None:
    """Guess only where a sequence can be cut: a wrong guess must be taken back."""
    if options.speculation is None or context.memory_kind is not MemoryKind.CUTTABLE:
        return None
    return Speculation(options.speculation, cost, draft_cache)


def _limits(options: EngineOptions, context: Context, cell_bytes: int) -> SchedulerLimits:
    # Sequences that can't be cut can't be shared in part.
    is_cuttable = context.memory_kind is MemoryKind.CUTTABLE and context.kv_unified
    parked_max = context.sequences_max - options.sequences_max if is_cuttable else 0
    return SchedulerLimits(
        context_tokens=min(options.context_tokens, context.sequence_tokens_max),
        cells_total=context.cells,
        sequences_max=options.sequences_max,
        batch_tokens=context.batch_tokens,
        queue_requests_max=options.queue_requests_max,
        output_reserve_tokens=options.output_reserve_tokens,
        step_ms_while_streaming=options.step_ms_while_streaming,
        step_ms_max=options.step_ms_max,
        overtakes_max=options.overtakes_max,
        parked_max=parked_max,
        parked_cells_max=int(context.cells * options.prefix_share),
        prefix_tokens_min=options.prefix_tokens_min,
        normal_share=options.normal_share,
        batch_share=options.batch_share,
        ageing_ms=options.ageing_s * 1000.0,
        turn_ms=options.turn_ms,
        adapter_turn_steps=options.adapter_turn_steps,
        swap_bytes_max=options.swap_bytes_max,
        cell_bytes=cell_bytes,
    )


def _embedding_engine(
    options: EngineOptions,
    model: Model,
    context: Context,
    pool: Pool,
    clock: Callable[[], float],
) -> Loaded:
    engine = EmbeddingEngine(
        context=context,
        vocabulary_size=model.vocabulary.size,
        batch_tokens=min(options.batch_tokens, context.batch_tokens),
        context_tokens=options.context_tokens,
        queue_requests_max=options.queue_requests_max,
        pool=pool,
        clock=clock,
        stall_factor=options.stall_factor,
    )
    facts = _facts(options, model, context, engine.input_tokens_max, 0)
    return Loaded(engine=engine, facts=facts)


def _kv_bytes_per_token(context: Context) -> int:
    """Measure what a token more costs: the difference between two states of one sequence."""
    sizes = []
    for position in range(2):
        context.put(0, [0], 0, position)
        context.want_row(0)
        if context.decode(1) is not DecodeCode.OK:
            break
        sizes.append(context.state_bytes(0))
    context.clear()
    return max(0, sizes[-1] - sizes[0]) if sizes else 0


def _facts(
    options: EngineOptions,
    model: Model,
    context: Context,
    context_tokens: int,
    kv_bytes_per_token: int,
) -> ModelFacts:
    vocabulary = model.vocabulary
    return ModelFacts(
        architecture=model.architecture,
        description=model.description,
        parameters_count=model.parameters_count,
        size_bytes=model.size_bytes,
        context_tokens=context_tokens,
        context_train_tokens=model.context_train_tokens,
        embedding_size=model.embedding_size,
        vocabulary_size=vocabulary.size,
        pooling="none" if options.kind is ModelKind.GENERATE else context.pooling,
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
        adds_bos=vocabulary.adds_bos,
        has_chat_template=model.has_chat_template,
        kv_bytes_per_token=kv_bytes_per_token,
        sequences_max=options.sequences_max,
        kv_cells=context.cells,
        memory_kind=context.memory_kind,
    )


def _with_layout(facts: ModelFacts, choice: LayoutChoice) -> ModelFacts:
    return msgspec.structs.replace(
        facts,
        cache_layout=choice.layout,
        cache_layout_reason=choice.reason,
        partitioned_speedup=round(choice.speedup, 3),
    )


def _with_parked(wanted: ContextOptions, options: EngineOptions, model: Model) -> ContextOptions:
    """Add sequences for prefixes that are kept, where prefixes can be shared."""
    # A partitioned cache would divide the cells among them, a recurrent model pays for each.
    if options.kind is not ModelKind.GENERATE or model.has_whole_memory or not wanted.kv_unified:
        return wanted
    parked = min(options.prefix_sequences_max, SEQUENCES_MAX - wanted.sequences_max)
    return replace(wanted, sequences_max=wanted.sequences_max + parked)


def _context_options(options: EngineOptions) -> ContextOptions:
    pools = options.kind is not ModelKind.GENERATE
    batch_tokens = max(options.batch_tokens, options.sequences_max)
    if pools:
        batch_tokens = max(batch_tokens, options.context_tokens)  # whole inputs in one step
    return ContextOptions(
        cells=max(options.cells_total, batch_tokens) if pools else options.cells_total,
        batch_tokens=batch_tokens,
        sequences_max=options.sequences_max,
        outputs_max=options.sequences_max
        + (options.speculation.tokens_max if options.speculation else 0),
        threads_decode=options.threads_decode,
        threads_prefill=options.threads_prefill,
        embedding=pools,
        cache_type_k=ggml_type(options.cache_type_k),
        cache_type_v=ggml_type(options.cache_type_v),
        flash_attention=options.flash_attention,
    )


def _check_whole(head: GgufHead) -> None:
    if head.data_bytes_missing:
        raise GgufFault(
            f"the file is cut off: {head.data_bytes_missing} bytes of its tensors are missing"
        )
    if not head.tensors:
        raise GgufFault("it holds a vocabulary only, no weights")


def _check_cache_types(head: GgufHead, options: EngineOptions) -> None:
    """Say what llama.cpp only logs: that the heads of this model are not whole blocks of a type."""
    for key, name, size in zip(
        ("cache_type_k", "cache_type_v"),
        (options.cache_type_k, options.cache_type_v),
        head_sizes(head),
        strict=True,
    ):
        if row_bytes(name, size) is None:
            raise GgufFault(
                f"{key} can't be {name}: the {size} values of a head are not whole blocks of it"
            )


def _check_head(head: GgufHead, kind: ModelKind) -> None:
    """Look for the head of a reranker: without one llama.cpp would rank by the hidden state."""
    if kind is ModelKind.RERANK and not head.tensors.keys() & _HEADS:
        raise GgufFault("it is no reranker: it has no classification head (cls or cls.output)")


def _check_positions(head: GgufHead, context_tokens: int) -> None:
    """Refuse a context beyond the learned positions: llama.cpp would end on the first such token.

    Positions that are computed (RoPE, ALiBi) may go beyond what the model was trained with.
    """
    learned = head.number("context_length")
    if _POSITIONS in head.tensors and context_tokens > learned:
        raise GgufFault(
            f"context_tokens is {context_tokens} and the model has learned {learned} positions"
        )


def _check_kind(model: Model, context: Context, kind: ModelKind) -> None:
    wanted = _POOLINGS.get(kind)
    if wanted is not None and context.pooling not in wanted:
        what = "embedding model" if kind is ModelKind.EMBED else "reranker"
        raise EngineFault(
            f"it is no {what}: its pooling is '{context.pooling}', not one of {', '.join(wanted)}"
        )
    if wanted is None and (model.has_encoder or not context.has_cache):
        raise EngineFault("it generates no text (serve it with embedding = true)")


def fit_cells(
    head: GgufHead,
    options: EngineOptions,
    available: int | None,
    draft: GgufHead | None = None,
) -> int:
    """Count the KV cells that memory allows, at most cells_total; look before llama.cpp tries.

    Memory for sequences that make way is left free too, but for the least of cells.
    `draft`: of a draft model, whose cache has as many cells.

    Raises:
        GgufFault: not even cells_min fit; names what is needed and what there is.
    """
    wanted = options.cells_total
    least = min(options.cells_min or wanted, wanted)
    if available is None:
        return wanted
    fixed = head.file_bytes + _COMPUTE_BYTES + options.memory_reserve_bytes
    cell_bytes = kv_cache_bytes(head, options.cache_type_k, options.cache_type_v, 1)
    if draft is not None:
        fixed += draft.file_bytes + _COMPUTE_BYTES
        cell_bytes += kv_cache_bytes(draft, "f16", "f16", 1)
    fitting = max(0, available - fixed - options.swap_bytes_max) // max(1, cell_bytes)
    if fixed + least * cell_bytes > available:
        raise GgufFault(
            f"it needs about {(fixed + least * cell_bytes) // _MIB} MiB of memory and "
            f"{available // _MIB} MiB are available"
        )
    return min(wanted, max(least, fitting))
