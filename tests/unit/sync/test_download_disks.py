"""Disks that are full, read-only or taken, and the page cache: a reason, and it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import mmap
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.contract.names import blob_path
from appliance.errors import DiskFull, DiskRefused, HubUnreachable
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from appliance.sync.progress import Progress
from tests.unit.sync.hostile import (
    CHUNK,
    QUICK,
    Server,
    a_file,
    fetching,
    honest,
    put,
    until,
)

DATA = random.Random(2).randbytes(30 * CHUNK + 11)


def _sent(server: Server, wanted: Wanted) -> int:
    path = blob_path(wanted.blob.sha256)
    return sum(one.stop - one.start for one in server.asked if one.path == path)


def test_space_is_taken_for_all_files_before_the_first_byte(tmp_path: Path) -> None:
    one, files = a_file(DATA)
    other, more = a_file(DATA[::-1])
    server = Server(files | more)

    async def refused() -> DiskFull:
        free = BlobStore(tmp_path).free_bytes()
        settings = msgspec.structs.replace(QUICK, free_bytes_min=free - len(DATA) * 3 // 2)
        async with (
            server.running(),
            fetching(tmp_path, server, settings=settings) as (fetcher, store),
        ):
            with pytest.raises(DiskFull) as error:
                await fetcher.fetch_now([one, other])
            assert not store.has(one.blob)
        return error.value

    # Others write to this disk too: one of a few looks at it sees what was left a moment before.
    for _ in range(5):
        error = asyncio.run(refused())
        if error.free_bytes:
            break
    assert 0 < error.free_bytes < error.needed_bytes <= len(DATA)
    assert _sent(server, one) == _sent(server, other) == 0


@pytest.mark.parametrize("ailment", ["a limit", "no folder", "another process", "no server"])
def test_it_says_why_it_stands_still_and_goes_on_when_the_world_heals(
    ailment: str, tmp_path: Path
) -> None:
    wanted, files = a_file(DATA)
    server = Server(files)
    reasons = {
        "a limit": DiskFull,
        "no folder": DiskRefused,
        "another process": DiskRefused,
        "no server": HubUnreachable,
    }
    seen: list[Progress] = []

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            with _sick(ailment, tmp_path, wanted, server) as heal:
                async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                    group.create_task(fetcher.fetch([wanted], told=seen.append))
                    await until(lambda: any(one.stopped_by for one in seen))
                    heal()
                    fetcher.try_again()
            assert store.path_of(wanted.blob.sha256).read_bytes() == DATA

    asyncio.run(run())
    assert {type(one.stopped_by) for one in seen if one.stopped_by} == {reasons[ailment]}
    assert seen[-1].stopped_by is None


@contextlib.contextmanager
def _sick(
    ailment: str, root: Path, wanted: Wanted, server: Server
) -> Iterator[Callable[[], object]]:
    """Make something not work; gives what heals it."""
    staging = root / "staging"
    if ailment == "a limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(DATA) // 2, hard))
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    elif ailment == "no folder":
        staging.rmdir()
        staging.write_bytes(b"")

        def heal() -> None:
            staging.unlink()
            staging.mkdir()

        yield heal
    elif ailment == "another process":
        part = (staging / f"{wanted.blob.sha256}.part").open("wb")
        fcntl.flock(part, fcntl.LOCK_EX)
        yield part.close
    else:
        server.answer = lambda _: []
        yield lambda: setattr(server, "answer", honest)


SMALL_DISK = """
import asyncio, subprocess, sys
from pathlib import Path
import msgspec
from appliance.sync.blobs import Wanted
from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from tests.unit.sync.hostile import fetching

disk, stick, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
ballast = disk / "ballast"
ballast.write_bytes(bytes(900_000))
said = []

def told(progress):
    stop = progress.stopped_by
    if stop is None or (said and said[-1] == stop.code):
        return
    said.append(stop.code)
    if stop.code == "DISK_FULL":
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    else:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)

async def run():
    async with fetching(disk, BundleSource(open_bundle(stick))) as (fetcher, store):
        one = msgspec.json.decode(wanted, type=Wanted)
        await fetcher.fetch([one], told=told)
        print(*said, store.has(one.blob))

asyncio.run(asyncio.wait_for(run(), 20))
"""


def test_a_small_disk_that_is_full_and_then_read_only_is_waited_for(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    disk, stick = tmp_path / "disk", tmp_path / "stick"
    disk.mkdir()
    put(stick, files)
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    command = [sys.executable, "-c", SMALL_DISK, str(disk), str(stick)]
    command.append(msgspec.json.encode(wanted).decode())
    done = subprocess.run([*own_mounts, *command], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr and "failed" in done.stderr:
        return  # this machine lets nobody mount; a limit stood in for the disk above
    assert done.stdout.split() == ["DISK_FULL", "DISK_REFUSED", "True"], done.stderr


def test_a_download_leaves_the_page_cache_to_others(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(8 << 20)
    wanted, files = a_file(data, 1 << 18)
    put(tmp_path / "stick", files)
    active = tmp_path / "active"
    active.write_bytes(data)
    assert _cached_share(active) == 1.0

    async def run() -> Path:
        source = BundleSource(open_bundle(tmp_path / "stick"))
        settings = msgspec.structs.replace(QUICK, record_bytes=1 << 20)
        async with fetching(tmp_path / "store", source, settings=settings) as (fetcher, store):
            await fetcher.fetch_now([wanted])
            return store.path_of(wanted.blob.sha256)

    path = asyncio.run(run())
    assert _cached_share(active) == 1.0
    assert _cached_share(path) < 0.05


def _cached_share(path: Path) -> float:
    """Ask the kernel (mincore) how much of a file lies in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    seen = (ctypes.c_ubyte * pages)()
    with (
        path.open("rb") as file,
        mmap.mmap(
            file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        ) as mapped,
    ):
        anchor = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(ctypes.addressof(anchor))
        assert libc.mincore(address, ctypes.c_size_t(size), seen) == 0
        del anchor
    return sum(one & 1 for one in seen) / pages
