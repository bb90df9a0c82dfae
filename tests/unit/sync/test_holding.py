"""The files of versions as deployments see them: fetched in words, seeded, scrubbed, let go of."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.contract.names import blob_path
from appliance.contract.release import BlobRef, FileRole, ReleaseFile
from appliance.errors import DiskFull
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from appliance.sync.holding import Holding, in_words
from appliance.sync.host import Blobs
from appliance.sync.progress import Progress
from appliance.sync.retention import Kept
from appliance.sync.throttle import Throttle
from tests.unit.sync.hostile import (
    CHUNK,
    QUICK,
    Server,
    a_file,
    asked_chunks,
    fetching,
    flip,
    until,
)

DATA = random.Random(4).randbytes(12 * CHUNK)
CHANGED = DATA[: 11 * CHUNK] + bytes(CHUNK)


def _release_file(wanted: Wanted) -> ReleaseFile:
    assert wanted.chunk_map is not None
    return ReleaseFile(
        name="model.gguf", role=FileRole.WEIGHTS, blob=wanted.blob, chunk_map=wanted.chunk_map
    )


@asynccontextmanager
async def _holding(root: Path, server: Server) -> AsyncIterator[tuple[Holding, BlobStore]]:
    async with server.running(), fetching(root, server) as (fetcher, store):
        yield Holding(store, fetcher, QUICK), store


def test_a_new_version_costs_what_is_new_of_it(tmp_path: Path) -> None:
    older, old_files = a_file(DATA)
    newer, new_files = a_file(CHANGED)
    server = Server(old_files | new_files)
    said: list[str] = []

    async def run() -> None:
        async with _holding(tmp_path, server) as (holding, store):
            blobs: Blobs = holding
            await blobs.fetch((_release_file(older),), said.append)
            await blobs.fetch((_release_file(newer),), said.append)
            assert blobs.path_of(newer.blob.sha256) == str(store.path_of(newer.blob.sha256))
            assert store.path_of(newer.blob.sha256).read_bytes() == CHANGED
            await blobs.prune(lambda: frozenset({newer.blob.sha256}))
            assert set(store.stored()) == {newer.blob, newer.chunk_map}

    asyncio.run(run())
    assert asked_chunks(server.asked, blob_path(newer.blob.sha256)) == {11}
    assert said[-1].startswith("192.5 KiB of 192.5 KiB verified, ")


class _Slow(BlobStore):
    """A store whose first look around takes until it is told to end."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.looking, self.go_on = threading.Event(), threading.Event()

    def mapped(self) -> tuple[Wanted, ...]:
        found = super().mapped()
        if not self.looking.is_set():
            self.looking.set()
            assert self.go_on.wait(20)
        return found


def test_a_fetch_that_begins_while_others_are_let_go_of_keeps_its_files(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)

    async def run() -> None:
        server = Server(files)
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([wanted])  # of a version that nothing names any more
            slow, named = _Slow(tmp_path), set[str]()
            holding = Holding(slow, fetcher, QUICK)
            pruning = asyncio.create_task(holding.prune(lambda: frozenset(named)))
            await asyncio.to_thread(slow.looking.wait, 20)
            named.add(wanted.blob.sha256)
            fetch = asyncio.create_task(holding.fetch([_release_file(wanted)]))
            await asyncio.wait({fetch}, timeout=0.3)
            slow.go_on.set()
            await asyncio.gather(pruning, fetch)
            assert store.path_of(wanted.blob.sha256).read_bytes() == DATA

    asyncio.run(run())


def test_a_pause_is_the_reason_why_nothing_comes(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    pauses, said = ["the timetable pauses downloads until 06:00"], list[str]()

    def pause() -> str:
        return pauses[0] if pauses else ""

    async def run() -> None:
        throttle, server = Throttle(lambda: 0 if pauses else None), Server(files)
        async with server.running(), fetching(tmp_path, server, throttle=throttle) as found:
            fetcher, store = found
            holding = Holding(store, fetcher, QUICK, pause=pause)
            fetch = asyncio.create_task(holding.fetch([_release_file(wanted)], said.append))
            await until(lambda: bool(said))
            seen = holding.progress
            assert seen is not None
            assert (seen.pause, seen.bytes_per_s, seen.seconds_left) == (pause(), 0, None)
            assert said[-1].endswith(f"; waiting: {pause()}")
            pauses.clear()
            throttle.follow(lambda: None)
            await fetch
            assert "waiting" not in said[-1]

    asyncio.run(run())


def test_everything_here_is_scrubbed_once_with_its_map(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    alone, more = a_file(b"alone")
    server = Server(files | more)

    async def run() -> None:
        async with _holding(tmp_path, server) as (holding, store):
            await holding.fetch([_release_file(wanted)])
            (tmp_path / blob_path(alone.blob.sha256)).parent.mkdir(exist_ok=True)
            (tmp_path / blob_path(alone.blob.sha256)).write_bytes(b"alone")
            flip(store.path_of(wanted.blob.sha256), 2 * CHUNK)
            flip(store.path_of(alone.blob.sha256), 0)
            found = await holding.scrub(in_use={wanted.blob.sha256})
            assert {one.wanted.blob: one.damaged_bytes for one in found} == {
                wanted.blob: CHUNK,
                alone.blob: 5,
            }
            assert all(one.failure is None for one in found)
            assert await holding.scrub(in_use=()) == ()

    asyncio.run(run())


def test_versions_too_many_are_named_and_those_in_use_never(tmp_path: Path) -> None:
    def one(age: int) -> Kept:
        blob = BlobRef(sha256=f"{age}" * 64, length=1)
        return Kept(model="m", version=str(age), age=age, in_use=age == 4, blobs=(blob,))

    async def run() -> list[str]:
        async with _holding(tmp_path, Server({})) as (holding, _):
            return [kept.version for kept in await holding.to_drop([one(age) for age in range(5)])]

    assert asyncio.run(run()) == ["3", "2"]


def test_a_tar_that_is_brought_is_asked_before_the_hub(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    server = Server(files)
    with tarfile.open(tmp_path / "bundle.tar", "w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    async def run() -> None:
        async with server.running(), fetching(tmp_path / "store", server) as (fetcher, store):
            with fetcher.preferring(BundleSource(open_bundle(tmp_path / "bundle.tar"))):
                await fetcher.fetch_now([wanted])
            assert store.path_of(wanted.blob.sha256).read_bytes() == DATA
            assert server.asked == []
            other, more = a_file(CHANGED)
            server.files.update(more)
            await fetcher.fetch_now([other])
            assert server.asked != []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("rate", "left", "stop", "said"),
    [
        (0.0, None, None, "1.5 KiB of 3.0 MiB verified"),
        (2048.0, 61.2, None, "1.5 KiB of 3.0 MiB verified, 2.0 KiB/s, 1:01 left"),
        (
            0.0,
            None,
            DiskFull(path="x", needed_bytes=9, free_bytes=1),
            "1.5 KiB of 3.0 MiB verified; waiting: x: 9 bytes are needed, 1 may be used",
        ),
    ],
)
def test_words_say_how_far_it_is_or_what_it_waits_for(
    rate: float, left: float | None, stop: DiskFull | None, said: str
) -> None:
    progress = Progress(
        total_bytes=3 << 20,
        verified_bytes=1536,
        fetched_bytes=0,
        seeded_bytes=0,
        bytes_per_s=rate,
        seconds_left=left,
        stopped_by=stop,
    )
    assert in_words(progress) == said
