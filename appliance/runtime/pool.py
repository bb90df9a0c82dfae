"""Keep the threads of one context fitting the box.

What this room does: prices each step, reads the machine now and then, asks `threads` for the
counts of the next step, and sets them between steps.
What it knows: the context, its cost model, and that both must change together.
What it never does: decide, or change anything during a step. The threads themselves are OpenMP's:
it keeps them from step to step, and `process` bounds how long they spin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from appliance.runtime.contention import Contention
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.threads import Counts, Reading, ThreadCount


class Threaded(Protocol):
    """What has threads to set: a context."""

    def set_threads(self, count: int) -> None:
        """Evaluate with this many from the next step on."""
        ...


class Pool:
    """The threads of one context. Used by the thread that decodes, between steps."""

    def __init__(
        self,
        context: Threaded,
        cost: CostModel,
        calm: Counts,
        contention: Contention | None = None,
    ) -> None:
        """Begin with the counts of a calm machine; without `contention` they stay."""
        self.cost = cost
        self._context = context
        self._decode, self._prefill = _Kind(calm.decode), _Kind(calm.prefill)
        self._contention = contention
        self._busy_ms = 0.0
        self._change = ""
        self._set = 0
        self._price()

    @property
    def counts(self) -> Counts:
        """Read the counts of the next step."""
        return Counts(decode=self._decode.count.now, prefill=self._prefill.count.now)

    def take_change(self) -> str:
        """Name why the counts changed since the last call; empty if they did not."""
        change, self._change = self._change, ""
        return change

    def prepare(self, shape: StepShape) -> None:
        """Set the threads of a step that is about to be evaluated."""
        count = self.cost.threads(shape)
        if count != self._set:
            self._set = count
            self._context.set_threads(count)

    def observe(self, shape: StepShape, step_ms: float, now_ms: float) -> None:
        """Price a step that was evaluated, and choose the threads of the next one."""
        contention = self._contention
        if contention is not None:
            kind = self._prefill if shape.prefill else self._decode
            kind.observe(self.cost, shape, step_ms)
            self._busy_ms += step_ms
        self.cost.observe(shape, step_ms)
        if contention is not None and contention.due(now_ms):
            # Where the machine does not tell any more, the counts stay as they are.
            with contextlib.suppress(OSError):
                self._follow(contention, now_ms)

    def _follow(self, contention: Contention, now_ms: float) -> None:
        reading = contention.read(self._busy_ms)
        self._busy_ms = 0.0
        changed = [
            kind
            for kind in (self._decode, self._prefill)
            if kind.follow(self.cost, now_ms, reading)
        ]
        if changed:
            self._change = changed[0].count.reason.value
            self._price()

    def _price(self) -> None:
        now = self.counts
        self.cost.use(decode_threads=now.decode, prefill_threads=now.prefill)


class _Kind:
    """The count of one kind of step, and the prices it is judged by."""

    def __init__(self, calm: int) -> None:
        self.count = ThreadCount(calm)
        self._before: Callable[[StepShape], float] | None = None  # prices when a trial began

    def observe(self, cost: CostModel, shape: StepShape, step_ms: float) -> None:
        if self._before is not None:
            self.count.judge(step_ms, self._before(shape))
        if self.count.now > 1:
            self.count.observe(step_ms, cost.predict_ms(shape, self.count.now - 1))

    def follow(self, cost: CostModel, now_ms: float, reading: Reading) -> bool:
        threads = self.count.now
        changed = self.count.read(now_ms, reading)
        if changed and self.count.on_trial:
            self._before = cost.frozen(threads - 1)
        elif not self.count.on_trial:
            self._before = None
        return changed
