"""Bandwidth: shared, kept to within five percent, and changed while it is in use."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.clock import monotonic_ms
from appliance.contract.names import blob_path
from appliance.sync.throttle import Throttle
from tests.unit.sync.hostile import CHUNK, Server, a_file, fetching

PIECE = 4096


async def _taken(throttle: Throttle, takers: int, seconds: float) -> list[int]:
    """Let some take as they can for so long; how much each got."""
    counts = [0] * takers

    async def take(number: int) -> None:
        while True:
            await throttle.take(PIECE)
            counts[number] += PIECE

    async def all_of() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(takers):
                group.create_task(take(number))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await all_of()
    return counts


def test_four_connections_share_a_limit_to_within_five_percent() -> None:
    rate = 2_000_000

    async def run() -> list[int]:
        throttle = Throttle(lambda: rate)
        await throttle.take(rate // 5)  # the burst is spent
        return await _taken(throttle, 4, 2.0)

    counts = asyncio.run(run())
    assert sum(counts) == pytest.approx(2.0 * rate, rel=0.05)
    assert max(counts) - min(counts) <= 2 * PIECE


def test_a_limit_is_followed_as_it_changes() -> None:
    async def run() -> float:
        throttle = Throttle(lambda: 1000)
        async with asyncio.TaskGroup() as group:
            began = monotonic_ms()
            group.create_task(throttle.take(1_000_000))  # would take a quarter of an hour
            await asyncio.sleep(0)
            throttle.follow(lambda: None)
        return monotonic_ms() - began

    assert asyncio.run(run()) < 500


def test_a_pause_ends_when_the_limit_does() -> None:
    async def run() -> None:
        throttle = Throttle(lambda: 0)
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            task = group.create_task(throttle.take(10))
            await asyncio.sleep(0.05)
            assert not task.done()
            throttle.follow(lambda: 1_000_000)

    asyncio.run(run())


def test_a_download_keeps_to_the_limit(tmp_path: Path) -> None:
    wanted, files = a_file(bytes(40 * CHUNK))
    server = Server(files)
    rate = len(files[blob_path(wanted.blob.sha256)])

    async def run() -> float:
        throttle = Throttle(lambda: rate)
        async with server.running(), fetching(tmp_path, server, throttle=throttle) as (fetcher, _):
            began = monotonic_ms()
            await fetcher.fetch_now([wanted])
            return (monotonic_ms() - began) / 1000

    assert 0.85 <= asyncio.run(run()) < 1.3
