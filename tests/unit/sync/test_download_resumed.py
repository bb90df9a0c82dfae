"""Downloads that were killed, lost power, or have a damaged record: what was there is kept."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import msgspec
import pytest

from appliance.contract.names import blob_path
from appliance.errors import HubUnreachable
from appliance.sync.blobs import BlobStore
from tests.unit.sync.hostile import (
    CHUNK,
    Asked,
    Server,
    a_file,
    asked_chunks,
    fetching,
    honest,
    until,
)

DATA = random.Random(2).randbytes(30 * CHUNK + 11)


CHILD = """
import asyncio, sys
from pathlib import Path
import msgspec
from appliance.sync.blobs import Wanted
from tests.unit.sync.hostile import Server, fetching

async def run():
    server = Server({})
    server.url = sys.argv[2]
    async with fetching(Path(sys.argv[1]), server) as (fetcher, _):
        await fetcher.fetch_now([msgspec.json.decode(sys.argv[3], type=Wanted)])

asyncio.run(run())
"""


@pytest.mark.parametrize("kills", [1, 3])
def test_what_was_written_before_a_kill_is_not_fetched_again(kills: int, tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    path = blob_path(wanted.blob.sha256)
    server = Server(files)
    part = tmp_path / "staging" / f"{wanted.blob.sha256}.part"
    written: set[int] = set()

    def answer(asked: Asked) -> list[bytes | float]:
        """Send a chunk and a bit to each connection, then nothing: the kill is in the middle."""
        if asked.path != path or asked.number >= 2 * kills:
            return list(honest(asked))
        return [honest(asked)[0], asked.part[: CHUNK + 5], 60.0]

    def more_is_written() -> bool:
        found = _chunks_in(part) if part.exists() else set()
        is_more = len(found) > len(written)
        written.update(found)
        return is_more

    async def run() -> None:
        server.answer = answer
        command = [sys.executable, "-c", CHILD, str(tmp_path)]
        async with server.running():
            command += [server.url, msgspec.json.encode(wanted).decode()]
            for _ in range(kills):
                child = await asyncio.create_subprocess_exec(*command)
                await until(more_is_written)
                child.kill()
                await child.wait()
            more_is_written()
            last = len(server.asked)
            done = await asyncio.create_subprocess_exec(*command)
            assert await done.wait() == 0
            assert not asked_chunks(server.asked[last:], path) & written

    asyncio.run(run())
    assert BlobStore(tmp_path).path_of(wanted.blob.sha256).read_bytes() == DATA
    assert len(written) >= kills


def _chunks_in(part: Path) -> set[int]:
    data = part.read_bytes()
    return {
        number
        for number in range(len(DATA) // CHUNK)
        if data[number * CHUNK :][:CHUNK] == DATA[number * CHUNK :][:CHUNK]
    }


def test_a_reboot_loses_what_was_not_recorded_and_nothing_else(tmp_path: Path) -> None:
    """A power cut leaves what was synced: here the rest of the file is zeros afterwards."""
    wanted, files = a_file(DATA)
    server = Server(files)
    path = blob_path(wanted.blob.sha256)
    server.answer = lambda asked: honest(asked) if asked.path != path or asked.number < 3 else [b""]

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            with pytest.raises(HubUnreachable):
                await fetcher.fetch_now([wanted])
            part = tmp_path / "staging" / f"{wanted.blob.sha256}.part"
            there = _chunks_in(part)
            lost = max(there)
            with part.open("r+b") as file:  # the record says it is there, and it is not
                file.seek(lost * CHUNK)
                file.write(bytes(CHUNK))
            server.answer, before = honest, len(server.asked)
            await fetcher.fetch_now([wanted])
            assert store.path_of(wanted.blob.sha256).read_bytes() == DATA
            assert asked_chunks(server.asked[before:], path) & there == {lost}

    asyncio.run(run())


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\x81\xa6layout\xc4\x00"])
def test_a_damaged_record_costs_hashing_and_no_bytes(damage: bytes, tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    server = Server(files)
    path = blob_path(wanted.blob.sha256)
    server.answer = lambda asked: honest(asked) if asked.path != path or asked.number < 3 else [b""]

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, _):
            with pytest.raises(HubUnreachable):
                await fetcher.fetch_now([wanted])
            part = tmp_path / "staging" / f"{wanted.blob.sha256}.part"
            part.with_suffix(".map").write_bytes(damage)
            there = _chunks_in(part)
            server.answer, before = honest, len(server.asked)
            await fetcher.fetch_now([wanted])
            assert not asked_chunks(server.asked[before:], path) & there

    asyncio.run(run())
