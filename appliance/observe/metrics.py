"""Take measurements without ever waiting, and show them as Prometheus text.

What this room does: one series per metric and combination of labels; counters, gauges and
histograms; the text format; the engine's gauges and the process's own facts.
What it knows: `families`, the table of all names; a bound on series per metric, so that a label
whose values someone else chooses can't fill the memory.
What it never does: block, do I/O while recording, or lock: it belongs to the event loop's thread.
"""

from __future__ import annotations

import logging
import math
import resource
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import psutil

from appliance import logs
from appliance.observe.families import FAMILIES, Family, Kind

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABEL_CHARS_MAX = 128
_REFUSED = "appliance_metric_samples_refused_total"

Labels = tuple[str, ...]


class StepGauges(Protocol):
    """What is read of one engine step. Satisfied by `runtime.wire.EngineGauges`."""

    @property
    def running(self) -> int:
        """Requests being generated."""
        ...

    @property
    def waiting(self) -> int:
        """Requests waiting."""
        ...

    @property
    def sequences_used(self) -> int:
        """Sequences in use."""
        ...

    @property
    def cells_used(self) -> int:
        """KV cells held."""
        ...

    @property
    def cells_total(self) -> int:
        """KV cells there are."""
        ...

    @property
    def cells_cached(self) -> int:
        """KV cells held for their prefixes alone."""
        ...

    @property
    def prefix_tokens_total(self) -> int:
        """Taken over instead of evaluated, since the worker started."""
        ...

    @property
    def evictions_total(self) -> int:
        """Of kept prefixes, since the worker started."""
        ...

    @property
    def swapped_bytes(self) -> int:
        """Host memory of sequences that had to make way."""
        ...

    @property
    def drafted_total(self) -> int:
        """Guessed and checked, since the worker started."""
        ...

    @property
    def draft_accepted_total(self) -> int:
        """Guessed rightly, since the worker started."""
        ...

    @property
    def model_drafted_total(self) -> int:
        """Guessed by a draft model, of those guessed."""
        ...

    @property
    def model_draft_accepted_total(self) -> int:
        """Guessed rightly by a draft model."""
        ...

    @property
    def draft_gain(self) -> float:
        """Tokens per second, as a multiple of those without guesses."""
        ...

    @property
    def preemptions_total(self) -> int:
        """Since the worker started."""
        ...

    @property
    def decode_tokens(self) -> int:
        """Drawn in this step."""
        ...

    @property
    def prefill_tokens(self) -> int:
        """Of prompts, in this step."""
        ...

    @property
    def step_ms(self) -> float:
        """How long the step took."""
        ...

    @property
    def threads_decode(self) -> int:
        """Of a step without prompt tokens."""
        ...

    @property
    def threads_prefill(self) -> int:
        """Of all other steps."""
        ...

    @property
    def threads_change(self) -> str:
        """Why they changed with this step; empty if they did not."""
        ...


@dataclass(slots=True)
class _Histogram:
    """Counts per bucket (the last is everything above), and the sum of the values."""

    counts: list[int]
    total: float = 0.0


class _Series:
    """Every series of one family, at most `series_max` of them."""

    def __init__(self, family: Family, series_max: int) -> None:
        self.family = family
        self.numbers: dict[Labels, float] = {}
        self.histograms: dict[Labels, _Histogram] = {}
        self._series_max = series_max

    def take(self, labels: Labels, value: float) -> bool:
        """Take one value; False if it would need one series too many."""
        store = self.histograms if self.family.kind is Kind.HISTOGRAM else self.numbers
        if labels not in store and len(store) >= self._series_max:
            return False
        if self.family.kind is Kind.COUNTER:
            self.numbers[labels] = self.numbers.get(labels, 0.0) + value
        elif self.family.kind is Kind.GAUGE:
            self.numbers[labels] = value
        else:
            self._observe(labels, value)
        return True

    def _observe(self, labels: Labels, value: float) -> None:
        buckets = self.family.buckets
        histogram = self.histograms.get(labels)
        if histogram is None:
            histogram = self.histograms[labels] = _Histogram([0] * (len(buckets) + 1))
        histogram.counts[bisect_left(buckets, value)] += 1
        histogram.total += value

    def lines(self) -> Iterator[str]:
        """Show the family as Prometheus text; nothing while it has no series."""
        family = self.family
        if not self.numbers and not self.histograms:
            return
        yield f"# HELP {family.name} {_escape_help(family.help)}"
        yield f"# TYPE {family.name} {family.kind.value}"
        for labels, number in self.numbers.items():
            yield f"{family.name}{_show_labels(family.labels, labels)} {_show(number)}"
        for labels, histogram in self.histograms.items():
            yield from self._histogram_lines(labels, histogram)

    def _histogram_lines(self, labels: Labels, histogram: _Histogram) -> Iterator[str]:
        name, names = self.family.name, self.family.labels
        seen = 0
        for bound, count in zip((*self.family.buckets, math.inf), histogram.counts, strict=True):
            seen += count
            shown = _show_labels((*names, "le"), (*labels, _show(bound)))
            yield f"{name}_bucket{shown} {seen}"
        yield f"{name}_sum{_show_labels(names, labels)} {_show(histogram.total)}"
        yield f"{name}_count{_show_labels(names, labels)} {seen}"


class Metrics:
    """All measurements of this daemon. Satisfies `runtime.router.Observer`."""

    def __init__(
        self,
        *,
        version: str,
        series_max: int,
        families: tuple[Family, ...] = FAMILIES,
        read_process: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Start with no series.

        Args:
            version: of the program, shown in `appliance_build_info`.
            series_max: series per metric; a sample that would need one more is only counted.
            families: the table of metrics.
            read_process: reads the `process_*` values when they are shown.
        """
        self._series = {family.name: _Series(family, series_max) for family in families}
        self._read_process = read_process or ProcessFacts().read
        self._process_cpu_s = 0.0
        self._totals_seen: dict[str, dict[tuple[str, ...], int]] = {}  # by model, then by series
        self._followed: list[tuple[str, dict[str, str], Callable[[], float]]] = []
        self.record("appliance_build_info", 1, version=version)

    def record(self, name: str, value: float, /, **labels: str) -> None:
        """Take one sample: a counter grows by it, a gauge becomes it, a histogram counts it.

        Never blocks. A label that is not given is empty; a name or label that the table does not
        hold is a bug of ours. A value that is not finite is left out.
        """
        series = self._series[name]
        names = series.family.labels
        assert labels.keys() <= set(names), f"{name} has no label {labels.keys() - set(names)}"
        if not math.isfinite(value):
            return
        values = tuple(labels.get(label, "")[:LABEL_CHARS_MAX] for label in names)
        if not series.take(values, value):
            self._series[_REFUSED].take((name,), 1)

    def follow(self, name: str, total: Callable[[], float], /, **labels: str) -> None:
        """Show a number that somebody else keeps: `total` is read for each page, and never blocks.

        Call once per series, while wiring.
        """
        assert self._series[name].family.kind is not Kind.HISTOGRAM, name
        self._followed.append((name, labels, total))

    def value(self, name: str, /, **labels: str) -> float:
        """Read one series: the number, or a histogram's count; 0 if there is none."""
        series = self._series[name]
        key = tuple(labels.get(label, "") for label in series.family.labels)
        if series.family.kind is Kind.HISTOGRAM:
            histogram = series.histograms.get(key)
            return float(sum(histogram.counts)) if histogram else 0.0
        return series.numbers.get(key, 0.0)

    def render(self) -> str:
        """Show everything in the Prometheus text format (content type CONTENT_TYPE)."""
        self._take_process_facts()
        for name, labels, total in self._followed:
            number = total()
            if self._series[name].family.kind is Kind.COUNTER:  # it only ever grows
                number = max(0.0, number - self.value(name, **labels))
            self.record(name, number, **labels)
        lines = (line for series in self._series.values() for line in series.lines())
        return "\n".join(lines) + "\n"

    # --- runtime.router.Observer ----------------------------------------------------------------

    def step(self, model: str, gauges: StepGauges) -> None:
        """Take what one step of a worker brought; an idle heartbeat moves only the gauges."""
        for name, number in (
            ("appliance_requests_running", gauges.running),
            ("appliance_requests_waiting", gauges.waiting),
            ("appliance_sequences_used", gauges.sequences_used),
            ("appliance_kv_cells_used", gauges.cells_used),
            ("appliance_kv_cells_cached", gauges.cells_cached),
            ("appliance_kv_cells_capacity", gauges.cells_total),
            ("appliance_swapped_bytes", gauges.swapped_bytes),
            ("appliance_draft_gain_ratio", gauges.draft_gain),
            ("appliance_kv_cache_usage_ratio", gauges.cells_used / max(1, gauges.cells_total)),
        ):
            self.record(name, number, model=model)
        for phase, tokens in (("decode", gauges.decode_tokens), ("prefill", gauges.prefill_tokens)):
            if tokens:
                self.record("appliance_engine_tokens_total", tokens, model=model, phase=phase)
        if gauges.decode_tokens or gauges.prefill_tokens:
            self.record("appliance_step_seconds", gauges.step_ms / 1000, model=model)
        self.record("appliance_threads", gauges.threads_decode, model=model, phase="decode")
        self.record("appliance_threads", gauges.threads_prefill, model=model, phase="prefill")
        if gauges.threads_change:
            reason = gauges.threads_change
            self.record("appliance_thread_changes_total", 1, model=model, reason=reason)
        self._take_totals(
            model,
            {
                "appliance_preemptions_total": gauges.preemptions_total,
                "appliance_prefix_tokens_total": gauges.prefix_tokens_total,
                "appliance_prefix_evictions_total": gauges.evictions_total,
            },
        )
        guessed, right = gauges.model_drafted_total, gauges.model_draft_accepted_total
        for kind, totals in (
            ("model", (guessed, right)),
            ("ngram", (gauges.drafted_total - guessed, gauges.draft_accepted_total - right)),
        ):
            names = ("appliance_draft_tokens_total", "appliance_draft_accepted_tokens_total")
            self._take_totals(model, dict(zip(names, totals, strict=True)), kind=kind)

    def worker_lost(self, model: str, cause: str) -> None:
        """Count a worker that ended unasked; what it held is gone with it."""
        self.record("appliance_worker_restarts_total", 1, model=model, cause=cause)
        self._totals_seen.pop(model, None)
        for name in (
            "appliance_requests_running",
            "appliance_sequences_used",
            "appliance_kv_cells_used",
            "appliance_kv_cells_cached",
            "appliance_kv_cache_usage_ratio",
            "appliance_swapped_bytes",
        ):
            self.record(name, 0, model=model)
        logs.event("worker_lost", level=logging.WARNING, model=model, cause=cause)

    def standby(self, model: str, level: int, resident_ratio: float) -> None:
        """Take how the standby of a model is held; never blocks."""
        self.record("appliance_standby_level", level, model=model)
        self.record("appliance_standby_resident_ratio", resident_ratio, model=model)

    def event(self, name: str, **fields: object) -> None:
        """Log one event of the runtime."""
        logs.write(name, logging.INFO, fields)

    def _take_totals(self, model: str, totals: dict[str, int], **labels: str) -> None:
        """Turn a worker's own running totals into growth; a new worker starts again at zero."""
        seen = self._totals_seen.setdefault(model, {})
        for name, total in totals.items():
            key = (name, *labels.values())
            before = seen.get(key, 0)
            grown = total - before if total >= before else total
            seen[key] = total
            if grown:
                self.record(name, grown, model=model, **labels)

    def _take_process_facts(self) -> None:
        for name, value in self._read_process().items():
            if name == "process_cpu_seconds_total":
                self.record(name, max(0.0, value - self._process_cpu_s))
                self._process_cpu_s = max(value, self._process_cpu_s)
            else:
                self.record(name, value)


class ProcessFacts:
    """Read this process's own numbers, under the names Prometheus clients use everywhere."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def read(self) -> dict[str, float]:
        """Read them now from /proc, which does not block."""
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            return {
                "process_cpu_seconds_total": cpu.user + cpu.system,
                "process_resident_memory_bytes": float(self._process.memory_info().rss),
                "process_open_fds": float(self._process.num_fds()),
                "process_max_fds": float(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
                "process_start_time_seconds": self._process.create_time(),
            }


def _show(number: float) -> str:
    if math.isinf(number):
        return "+Inf"
    return str(int(number)) if number == int(number) and abs(number) < 2**53 else repr(number)


def _show_labels(names: tuple[str, ...], values: Labels) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
