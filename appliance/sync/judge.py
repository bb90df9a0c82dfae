"""Judge a candidate by what was measured of it here, against the active version. Pure.

What this room does: numbers out of a window of requests; a verdict out of two such, with a reason.
What it knows: both ran on this appliance, so no figure of another machine is needed; copies of
requests ran at the lowest priority, so their times say nothing.
What it never does: pass what was not measured. Few samples, a short time, or an active version that
nothing is known of are `inconclusive`, which holds.

In this order; the first that applies is the verdict:

| what | verdict |
|---|---|
| the candidate's worker was lost | fail |
| `bad_min` bad answers of a kind or more, their share over the active's by `bad_over` | fail |
| fewer samples than asked for, or not long enough | inconclusive |
| its times are wanted, and either side has fewer than asked for | inconclusive |
| median or 95th percentile of a time over the active's by more than the bar and `slack_ms` | fail |
| its answers are less like the active's than `agreed_min` | fail |
| else | pass |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TypeAlias

from appliance.contract.release import Trial
from appliance.domain import Judgement, Value, Verdict, Window

_Found: TypeAlias = tuple[Verdict, str]


class Bars(Value):
    """What a candidate may be worse by. Shares from 0 to 1, times as a factor and in ms."""

    bad_min: int = 3
    bad_over: float = 0.05
    time_ratio_max: float = 1.5
    slack_ms: float = 50.0
    agreed_min: float = 0.0


class Times(Value):
    """A series in brief, in ms. Both percentiles are 0.0 where nothing was measured."""

    count: int = 0
    p50_ms: float = 0.0
    p95_ms: float = 0.0


class Measures(Value):
    """A window in brief: what a verdict rests on, and what is kept of it."""

    requests: int = 0
    errors: int = 0
    empty: int = 0
    looping: int = 0
    constrained: int = 0
    unfinished: int = 0
    first_token: Times = Times()
    token_gap: Times = Times()
    worker_losses: int = 0
    compared: int = 0
    agreed_ratio: float = 0.0


def measured(window: Window, *, shadow: bool) -> Measures:
    """Shorten a window to its numbers: of copies alone, or of the requests of users alone."""
    samples = [sample for sample in window.samples if sample.is_shadow == shadow]
    answered = [sample for sample in samples if not sample.error]
    return Measures(
        requests=len(samples),
        errors=sum(bool(sample.error) for sample in samples),
        empty=sum(sample.is_empty for sample in answered),
        looping=sum(sample.is_looping for sample in answered),
        constrained=sum(sample.is_constrained for sample in answered),
        unfinished=sum(sample.is_unfinished_schema for sample in answered),
        first_token=_times(sample.first_token_ms for sample in answered),
        token_gap=_times(sample.token_gap_ms for sample in answered),
        worker_losses=window.worker_losses,
        compared=window.compared_count,
        agreed_ratio=window.agreed_ratio,
    )


def judge(
    candidate: Measures,
    active: Measures,
    trial: Trial,
    bars: Bars,
    *,
    elapsed_s: float,
    shadow: bool,
) -> Judgement:
    """Say what the numbers say. shadow: the candidate's are of copies, so its times don't count."""
    stages = [_broken(candidate, active, trial, bars), _early(candidate, trial, elapsed_s)]
    if not shadow:
        stages += [_unknown(candidate, active, trial), _slow(candidate, active, bars)]
    passed = (Verdict.PASS, f"{candidate.requests} requests as good as the active version's")
    verdict, reason = next(itertools.chain(*stages, _unlike(candidate, bars)), passed)
    return Judgement(verdict=verdict, reason=reason, sample_count=candidate.requests)


def _broken(candidate: Measures, active: Measures, trial: Trial, bars: Bars) -> Iterator[_Found]:
    """Name a fault that no further sample can mend."""
    if candidate.worker_losses:
        yield Verdict.FAIL, f"its worker was lost {candidate.worker_losses} times"
    yield from _bad(candidate, active, trial, bars)


def _early(candidate: Measures, trial: Trial, elapsed_s: float) -> Iterator[_Found]:
    if candidate.requests < trial.samples_min:
        measured_so_far = f"{candidate.requests} of {trial.samples_min} requests measured"
        yield Verdict.INCONCLUSIVE, measured_so_far
    if elapsed_s < trial.duration_s:
        yield Verdict.INCONCLUSIVE, f"{elapsed_s:.0f} of {trial.duration_s:.0f} s have passed"


def _unlike(candidate: Measures, bars: Bars) -> Iterator[_Found]:
    if candidate.compared and candidate.agreed_ratio < bars.agreed_min:
        yield (
            Verdict.FAIL,
            (
                f"its answers are {candidate.agreed_ratio:.2f} like the active's; "
                f"at least {bars.agreed_min:.2f} are asked for"
            ),
        )


def _bad(candidate: Measures, active: Measures, trial: Trial, bars: Bars) -> Iterator[_Found]:
    """Name each kind of bad answer that the candidate gives too often.

    Before there are enough samples a share is taken of as many as are asked for, so that a fault
    that is sure by then fails now, and one that is not waits.
    """
    kinds = (
        ("errors", candidate.errors, active.errors, candidate.requests, active.requests),
        ("empty answers", candidate.empty, active.empty, candidate.requests, active.requests),
        ("looping answers", candidate.looping, active.looping, candidate.requests, active.requests),
        (
            "unfinished schemas",
            candidate.unfinished,
            active.unfinished,
            candidate.constrained,
            active.constrained,
        ),
    )
    for name, count, active_count, of, active_of in kinds:
        share = count / max(of, trial.samples_min)
        usual = active_count / active_of if active_of else 0.0
        if count >= bars.bad_min and share > usual + bars.bad_over:
            usually = f"the active version has {active_count} of {active_of}"
            yield Verdict.FAIL, f"{count} {name} of {of}; {usually}"


def _unknown(candidate: Measures, active: Measures, trial: Trial) -> Iterator[_Found]:
    """Name what is not measured enough to be compared.

    Gaps between tokens are compared where both have them: answers of one token have none.
    """
    for whose, times in (("its", candidate.first_token), ("the active's", active.first_token)):
        if times.count < trial.samples_min:
            yield (
                Verdict.INCONCLUSIVE,
                (
                    f"{whose} time to the first token is known of {times.count} requests, "
                    f"{trial.samples_min} are asked for"
                ),
            )


def _slow(candidate: Measures, active: Measures, bars: Bars) -> Iterator[_Found]:
    pairs = (
        ("time to the first token", candidate.first_token, active.first_token),
        ("time between tokens", candidate.token_gap, active.token_gap),
    )
    for name, ours, theirs in pairs:
        if not ours.count or not theirs.count:
            continue
        for which, value, usual in (
            ("median", ours.p50_ms, theirs.p50_ms),
            ("95th percentile", ours.p95_ms, theirs.p95_ms),
        ):
            bar = usual * bars.time_ratio_max + bars.slack_ms
            if value > bar:
                yield (
                    Verdict.FAIL,
                    f"its {name} has a {which} of {value:.0f} ms, over {bar:.0f} ms",
                )


def _times(values: Iterator[float | None]) -> Times:
    ordered = sorted(value for value in values if value is not None and math.isfinite(value))
    if not ordered:
        return Times()
    return Times(count=len(ordered), p50_ms=_at(ordered, 0.5), p95_ms=_at(ordered, 0.95))


def _at(ordered: list[float], share: float) -> float:
    """Take the nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
