"""Hold what is measured against what is to be reached.

What this room does: the table of figures to reach; the ratios of each; `holds` or `falls short`.
What it knows: a ratio reaches its bar if its median does; the 95 % interval beside it says how
noisy the machine was. A count that must be exact (`exact`) must reach it in every round.
What it never does: measure. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from benchmarks.intervals import Interval, interval
from benchmarks.samples import CEILING, OURS_GRPC, OURS_REST, PEER, Sample, case_of, ratios, select


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: a metric of a case on one side, alone or over that of another side or case."""

    suite: str
    case: str
    metric: str
    side: str
    over: str = ""  # another side; empty: the metric itself
    over_case: str = ""  # of another case; empty: the same
    at_least: float | None = None
    at_most: float | None = None
    exact: bool = False

    @property
    def title(self) -> str:
        """Name the figure."""
        said = f"{self.suite}, {self.case}: {self.metric} of {self.side}"
        other = ", ".join(part for part in (self.over, self.over_case) if part)
        return f"{said} / {other}" if other else said

    @property
    def limit(self) -> float:
        """Name the bar itself."""
        limit = self.at_most if self.at_least is None else self.at_least
        assert limit is not None
        return limit


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one figure."""

    bar: Bar
    measured: Interval | None  # nothing was measured
    why: str = ""

    @property
    def holds(self) -> bool:
        """Say whether the bar is reached: by the median, or by every round where it is exact."""
        if self.measured is None:
            return False
        found, exact = self.measured, self.bar.exact
        if self.bar.at_least is not None:
            return (found.low if exact else found.median) >= self.bar.at_least
        return (found.high if exact else found.median) <= self.bar.limit

    @property
    def line(self) -> str:
        """Write the figure in one line: name, measured, bar, what became of it."""
        sign = ">=" if self.bar.at_most is None else "<="
        said = f"{self.bar.title}: "
        if self.measured is None:
            said += f"not measured ({self.why})"
        else:
            found = self.measured
            said += f"{found.median:.3g} [{found.low:.3g}, {found.high:.3g}]"
        return f"{said}  bar {sign} {self.bar.limit:g}  {'holds' if self.holds else 'falls short'}"


def _throughput() -> Iterable[Bar]:
    for streams, least in ((1, 1.00), (4, 1.00), (8, 0.97), (16, 0.97)):
        for side in (OURS_GRPC, OURS_REST):
            for over, bar in ((PEER, least), (CEILING, 0.92)):
                yield Bar(
                    suite="throughput",
                    case=case_of(streams),
                    metric="tokens_per_s",
                    side=side,
                    over=over,
                    at_least=bar,
                )


def _tiny() -> Iterable[Bar]:
    for streams in (8, 32):
        for side in (OURS_GRPC, OURS_REST):
            for metric in ("tokens_per_s", "deltas_per_token"):
                yield Bar(
                    suite="tiny",
                    case=case_of(streams),
                    metric=metric,
                    side=side,
                    over=PEER,
                    at_least=0.95,
                )


def _ours(suite: str, case: str, metric: str, **limits: Any) -> Bar:  # noqa: ANN401 - fields of Bar
    return Bar(suite=suite, case=case, metric=metric, side=OURS_REST, **limits)


def _pressure() -> Iterable[Bar]:
    yield _ours("busy", "4 streams", "tokens_per_s", over=PEER, at_least=1.4)
    crowded, fitting = "8 streams, cells for 4", "4 streams, cells for 4"
    yield _ours("cells", crowded, "failed", at_most=0.0, exact=True)
    yield _ours("cells", crowded, "tokens_per_s", over_case=fitting, at_least=0.95)
    polite, alone, greedy = "polite_request_ms", "polite alone", "beside a greedy client"
    yield _ours("fairness", greedy, polite, over_case=alone, at_most=2.2)
    yield _ours("fairness", greedy, polite, over=PEER, at_most=0.35)
    batch = "beside a greedy client of class batch"
    yield _ours("fairness", batch, polite, over_case=alone, at_most=1.3)


def _control() -> Iterable[Bar]:
    for side in (OURS_GRPC, OURS_REST):
        yield Bar(suite="cancel", case="a running request", metric="steps", side=side, at_most=1.0)
    demo = "demo model, 8 streams"
    yield _ours("schema", demo, "valid_percent", at_least=100.0, exact=True)
    yield _ours("schema", demo, "refused", at_most=0.0, exact=True)
    yield Bar(
        suite="schema",
        case="8 streams, in a schema",
        metric="tokens_per_s",
        side=OURS_GRPC,
        over_case="8 streams, unconstrained",
        at_least=0.9,
    )
    long_chats = "beside 20 long chats a second"
    yield _ours("chats", long_chats, "gap_ms", over_case="4 streams alone", at_most=1.15)


# The table of what is to be reached. "ours" is one configuration: the defaults.
BARS: tuple[Bar, ...] = (
    *_throughput(),
    *_tiny(),
    _ours("first-token", "8 prompts at once", "first_token_ms", over=PEER, at_most=0.75),
    _ours("first-token", "8 prompts at once", "first_token_ms_last", over=PEER, at_most=1.3),
    _ours("gap", "a long prompt arrives", "gap_ms_worst", over=PEER, at_most=0.05),
    _ours("gap", "a long prompt arrives", "newcomer_first_token_ms", over_case="idle", at_most=1.3),
    _ours("shared-prefix", "8 requests at once", "tokens_per_s", over=PEER, at_least=3.5),
    *_pressure(),
    *_control(),
)


def judge(
    samples: Sequence[Sample],
    suites: Iterable[str],
    lost: dict[str, str],
    bars: Sequence[Bar] = BARS,
) -> list[Verdict]:
    """Hold every figure of these suites against its bar; `lost`: why a suite came to no end."""
    wanted = set(suites)
    return [_verdict(bar, samples, lost) for bar in bars if bar.suite in wanted]


def _verdict(bar: Bar, samples: Sequence[Sample], lost: dict[str, str]) -> Verdict:
    ours = select(samples, bar.suite, bar.case, bar.side)
    if bar.over or bar.over_case:
        theirs = select(samples, bar.suite, bar.over_case or bar.case, bar.over or bar.side)
        values = ratios(ours, theirs, bar.metric)
    else:
        values = [one.metrics[bar.metric] for one in ours.values() if bar.metric in one.metrics]
    if values:
        return Verdict(bar=bar, measured=interval(values))
    return Verdict(bar=bar, measured=None, why=lost.get(bar.suite, "no round on both sides"))
