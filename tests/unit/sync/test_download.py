"""Downloads: each byte once, from what is here, from sticks and servers, by maps that are right."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from appliance.contract.chunk_map import MAP_BYTES_MAX
from appliance.contract.names import blob_path
from appliance.contract.release import BlobRef
from appliance.errors import BlobCorrupt, DocumentRefused, HubUnreachable
from appliance.sync.blobs import Wanted
from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from appliance.sync.progress import Progress
from tests.unit.sync.hostile import (
    CHUNK,
    Server,
    a_file,
    fetching,
    flip,
    put,
)

DATA = random.Random(2).randbytes(30 * CHUNK + 11)


def _sent(server: Server, wanted: Wanted) -> int:
    """Count the bytes of a file that were asked for."""
    path = blob_path(wanted.blob.sha256)
    return sum(one.stop - one.start for one in server.asked if one.path == path)


def test_each_byte_is_fetched_once_and_progress_is_told(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    server = Server(files)
    seen: list[Progress] = []

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([wanted], told=seen.append)
            assert store.has(wanted.blob)
            await fetcher.fetch_now([wanted])

    asyncio.run(run())
    assert _sent(server, wanted) == len(DATA)
    total = sum(map(len, files.values()))
    assert [one.verified_bytes for one in seen] == sorted(one.verified_bytes for one in seen)
    assert (seen[-1].verified_bytes, seen[-1].total_bytes, seen[-1].fetched_bytes) == (total,) * 3


def test_what_another_version_has_is_not_fetched(tmp_path: Path) -> None:
    older, old_files = a_file(DATA)
    changed = DATA[: 7 * CHUNK] + b"new" + DATA[7 * CHUNK + 3 :]
    newer, new_files = a_file(changed)
    server = Server(old_files | new_files)

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([older])
            await fetcher.fetch_now([newer], seeds=[older])
            assert store.path_of(newer.blob.sha256).read_bytes() == changed

    asyncio.run(run())
    assert _sent(server, newer) == CHUNK


def test_a_rotten_seed_gives_only_what_is_right(tmp_path: Path) -> None:
    older, old_files = a_file(DATA)
    newer, new_files = a_file(DATA + b"more")
    server = Server(old_files | new_files)

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([older])
            flip(store.path_of(older.blob.sha256), 3 * CHUNK)
            await fetcher.fetch_now([newer], seeds=[older])
            assert store.path_of(newer.blob.sha256).read_bytes() == DATA + b"more"

    asyncio.run(run())
    assert _sent(server, newer) == CHUNK + 15  # the rotten chunk, and the last


def test_a_bundle_on_a_stick_is_a_source_like_any_other(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    put(tmp_path / "stick", files)

    async def run() -> None:
        source = BundleSource(open_bundle(tmp_path / "stick"))
        async with fetching(tmp_path / "store", source) as (fetcher, store):
            await fetcher.fetch_now([wanted])
            assert store.path_of(wanted.blob.sha256).read_bytes() == DATA

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["missing", "short", "link", "folder"])
def test_a_damaged_stick_is_named_and_the_hub_helps(damage: str, tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    stick = tmp_path / "stick"
    put(stick, files)
    path = stick / blob_path(wanted.blob.sha256)
    path.unlink()
    if damage == "short":
        path.write_bytes(DATA[:-1])
    elif damage == "link":
        path.symlink_to("/dev/zero")
    elif damage == "folder":
        path.mkdir()
    server = Server(files)

    async def run() -> None:
        source = BundleSource(open_bundle(stick))
        async with fetching(tmp_path / "store", source) as (fetcher, _):
            with pytest.raises(HubUnreachable, match="stick"):
                await fetcher.fetch_now([wanted])
        async with (
            server.running(),
            fetching(tmp_path / "store", source, server) as (fetcher, store),
        ):
            await fetcher.fetch_now([wanted])
            assert store.has(wanted.blob)

    asyncio.run(run())


def test_no_source_is_a_reason(tmp_path: Path) -> None:
    wanted, _ = a_file(DATA)

    async def run() -> None:
        async with fetching(tmp_path) as (fetcher, _):
            with pytest.raises(HubUnreachable, match="no source is known"):
                await fetcher.fetch_now([wanted])

    asyncio.run(run())


# --- maps ----------------------------------------------------------------------------------------


def test_a_map_of_another_file_is_refused(tmp_path: Path) -> None:
    one, files = a_file(DATA)
    other, more = a_file(DATA[::-1])
    put(tmp_path / "stick", files | more)
    crossed = Wanted(blob=one.blob, chunk_map=other.chunk_map)
    large = Wanted(blob=one.blob, chunk_map=BlobRef(sha256="a" * 64, length=MAP_BYTES_MAX + 1))

    async def run() -> None:
        source = BundleSource(open_bundle(tmp_path / "stick"))
        async with fetching(tmp_path / "store", source) as (fetcher, _):
            with pytest.raises(DocumentRefused, match="another file"):
                await fetcher.fetch_now([crossed])
            with pytest.raises(DocumentRefused, match="at most"):
                await fetcher.fetch_now([large])

    asyncio.run(run())


def test_a_map_that_lies_about_its_file_is_found_out(tmp_path: Path) -> None:
    """The publisher signed both: chunks that hash as the map says, and not as the file's name."""
    wanted, files = a_file(DATA)
    blob = msgspec.structs.replace(wanted.blob, sha256="b" * 64)
    right = files.pop(blob_path(wanted.blob.sha256))
    assert wanted.chunk_map is not None
    encoded = files.pop(blob_path(wanted.chunk_map.sha256))
    lying, more = _file_named(encoded.replace(wanted.blob.sha256.encode(), b"b" * 64))
    put(tmp_path / "stick", {blob_path(blob.sha256): right} | more)

    async def run() -> None:
        source = BundleSource(open_bundle(tmp_path / "stick"))
        async with fetching(tmp_path / "store", source) as (fetcher, store):
            with pytest.raises(BlobCorrupt, match="its chunk map is of other bytes"):
                await fetcher.fetch_now([Wanted(blob=blob, chunk_map=lying)])
            assert not store.has(blob)
            assert list((tmp_path / "store" / "staging").iterdir()) == []

    asyncio.run(run())


def _file_named(data: bytes) -> tuple[BlobRef, dict[str, bytes]]:
    wanted, files = a_file(data)
    return wanted.blob, {blob_path(wanted.blob.sha256): files[blob_path(wanted.blob.sha256)]}
