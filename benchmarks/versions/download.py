"""Fetch a file over mTLS as the appliance does, beside curl, sha256sum and sync.

What this room does: one file of random bytes, one server for both sides, rounds in turn.
What it knows: both sides end with a file that is verified and durable; ours also has a store, a
record to resume from, and has left the page cache alone. Starting Python is not in ours, starting
curl is in theirs: a daemon is up already.
What it never does: compare with a download that is not verified.
"""

from __future__ import annotations

import hashlib
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from appliance.contract import chunk_map
from appliance.contract.chunk_map import CHUNK_BYTES_MAX, ChunkMap
from appliance.contract.names import blob_path
from benchmarks.bars import Bar
from benchmarks.versions import mirror
from benchmarks.versions.bench import Bench

SUITE, OURS, CURL = "download", "ours", "curl, sha256sum, sync"
CASE = "one file over mTLS"
_BYTES, _BYTES_SHORT = 2 << 30, 64 << 20
_ROUNDS = 3
_DEADLINE_S = 300.0
_MIB = 1 << 20

BARS: tuple[Bar, ...] = (
    Bar(suite=SUITE, case=CASE, metric="mib_per_s", side=OURS, over=CURL, at_least=0.5),
    Bar(suite=SUITE, case=CASE, metric="memory_mib", side=OURS, at_most=64.0),
    Bar(suite=SUITE, case=CASE, metric="disk_per_byte", side=OURS, at_most=1.01),
)


def measure(bench: Bench) -> None:
    """Measure both sides in every round, in alternating order."""
    folder, certificates = bench.scratch / "mirror", bench.scratch / "certificates"
    size = _BYTES_SHORT if bench.short else _BYTES
    blob, map_text = _write(folder, size)
    with mirror.running(folder, certificates) as address:
        for number in bench.rounds(_ROUNDS):
            for side in (OURS, CURL)[:: -1 if number % 2 else 1]:
                there = bench.scratch / "fetched"
                there.mkdir()
                if side == OURS:
                    found = _ours(bench, there, [address, str(certificates), blob, map_text])
                    metrics = {
                        "mib_per_s": size / _MIB / found["seconds"],
                        "memory_mib": found["memory_bytes"] / _MIB,
                        "disk_per_byte": found["disk_bytes"] / size,
                        "cpu_s": found["cpu_s"],
                    }
                else:
                    url = f"{address}/{blob_path(blob.partition(':')[0])}"
                    metrics = {"mib_per_s": size / _MIB / _curl(bench, there, certificates, url)}
                bench.keep(SUITE, CASE, side, number, **metrics)
                subprocess.run(["rm", "-r", str(there)], check=True)


def _ours(bench: Bench, there: Path, arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.versions.fetching", str(there), *arguments]
    bench.commands[OURS] = command
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=_DEADLINE_S
    )
    return msgspec.json.decode(done.stdout, type=dict[str, float])


def _curl(bench: Bench, there: Path, certificates: Path, url: str) -> float:
    """Return the seconds that the three programs took."""
    pem, key = certificates / mirror.CERTIFICATE, certificates / mirror.KEY
    file = str(there / "file")
    fetch = ["curl", "--silent", "--fail", "--cacert", str(pem), "--cert", str(pem)]
    fetch += ["--key", str(key), "--output", file, url]
    words = [shlex.join(one) for one in (fetch, ["sha256sum", file], ["sync", file])]
    bench.commands[CURL] = ["sh", "-c", " && ".join(words)]
    began = time.perf_counter()
    subprocess.run(bench.commands[CURL], stdout=subprocess.DEVNULL, check=True, timeout=_DEADLINE_S)
    return time.perf_counter() - began


def _write(folder: Path, size: int) -> tuple[str, str]:
    """Write a file and its map as a hub has them; gives DIGEST:LENGTH of each."""
    folder.mkdir(parents=True)
    draw, whole = random.Random(1), hashlib.sha256()
    lengths: list[int] = []
    hashes = b""
    unnamed = folder / "unnamed"
    with unnamed.open("wb") as file:
        while (left := size - sum(lengths)) > 0:
            data = draw.randbytes(min(CHUNK_BYTES_MAX, left))
            file.write(data)
            whole.update(data)
            lengths.append(len(data))
            hashes += hashlib.sha256(data).digest()
    digest = whole.hexdigest()
    encoded = chunk_map.encode(
        ChunkMap(sha256=digest, length=size, lengths=tuple(lengths), hashes=hashes)
    )
    map_digest = hashlib.sha256(encoded).hexdigest()
    for name in (digest, map_digest):
        (folder / blob_path(name)).parent.mkdir(parents=True, exist_ok=True)
    unnamed.rename(folder / blob_path(digest))
    (folder / blob_path(map_digest)).write_bytes(encoded)
    subprocess.run(["sync", "--file-system", str(folder)], check=True)
    return f"{digest}:{size}", f"{map_digest}:{len(encoded)}"
