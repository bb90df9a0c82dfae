"""Run the first steps of a context, and price steps by them.

What this room does: steps of growing size, each a few times, until the time for it is over.
What it knows: which sizes the curve of `cost` needs: whole tiles, and the small steps of decoding.
What it never does: leave anything in the context.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.llama import Context, DecodeCode, EngineFault

_WARM_UP_MS = 1200.0
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SINGLES = (1, 4, 16)  # of these also steps of decoding, which have logits in each row
_SIZE_LEAST = 32
_TRIES = 3  # another process may hold one up; the quickest is the price


def warm_up(context: Context, cost: CostModel, clock: Callable[[], float]) -> None:
    """Run small steps of growing size, for about a second, and price steps by them.

    Raises:
        EngineFault: the context can't evaluate them.
    """
    deadline_ms = clock() + _WARM_UP_MS
    rows_max = min(context.batch_tokens, context.cells)
    _step(context, 1, clock, is_decode=False)  # the first one maps the weights
    for size in sorted({min(size, rows_max) for size in _SIZES}):
        kinds = (False, True) if size in _SINGLES and size <= context.sequences_max else (False,)
        for is_decode in kinds:
            count = _TRIES if clock() < deadline_ms else 1
            tries = [_step(context, size, clock, is_decode=is_decode) for _ in range(count)]
            rows = (size, 0) if is_decode else (0, size)
            shape = StepShape(decode=rows[0], prefill=rows[1], kv_span=size)
            cost.observe(shape, min(tries))
        # The next size takes twice as long; the curve needs some, however slow the machine is now.
        if size >= _SIZE_LEAST and clock() + 2.0 * _TRIES * min(tries) > deadline_ms:
            break
    cost.settle()


def _step(context: Context, rows: int, clock: Callable[[], float], *, is_decode: bool) -> float:
    token_ids = [0] * rows
    began_ms = clock()
    if is_decode:
        context.put_singles(token_ids, list(range(rows)), token_ids)
    else:
        context.put(0, token_ids, 0, 0)
        context.want_row(rows - 1)
    code = context.decode(rows)
    if code is not DecodeCode.OK:
        raise EngineFault(f"a first step of {rows} tokens failed: {code.name}")
    context.logits(1)
    step_ms = clock() - began_ms
    context.clear()
    return step_ms
