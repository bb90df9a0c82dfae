"""What a store keeps, what goes, and how damage is found and repaired."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from appliance.contract.names import blob_path
from appliance.errors import DocumentRefused, HubUnreachable
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from appliance.sync.download import Fetcher
from appliance.sync.scrub import scrub
from appliance.sync.throttle import Throttle
from tests.unit.sync.hostile import (
    CHUNK,
    Server,
    a_file,
    asked_chunks,
    fetching,
    flip,
    honest,
    put,
)

DATA = random.Random(2).randbytes(30 * CHUNK + 11)


def test_a_store_keeps_what_is_named_and_no_more(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    other, more = a_file(DATA[::-1])
    put(tmp_path / "stick", files | more)

    async def run() -> None:
        source = BundleSource(open_bundle(tmp_path / "stick"))
        async with fetching(tmp_path / "store", source) as (fetcher, store):
            await fetcher.fetch_now([wanted, other])
            assert len(list(store.stored())) == 4
            mapped = store.path_of(other.blob.sha256).open("rb")
            (tmp_path / "store" / "staging" / f"{'c' * 64}.part").write_bytes(b"old")
            (tmp_path / "store" / "trash" / "left").write_bytes(b"behind")
            assert wanted.chunk_map is not None
            roots = {wanted.blob.sha256, wanted.chunk_map.sha256}
            pruned = store.prune(roots)
            assert other.blob.sha256 in pruned.digests
            assert pruned.freed_bytes >= len(DATA)
            assert {one.sha256 for one in store.stored()} == roots
            assert [*(tmp_path / "store" / "staging").iterdir()] == []
            assert [*(tmp_path / "store" / "trash").iterdir()] == []
            assert mapped.read() == DATA[::-1]
            mapped.close()

    asyncio.run(run())


def test_a_file_that_a_power_cut_left_under_both_names_keeps_the_finished_one(
    tmp_path: Path,
) -> None:
    store = BlobStore(tmp_path)
    finished, part = store.path_of("c" * 64), tmp_path / "staging" / f"{'c' * 64}.part"
    other = part.with_name(f"{'d' * 64}.part")
    finished.parent.mkdir()
    for path in (finished, part, part.with_suffix(".map"), other):
        path.write_bytes(b"content")
    BlobStore(tmp_path)
    assert finished.exists()
    assert [*(tmp_path / "staging").iterdir()] == [other]


def test_a_file_that_is_pruned_while_others_are_listed_is_passed_over(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    for name in ("c", "d", "e"):
        store.path_of(name * 64).parent.mkdir()
        store.path_of(name * 64).write_bytes(b"content")
    listed = store.stored()
    assert next(listed).sha256 == "c" * 64
    store.path_of("d" * 64).unlink()
    assert [one.sha256 for one in listed] == ["e" * 64]


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "/x", ""])
def test_only_a_digest_becomes_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentRefused):
        BlobStore(tmp_path).path_of(name)


def test_a_flipped_bit_is_found_and_its_chunk_alone_is_fetched(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    server = Server(files)
    path = blob_path(wanted.blob.sha256)

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([wanted])
            there = store.path_of(wanted.blob.sha256)
            assert await _scrubbed(store, wanted, fetcher) == []
            flip(there, 5 * CHUNK + 9)
            mapped = there.open("rb")
            before = len(server.asked)
            assert await _scrubbed(store, wanted, fetcher) == [(CHUNK, None)]
            assert asked_chunks(server.asked[before:], path) == {5}
            assert there.read_bytes() == DATA
            assert mapped.read() != DATA  # what is mapped stays as it was, also wrong
            mapped.close()
            assert await _scrubbed(store, wanted, fetcher) == []

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["map", "no map", "gone"])
def test_scrubbing_repairs_what_it_can_and_says_what_it_can_not(
    damage: str, tmp_path: Path
) -> None:
    wanted, files = a_file(DATA)
    server = Server(files)

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([wanted])
            assert wanted.chunk_map is not None
            one = wanted
            if damage == "map":
                flip(store.path_of(wanted.chunk_map.sha256), 80)
            elif damage == "gone":
                store.path_of(wanted.blob.sha256).unlink()
            else:
                one = msgspec.structs.replace(wanted, chunk_map=None)
                flip(store.path_of(wanted.blob.sha256), 0)
            server.answer = lambda _: []
            [(count, failure)] = await _scrubbed(store, one, fetcher)
            assert (count, type(failure)) == (len(DATA), HubUnreachable)
            server.answer = honest
            assert await _scrubbed(store, one, fetcher) == [(len(DATA), None)]
            assert await _scrubbed(store, one, fetcher) == []

    asyncio.run(run())


async def _scrubbed(
    store: BlobStore, wanted: Wanted, fetcher: Fetcher
) -> list[tuple[int, Exception | None]]:
    found = await scrub(store, [wanted], throttle=Throttle(lambda: None), repair=fetcher.repair)
    return [(one.damaged_bytes, one.failure) for one in found]
