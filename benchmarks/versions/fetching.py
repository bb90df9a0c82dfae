"""Fetch one file as the appliance does, and say what it took; run as a program of its own.

What this program does: waits until everything is loaded, fetches the file, prints seconds, memory
above what it had before, and how much of the disk the store takes.
What it knows: the peak of a process's memory is read from the kernel, and reset before the start.
What it never does: judge.

Usage: python -m benchmarks.versions.fetching STORE ADDRESS CERTIFICATES BLOB MAP, the last two as
DIGEST:LENGTH; prints a line of JSON.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path

import msgspec

from appliance.config import Downloads
from appliance.contract.release import BlobRef
from appliance.sync.blobs import BlobStore, Wanted
from appliance.sync.download import Fetcher
from appliance.sync.http_blobs import HttpBlobs
from appliance.sync.throttle import Throttle
from benchmarks.versions.mirror import client_tls

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5), clear_refs


def memory_bytes(field: str) -> int:
    """Read VmRSS or VmHWM of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


async def _fetch(root: Path, address: str, certificates: Path, wanted: Wanted) -> dict[str, float]:
    settings = Downloads(free_bytes_min=0)
    store = BlobStore(root)
    source = HttpBlobs("mirror", address, settings, tls=client_tls(certificates))
    fetcher = Fetcher(store, [source], settings, Throttle(lambda: None))
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)  # noqa: ASYNC240 - before the start
    idle, cpu_s, began = memory_bytes("VmRSS"), time.process_time(), time.perf_counter()
    try:
        await fetcher.fetch_now([wanted])
        seconds = time.perf_counter() - began
    finally:
        await fetcher.close()
    return {
        "seconds": seconds,
        "cpu_s": time.process_time() - cpu_s,
        "memory_bytes": float(memory_bytes("VmHWM") - idle),
        "disk_bytes": float(_disk_bytes(root)),
    }


def _disk_bytes(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def _reference(text: str) -> BlobRef:
    digest, _, length = text.partition(":")
    return BlobRef(sha256=digest, length=int(length))


if __name__ == "__main__":
    there, where, pems, blob, chunk_map = sys.argv[1:]
    wanted_file = Wanted(blob=_reference(blob), chunk_map=_reference(chunk_map))
    done = asyncio.run(_fetch(Path(there), where, Path(pems), wanted_file))
    print(msgspec.json.encode(done).decode())
