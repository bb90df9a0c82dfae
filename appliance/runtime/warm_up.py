"""Run the first steps of a context: price steps by them, and see how many threads are worth it.

What this room does: steps of growing size, each a few times, until the time for it is over; with
all threads, then some of them with fewer; the counts of threads for a calm machine.
What it knows: which sizes the curve of `cost` needs: whole tiles, and the small steps of decoding.
What it never does: leave anything in the context.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.domain import MemoryKind
from appliance.runtime.contention import Contention
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.llama import Context, DecodeCode, EngineFault
from appliance.runtime.threads import Counts, candidates, choose_calm

_WARM_UP_MS = 1200.0
_FEWER_MS = 600.0
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SIZES_FEWER = (1, 4, 8, 16, 64)
_SINGLES = (1, 4, 16)  # of these also steps of decoding, which have logits in each row
_SIZE_LEAST = 32
_SIZE_LEAST_FEWER = 4
_DEEP_MS = 400.0
_DEEP_CELLS = 1024
_DEEP_COPIES_LEAST = 2
_DEEP_SIZES = (16, 64)  # without tiles of attention, and with one
_TRIES = 3  # another process may hold one up; the quickest is the price


def warm_up(
    context: Context,
    cost: CostModel,
    clock: Callable[[], float],
    allowed: Counts,
    physical: int = 1,
    contention: Contention | None = None,
) -> Counts:
    """Run small steps of growing size, for about a second, and price steps by them.

    With `contention` to see whether others disturb it, also half as long with each of a few lower
    counts of threads; `physical`: how many cores there are behind the ones we may use. Returns the
    counts for a calm machine: the best of `allowed`, or just those without `contention`.

    Raises:
        EngineFault: the context can't evaluate them.
    """
    most = max(allowed.decode, allowed.prefill)
    tried = candidates(most, physical) if contention else (most,)
    measured = {
        threads: _measure(context, cost, clock, threads, is_first=threads == most)
        for threads in tried
    }
    cost.settle()
    if contention is None:
        return allowed
    common = set.intersection(*(set(steps) for steps in measured.values()))
    chosen = choose_calm(
        most,
        physical,
        _sums(measured, {shape for shape in common if shape.decode}),
        _sums(measured, {shape for shape in common if shape.prefill}),
        contention.read(_WARM_UP_MS).others,
    )
    return Counts(
        decode=min(chosen.decode, allowed.decode), prefill=min(chosen.prefill, allowed.prefill)
    )


def _measure(
    context: Context, cost: CostModel, clock: Callable[[], float], threads: int, *, is_first: bool
) -> dict[StepShape, float]:
    context.set_threads(threads)
    cost.measure(threads)
    deadline_ms = clock() + (_WARM_UP_MS if is_first else _FEWER_MS)
    rows_max = min(context.batch_tokens, context.cells)
    measured: dict[StepShape, float] = {}
    _step(context, 1, clock, is_decode=False)  # the first one maps the weights, or starts threads
    for size in sorted({min(size, rows_max) for size in (_SIZES if is_first else _SIZES_FEWER)}):
        kinds = (False, True) if size in _SINGLES and size <= context.sequences_max else (False,)
        for is_decode in kinds:
            count = _TRIES if clock() < deadline_ms else 1
            tries = [_step(context, size, clock, is_decode=is_decode) for _ in range(count)]
            rows = (size, 0) if is_decode else (0, size)
            shape = StepShape(decode=rows[0], prefill=rows[1], kv_span=size)
            measured[shape] = min(tries)
            cost.observe(shape, min(tries))
        # The next size takes twice as long; the curve needs some, however slow the machine is now.
        least = _SIZE_LEAST if is_first else _SIZE_LEAST_FEWER
        if size >= least and clock() + 2.0 * _TRIES * min(tries) > deadline_ms:
            break
    if is_first:
        _measure_depth(context, cost, clock, measured)
    return measured


def _measure_depth(
    context: Context,
    cost: CostModel,
    clock: Callable[[], float],
    measured: dict[StepShape, float],
) -> None:
    """Repeat two of the steps behind many cells, so that attention to them has a price.

    The cells are copies of one short prompt: what they hold is of no matter, only that it is read.
    """
    head = _DEEP_SIZES[-1]
    copies = min(_DEEP_CELLS, context.cells - 2 * head) // head
    can_fill = context.kv_unified and context.memory_kind is MemoryKind.CUTTABLE
    if not can_fill or context.sequences_max == 1 or copies < _DEEP_COPIES_LEAST:
        return
    if head > context.batch_tokens:
        return
    for size in _DEEP_SIZES:
        shape = StepShape(decode=0, prefill=size, kv_span=size)
        if shape not in measured:
            measured[shape] = _step(context, size, clock, is_decode=False)
            cost.observe(shape, measured[shape])
        _fill(context, head, copies)
        deadline_ms, tries = clock() + _DEEP_MS, list[float]()
        while len(tries) < _TRIES and (not tries or clock() < deadline_ms):
            began_ms = clock()
            _evaluate(context, size, head)
            tries.append(clock() - began_ms)
            context.cut(0, head)
        context.clear()
        cost.observe_depth(shape, measured[shape], min(tries), copies * head)


def _fill(context: Context, tokens: int, copies: int) -> None:
    """Give the first sequence the cells of a prompt so many times over."""
    _evaluate(context, tokens, 0)
    state = context.save_state(0)
    for _ in range(copies - 1):
        context.restore_state(1, state)
        context.copy(1, 0)
        context.remove(1)


def _sums(measured: dict[int, dict[StepShape, float]], shapes: set[StepShape]) -> dict[int, float]:
    """Add up the same steps for each count."""
    return {
        threads: sum(steps[shape] for shape in shapes)
        for threads, steps in measured.items()
        if shapes
    }


def _step(context: Context, rows: int, clock: Callable[[], float], *, is_decode: bool) -> float:
    token_ids = [0] * rows
    began_ms = clock()
    if is_decode:
        context.put_singles(token_ids, list(range(rows)), token_ids)
        _decode(context, rows)
    else:
        _evaluate(context, rows, 0)
    step_ms = clock() - began_ms
    context.clear()
    return step_ms


def _evaluate(context: Context, rows: int, position: int) -> None:
    """Evaluate prompt tokens of the first sequence from a position on."""
    context.put(0, [0] * rows, 0, position)
    context.want_row(rows - 1)
    _decode(context, rows)


def _decode(context: Context, rows: int) -> None:
    code = context.decode(rows)
    if code is not DecodeCode.OK:
        raise EngineFault(f"a first step of {rows} tokens failed: {code.name}")
    context.logits(1)
