"""Say how a file is to be loaded: what it is for, and the options of its worker.

What this room does: names what is loaded; reads the head of its file; takes what the configuration
says of a model, and where it says nothing what it says of all.
What it knows: the tables of the configuration and the options of a worker.
What it never does: load, or look at the machine (threads are told).
"""

from __future__ import annotations

from pathlib import Path

from appliance import gguf
from appliance.config import Engine, Limits, Model, Scheduling
from appliance.domain import ModelKind, ModelVersion, Value
from appliance.errors import ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.adapters import AdapterFile
from appliance.runtime.draft import DraftLimits

_CONTEXT_TRAIN_TOKENS_MAX = 2**31 - 1  # where a file does not say


class Loadable(Value):
    """A version and all it takes to load it. own_bytes: what it takes beside its weights.

    adapters: what comes with it; it answers nobody before they are loaded.
    """

    version: ModelVersion
    path: Path
    settings: Model
    own_bytes: int = 0
    adapters: tuple[AdapterFile, ...] = ()


def read_options(
    path: Path,
    settings: Model,
    engine: Engine,
    limits: Limits,
    scheduling: Scheduling,
    *,
    threads: int,
) -> wire.EngineOptions:
    """Tell a worker how to load and run; blocks on the disk for the head of the file.

    cells_total is what is wanted, memory may allow less.

    Raises:
        ModelUnloadable: its head can't be read.
    """
    try:
        head = gguf.read_head(path)
    except gguf.GgufFault as fault:
        raise ModelUnloadable(path=str(path), reason=str(fault)) from fault
    train_tokens = head.number("context_length", _CONTEXT_TRAIN_TOKENS_MAX)
    context_tokens = settings.context_tokens or min(train_tokens, engine.context_tokens)
    cells_total = settings.cells_total or engine.cells_total
    sequences_max = settings.sequences_max or engine.sequences_max
    kind = _kind(head, settings)
    caches = kind is ModelKind.GENERATE  # others keep nothing between steps
    return wire.EngineOptions(
        path=str(path),
        context_tokens=context_tokens,
        cells_total=cells_total or 4 * context_tokens,
        cells_min=cells_total or context_tokens,
        sequences_max=sequences_max,
        batch_tokens=engine.batch_tokens,
        threads_decode=threads,
        threads_prefill=threads,
        threads_follow=engine.threads_follow,
        gpu_layers=settings.gpu_layers,
        step_ms_while_streaming=engine.step_ms_while_streaming,
        step_ms_max=engine.step_ms_max,
        queue_requests_max=2 * (limits.queue_requests + sequences_max),  # what a switch brings too
        output_reserve_tokens=engine.output_reserve_tokens,
        overtakes_max=engine.overtakes_max,
        prefix_sequences_max=scheduling.prefix_sequences,
        prefix_share=scheduling.prefix_share,
        prefix_tokens_min=scheduling.prefix_tokens_min,
        normal_share=scheduling.normal_share,
        batch_share=scheduling.batch_share,
        ageing_s=scheduling.ageing_s,
        turn_ms=scheduling.turn_ms,
        adapter_turn_steps=scheduling.adapter_turn_steps,
        swap_bytes_max=scheduling.swap_bytes,
        speculation=_draft_limits(scheduling),
        ack_window_steps=engine.ack_window_steps,
        kind=kind,
        stall_factor=engine.stall_factor,
        memory_reserve_bytes=engine.memory_reserve_bytes,
        cache_type_k=(settings.cache_type_k or engine.cache_type_k) if caches else "f16",
        cache_type_v=(settings.cache_type_v or engine.cache_type_v) if caches else "f16",
        flash_attention=engine.flash_attention,
        cache_layout=settings.cache_layout or engine.cache_layout,
        draft_path=settings.draft,
    )


def _draft_limits(scheduling: Scheduling) -> DraftLimits | None:
    if scheduling.draft == "off":
        return None
    return DraftLimits(
        tokens_max=scheduling.draft_tokens_max,
        streams_max=scheduling.draft_streams_max,
        lookback_tokens=scheduling.draft_lookback_tokens,
        ngram_min=scheduling.draft_ngram_min,
        ngram_max=scheduling.draft_ngram_max,
        stretch_max=scheduling.draft_stretch_max,
    )


def _kind(head: gguf.GgufHead, settings: Model) -> ModelKind:
    """Tell what the model is for: a reranker says so itself, an embedding model may also chat."""
    if head.ranks:
        return ModelKind.RERANK
    return ModelKind.EMBED if settings.embedding else ModelKind.GENERATE
