"""Killed before anything that is done to the disk: a file is whole or not there, and it goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.bundle import open_bundle
from appliance.sync.bundle_source import BundleSource
from tests.unit.sync.hostile import CHUNK, QUICK, a_file, fetching, put

DATA = random.Random(5).randbytes(5 * CHUNK + 3)
CHANGED = DATA[:CHUNK] + b"x" + DATA[CHUNK + 1 :]
ACTS = ("pwrite", "copy_file_range", "fdatasync", "fsync", "rename", "unlink", "fchmod",
        "posix_fallocate", "ftruncate", "open", "write")  # fmt: skip
ONE_AT_A_TIME = msgspec.structs.replace(QUICK, connections=1, record_bytes=2 * CHUNK)
RUNS_MAX = 400


def _die_before(number: int) -> None:
    """End this process without a word before its `number`-th act on the disk."""
    left = number

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def before(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the act takes
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return before

    for name in ACTS:
        setattr(os, name, counted(getattr(os, name)))


def _in_a_child(number: int, work: Callable[[], None]) -> bool:
    """Do it in a process that dies before its `number`-th act; says whether it came to its end."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if number:
                _die_before(number)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def test_a_kill_before_any_act_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    older, old_files = a_file(DATA)
    newer, new_files = a_file(CHANGED)
    put(tmp_path / "stick", old_files | new_files)

    def fetch(root: Path, wanted: Wanted) -> Callable[[], None]:
        async def run() -> None:
            source = BundleSource(open_bundle(tmp_path / "stick"))
            async with fetching(root, source, settings=ONE_AT_A_TIME) as (fetcher, store):
                await fetcher.fetch_now([wanted], seeds=store.mapped())
                store.prune({one.sha256 for one in (wanted.blob, wanted.chunk_map) if one})

        return lambda: asyncio.run(run())

    kills = 0
    for number in range(1, RUNS_MAX):
        root = tmp_path / str(number)
        assert _in_a_child(0, fetch(root, older))
        is_done = _in_a_child(number, fetch(root, newer))
        store = BlobStore(root)
        for wanted, data in ((older, DATA), (newer, CHANGED)):
            path = store.path_of(wanted.blob.sha256)
            assert not path.exists() or path.read_bytes() == data
        assert store.has(older.blob) or store.has(newer.blob)
        assert _in_a_child(0, fetch(root, newer))
        assert store.path_of(newer.blob.sha256).read_bytes() == CHANGED
        assert set(store.stored()) == {newer.blob, newer.chunk_map}
        assert [*(root / "staging").iterdir(), *(root / "trash").iterdir()] == []
        if is_done:
            break
        kills += 1
    assert 20 < kills < RUNS_MAX - 1
