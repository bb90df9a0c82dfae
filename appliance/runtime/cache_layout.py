"""Choose how sequences share a model's cache: all cells for all, or a part for each.

What this room does: the rule, and the measurement it rests on, made when a model is loaded.
What it knows: in a unified cache every row attends over the cells of all sequences, and prefixes
are shared; in a partitioned one a row attends over its own part, nothing is shared, and llama.cpp
decodes together only rows of consecutive sequence ids (llama-batch.cpp: split_equal), so that it
reads all weights once more for each gap between the ids that run.
What it never does: make the context that serves, or take a part that is smaller than a context
without having been told to.

The theory: partitions win where every sequence runs, and lose where some are idle. So the speedup
is taken over both, as the time of a step with all rows and one without every sixth; prompts, which
split a step once more, are left out in favour of the partitions. One sequence is evaluated, and
its state is restored in the others. The quickest of some tries counts: other processes only add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

from appliance.domain import CacheLayout, MemoryKind
from appliance.runtime.llama import Context, ContextOptions, DecodeCode, EngineFault, Model

PART_CELLS_MIN = 256  # llama-context.cpp rounds a part up to this, beyond the cells asked for
# How much faster partitions must be. Where prompts are most of the work, sharing gains as much as
# soon as a fifth of their tokens are common. A memory that can't be cut shares nothing: there it is
# what one measurement may be wrong by.
SPEEDUP_MIN = {MemoryKind.CUTTABLE: 1.25, MemoryKind.WHOLE: 1.1}

_BUDGET_MS = 2500.0
_ROWS_MAX = 16
_ROWS_MIN = 4
_GAP = 6
_FILL_TOKENS = 128
_CHUNK_TOKENS = 32
_CHUNKS_IN_ALL = 14  # prompts of both, and steps that take less than a chunk each
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """What partitions gain: times as fast as unified; 0.0 where it was not measured, and why.

    `full`: of steps with all rows; `gaps`: of steps without every sixth; `ratio`: of both together.
    """

    ratio: float = 0.0
    full: float = 0.0
    gaps: float = 0.0
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutChoice:
    """A layout, the reason for a person, and the measured speedup of partitions (0.0: none)."""

    layout: CacheLayout
    reason: str
    speedup: float = 0.0


def settle_layout(
    asked: str,
    model: Model,
    options: ContextOptions,
    context_tokens: int,
    clock: Callable[[], float],
) -> tuple[ContextOptions, LayoutChoice]:
    """Choose a layout and fit the options to it; blocks for some seconds where it measures.

    Raises:
        EngineFault: partitions were asked for and there are too few cells for them.
    """
    if options.embedding:
        reason = "an embedding keeps no cache"
        return options, LayoutChoice(layout=CacheLayout.UNIFIED, reason=reason)
    part = part_cells(options.cells, options.sequences_max, context_tokens)
    if asked == "partitioned" and not part:
        raise EngineFault(
            f"cache_layout can't be partitioned: {options.cells} cells are less than "
            f"{PART_CELLS_MIN} for each of {options.sequences_max} sequences"
        )
    kind = MemoryKind.WHOLE if model.has_whole_memory else MemoryKind.CUTTABLE
    choice = choose_layout(
        asked, kind, part, context_tokens, lambda: measure_speedup(model, options, clock)
    )
    if choice.layout is CacheLayout.PARTITIONED:
        cells = part * options.sequences_max
        return replace(options, kv_unified=False, cells=cells), choice
    return options, choice


def choose_layout(
    asked: str,
    kind: MemoryKind,
    part: int,
    context_tokens: int,
    measure: Callable[[], Speedup],
) -> LayoutChoice:
    """Choose by the first of these that applies; measures only for the last two.

    1. What the configuration asks for.
    2. Unified, where a part holds less than a context: a layout must not shorten what may be asked.
    3. Unified, where nothing could be measured.
    4. Partitioned above the speedup that this kind of memory needs, else unified.
    """
    # 1
    if asked != "auto":
        return LayoutChoice(layout=CacheLayout(asked), reason="asked for in the configuration")
    # 2
    if part < context_tokens:
        reason = f"a part would hold {part} of the {context_tokens} tokens of a context"
        return LayoutChoice(layout=CacheLayout.UNIFIED, reason=reason)
    # 3
    speedup = measure()
    if not speedup.ratio:
        return LayoutChoice(layout=CacheLayout.UNIFIED, reason=f"not measured: {speedup.missing}")
    # 4
    least = SPEEDUP_MIN[kind]
    layout = CacheLayout.PARTITIONED if speedup.ratio > least else CacheLayout.UNIFIED
    reason = (
        f"partitioned decodes {speedup.ratio:.2f} times as fast ({speedup.full:.2f} with all "
        f"sequences, {speedup.gaps:.2f} with gaps); it is taken above {least}"
    )
    return LayoutChoice(layout=layout, reason=reason, speedup=speedup.ratio)


def part_cells(cells: int, sequences: int, context_tokens: int) -> int:
    """Count the cells of each part, in whole blocks, no more than a context needs; 0: too few."""
    needed = -(-context_tokens // PART_CELLS_MIN) * PART_CELLS_MIN
    return min(needed, cells // sequences // PART_CELLS_MIN * PART_CELLS_MIN)


def measure_speedup(
    model: Model,
    options: ContextOptions,
    clock: Callable[[], float],
    *,
    rows_max: int = _ROWS_MAX,
    budget_ms: float = _BUDGET_MS,
) -> Speedup:
    """Time steps in two contexts beside each other, which are gone when this returns.

    Together they take no more cells than the options. Blocks for the budget and one step at most,
    and before that until the weights have been read once, which serving needs as well.
    """
    rows = min(rows_max, options.sequences_max, options.cells // (2 * PART_CELLS_MIN))
    if rows < _ROWS_MIN:
        return Speedup(missing=f"needs {_ROWS_MIN} sequences and {2 * PART_CELLS_MIN} cells each")
    sizes = replace(
        options,
        cells=rows * PART_CELLS_MIN,
        sequences_max=rows,
        batch_tokens=max(rows, _CHUNK_TOKENS),
    )
    trials: list[_Trial] = []
    try:
        for kv_unified in (True, False):
            context = model.open_trial(replace(sizes, kv_unified=kv_unified))
            if context is None:
                return Speedup(missing="too little memory for two contexts")
            trials.append(_Trial(context, clock))
        return _compare(trials, clock, budget_ms)
    finally:
        for trial in trials:
            trial.close()


def _compare(trials: list[_Trial], clock: Callable[[], float], budget_ms: float) -> Speedup:
    trials[0].context.probe_memory()  # reads the weights, which may still be on the disk
    deadline_ms = clock() + budget_ms
    for trial in trials:
        chunk_ms = trial.fill(budget_ms / _CHUNKS_IN_ALL)
        if chunk_ms * _CHUNKS_IN_ALL > budget_ms:
            return Speedup(missing=f"{_CHUNK_TOKENS} tokens of a prompt take {chunk_ms:.0f} ms")
    full = range(trials[0].context.sequences_max)
    gaps = [seq_id for seq_id in full if seq_id % _GAP != _GAP - 1]
    best = [[float("inf")] * len(trials) for _ in range(2)]
    for row, seq_ids in zip(best, (list(full), gaps), strict=True):
        for _, (number, trial) in product(range(_TRIES), enumerate(trials)):
            if clock() + trial.step_ms_max < deadline_ms:
                row[number] = min(row[number], trial.step(seq_ids))
    unified, parts = map(sum, zip(*best, strict=True))
    if max(unified, parts) == float("inf"):
        return Speedup(missing=f"no step of {len(full)} rows ended within {budget_ms:.0f} ms")
    by_kind = [one / other for one, other in best]
    return Speedup(ratio=unified / parts, full=by_kind[0], gaps=by_kind[1])


class _Trial:
    """One context to measure with, all of its sequences equally long."""

    def __init__(self, context: Context, clock: Callable[[], float]) -> None:
        self.context = context
        self.step_ms_max = 0.0
        self._clock = clock
        self._lengths = [0] * context.sequences_max

    def fill(self, chunk_ms_max: float) -> float:
        """Evaluate one sequence and restore it in the others; returns the ms of its last chunk.

        Stops after a chunk that takes longer than it may.
        """
        chunk_ms = 0.0
        for at in range(0, _FILL_TOKENS, _CHUNK_TOKENS):
            self.context.put(0, [0] * _CHUNK_TOKENS, 0, at)
            self.context.want_row(_CHUNK_TOKENS - 1)
            chunk_ms = self._decode(_CHUNK_TOKENS)
            if chunk_ms > chunk_ms_max:
                return chunk_ms
        state = self.context.save_state(0)
        for seq_id in range(1, self.context.sequences_max):
            restored = self.context.restore_state(seq_id, state)
            assert restored, "a context has room for all of its sequences"
        self._lengths = [_FILL_TOKENS] * self.context.sequences_max
        return chunk_ms

    def step(self, seq_ids: list[int]) -> float:
        """Decode one token of each of these; returns how long it took, in ms."""
        positions = [self._lengths[seq_id] for seq_id in seq_ids]
        self.context.put_singles([0] * len(seq_ids), seq_ids, positions)
        step_ms = self._decode(len(seq_ids))
        for seq_id in seq_ids:
            self._lengths[seq_id] += 1
        self.step_ms_max = max(self.step_ms_max, step_ms)
        return step_ms

    def close(self) -> None:
        self.context.close()

    def _decode(self, count: int) -> float:
        began_ms = self._clock()
        code = self.context.decode(count)
        if code is not DecodeCode.OK:
            raise EngineFault(f"a first step of {count} tokens failed: {code.name}")
        self.context.logits(1)
        return self._clock() - began_ms
