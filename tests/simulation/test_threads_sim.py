"""Neighbours that come, go and flicker: bounds, pace and return of the thread counts.

The machine: a step of a fixed amount of work, shared among our threads; where ours and the others'
together are more than the cores, each gets its share, and all of ours wait for the slowest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from appliance.runtime.threads import HOLD_MS, HOLD_MS_MAX, Reading, Reason, ThreadCount

_WINDOW_MS = 50.0
_SEEDS = range(8)
_RUN_MS = 60_000.0


@dataclass
class Machine:
    """Some cores, and how many the others want at each moment."""

    cores: int
    work_ms: float
    wants: list[tuple[float, float]]  # from when on, how many cores
    rng: random.Random
    now_ms: float = 0.0
    count: ThreadCount = field(init=False)
    changes: list[tuple[float, int, int]] = field(default_factory=list)
    done: float = 0.0
    before: int = 0  # threads, when the counts changed last
    alone_ratio: float = 1.0  # how much dearer one thread is than its price says
    seen_alone: bool = False
    _since_ms: float = 0.0
    _others_ms: float = 0.0
    _denied_ms: float = 0.0

    def __post_init__(self) -> None:
        self.count = ThreadCount(self.cores)

    def wanted(self) -> float:
        return next(cores for since_ms, cores in reversed(self.wants) if since_ms <= self.now_ms)

    def calm_ms(self, threads: int) -> float:
        return self.work_ms * float(threads**-0.9)

    def priced_ms(self, threads: int) -> float:
        """Price a calm step; one that has run on one thread is priced as it went."""
        learnt = threads == 1 and self.seen_alone and not self.count.on_trial
        return self.calm_ms(threads) * (self.alone_ratio if learnt else 1.0)

    def run(self, until_ms: float, *, follow: bool = True) -> None:
        while self.now_ms < until_ms:
            self.step(follow=follow)

    def step(self, *, follow: bool) -> None:
        threads, wanted = self.count.now, self.wanted()
        share = min(1.0, self.cores / (threads + wanted))
        denied = threads * (1.0 - share)
        slowed = 1.0 / share if threads == 1 else 1.0 + 4.0 * denied
        if threads == 1:
            slowed *= self.alone_ratio
            self.seen_alone = True
        step_ms = self.calm_ms(threads) * slowed * self.rng.uniform(0.95, 1.05)
        self.now_ms += step_ms
        self.done += 1.0
        self._others_ms += wanted * share * step_ms
        self._denied_ms += denied * step_ms
        if self.count.on_trial:
            self.count.judge(step_ms, self.priced_ms(self.before - 1))
        if threads > 1:
            self.count.observe(step_ms, self.priced_ms(threads - 1))
        if follow and self.now_ms - self._since_ms >= _WINDOW_MS:
            self.read(threads)

    def read(self, threads: int) -> None:
        window_ms = self.now_ms - self._since_ms
        noise = self.rng.uniform(-0.1, 0.1)
        reading = Reading(
            window_ms=window_ms,
            cores=float(self.cores),
            others=max(0.0, self._others_ms / window_ms + noise),
            denied=self._denied_ms / window_ms,
        )
        if self.count.read(self.now_ms, reading):
            self.before = threads
            self.changes.append((self.now_ms, threads, self.count.now))
        self._since_ms, self._others_ms, self._denied_ms = self.now_ms, 0.0, 0.0


def neighbours(rng: random.Random, cores: int, until_ms: float) -> list[tuple[float, float]]:
    """Want some cores for some time, again and again, from flickers of 20 ms to 20 s."""
    wants, at_ms = [(0.0, 0.0)], 0.0
    while at_ms < until_ms:
        at_ms += rng.choice([20.0, 200.0, 2000.0, 20_000.0]) * rng.uniform(0.5, 1.0)
        wants.append((at_ms, rng.choice([0.0, 0.0, rng.uniform(0.1, 1.0), float(cores)])))
    return wants


def machine(seed: int, wants: list[tuple[float, float]] | None = None, cores: int = 0) -> Machine:
    rng = random.Random(seed)
    cores = cores or rng.choice([2, 4, 8, 32])
    work_ms = rng.choice([10.0, 30.0, 100.0]) * cores
    return Machine(cores, work_ms, wants or neighbours(rng, cores, _RUN_MS), rng)


@pytest.mark.parametrize("seed", _SEEDS)
def test_counts_stay_in_bounds_and_rise_at_most_once_in_a_hold(seed: int) -> None:
    box = machine(seed)
    while box.now_ms < _RUN_MS:
        box.step(follow=True)
        assert 1 <= box.count.now <= box.cores
    raised = [at_ms for at_ms, before, after in box.changes if after > before]
    lowered = [at_ms for at_ms, before, after in box.changes if after < before]
    for at_ms in raised:
        earlier = [other for other in (*raised, *lowered) if other < at_ms]
        assert not earlier or at_ms - max(earlier) >= HOLD_MS - 1e-6


@pytest.mark.parametrize("seed", _SEEDS)
def test_all_threads_are_back_soon_after_the_last_neighbour_has_gone(seed: int) -> None:
    rng = random.Random(seed)
    box = machine(seed, [*neighbours(rng, 4, 60_000.0), (90_000.0, 0.0)], cores=4)
    box.run(90_000.0 + HOLD_MS_MAX + 2_000.0)
    assert box.count.now == box.cores


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_busy_neighbour_takes_its_core_within_a_fifth_of_a_second(seed: int) -> None:
    box = machine(seed, [(0.0, 0.0), (5_000.0, 1.0)], cores=2)
    box.run(30_000.0)
    assert [(before, after) for _, before, after in box.changes] == [(2, 1)]
    late_ms = box.calm_ms(2) * 6  # a step may have just begun
    assert box.changes[0][0] <= 5_200.0 + late_ms


def test_following_does_more_work_than_all_threads_all_the_time() -> None:
    gains = []
    for seed in _SEEDS:
        follows, stays = machine(seed), machine(seed)
        follows.run(_RUN_MS)
        stays.run(_RUN_MS, follow=False)
        gains.append(follows.done / stays.done)
    assert min(gains) >= 0.95
    assert sum(gains) / len(gains) >= 1.2


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_thread_comes_back_when_giving_it_up_did_not_pay(seed: int) -> None:
    always = [(0.0, 0.25)]
    follows, stays = machine(seed, always, cores=2), machine(seed, always, cores=2)
    follows.alone_ratio = 2.5
    follows.run(40_000.0)
    stays.run(40_000.0, follow=False)
    assert follows.count.now == 2
    assert follows.count.changes[Reason.NO_GAIN] <= 2
    assert follows.done >= 0.95 * stays.done
