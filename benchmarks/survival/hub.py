"""Be a small real hub: signed repositories in which a cohort runs version 1, or goes to version 2.

What this room does: two versions of one model, each of two files, published and signed; a folder
for each state of the hub; serves them over HTTP on loopback.
What it knows: the two versions share a file's first half, so that one seeds the other.
What it never does: keep a private key on a disk.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import random
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer

from appliance.clock import utc_ms
from appliance.contract import chunk_map
from appliance.contract.chunk_map import ChunkMap
from appliance.contract.document import SCHEMA, encode
from appliance.contract.names import DIRECTOR_ROLE, publisher_role, release_path
from appliance.contract.release import (
    BlobRef,
    Expectation,
    Facts,
    FileRole,
    HealthPack,
    Release,
    ReleaseFile,
    Strategy,
    Trial,
)
from appliance.hub.assigning import assign
from appliance.hub.signing import Repository, RoleKeys

MODEL, COHORT, PUBLISHER = "demo", "shops", "acme"
CHUNK_BYTES, CHUNKS = 65_536, 4
_ROLES = ("root", "targets", "snapshot", "timestamp", DIRECTOR_ROLE)
_TRIAL = Trial(samples_min=5, duration_s=3.0)
WHOLE = Strategy(
    needs_approval=True, shadow=_TRIAL, step=_TRIAL, probation=_TRIAL, steps_percent=(50,)
)
QUICK = Strategy(shadow=_TRIAL, step=_TRIAL, probation=_TRIAL, steps_percent=(50,))
ALONE = Strategy(probation=_TRIAL, stop_then_start=True)


class Hub:
    """A repository with every key of it at hand. `digests`: of the files of each version."""

    def __init__(self, directory: Path) -> None:
        """Found it, with both versions; nothing is assigned yet."""
        self.repository = Repository(directory)
        self.digests: dict[str, list[str]] = {}
        self._directory = directory
        self._signers: dict[str, Signer] = {
            role: CryptoSigner.generate_ed25519() for role in (*_ROLES, publisher_role(PUBLISHER))
        }
        now = utc_ms()
        keys = {role: self._keys(role) for role in _ROLES}
        self.repository.found(keys, now_utc_ms=now)
        self._settle("root", "targets", DIRECTOR_ROLE)
        role = publisher_role(PUBLISHER)
        self.repository.set_publisher(PUBLISHER, (MODEL,), self._keys(role), now_utc_ms=now)
        self._settle("targets", role)
        releases = {
            release_path(MODEL, version): encode(self._release(version, now))
            for version in ("1", "2")
        }
        self.repository.put(role, releases, now_utc_ms=now)
        self._settle(role)
        self.bootstrap = self.repository.roots()[0]

    def assign(self, version: str, strategy: Strategy | None = None, *, later_ms: int = 0) -> None:
        """Let the cohort run a version, from so much later on."""
        signers, now_utc_ms = self._online(), utc_ms() + later_ms
        assign(
            self.repository,
            COHORT,
            MODEL,
            version,
            signers,
            now_utc_ms=now_utc_ms,
            strategy=strategy,
        )
        self.repository.refresh(signers, now_utc_ms=now_utc_ms)

    def copy(self, name: str) -> None:
        """Keep the repository as it is now in a folder beside it."""
        shutil.copytree(self._directory, self._directory.with_name(name), symlinks=True)

    def _settle(self, *roles: str) -> None:
        for role in roles:
            self.repository.sign(role, [self._signers[role]])
        self.repository.settle(self._online(), now_utc_ms=utc_ms())

    def _online(self) -> Sequence[Signer]:
        return [self._signers[role] for role in ("snapshot", "timestamp", DIRECTOR_ROLE)]

    def _keys(self, role: str) -> RoleKeys:
        return RoleKeys(keys=((role, self._signers[role].public_key),), threshold=1)

    def _release(self, version: str, now_utc_ms: int) -> Release:
        shared = random.Random(0).randbytes(CHUNK_BYTES * CHUNKS // 2)
        draw = random.Random(int(version))
        files = []
        for part in ("a", "b"):
            data = shared + draw.randbytes(CHUNK_BYTES * CHUNKS // 2)
            blob, map_ref = self._put(data), self._put(_mapped(data))
            files.append(
                ReleaseFile(
                    name=f"m-{part}.gguf", role=FileRole.WEIGHTS, blob=blob, chunk_map=map_ref
                )
            )
        self.digests[version] = [file.blob.sha256 for file in files]
        return Release(
            schema=SCHEMA,
            model=MODEL,
            version=version,
            sequence=int(version),
            issued_utc_ms=now_utc_ms,
            files=tuple(files),
            facts=Facts(
                architecture="llama",
                parameters_count=1,
                quantisation="Q8_0",
                context_train_tokens=256,
                tokenizer_sha256="a" * 64,
            ),
            health=HealthPack(prompts=(Expectation(prompt="2 + 2?", contains="4"),)),
            strategy=WHOLE,
        )

    def _put(self, data: bytes) -> BlobRef:
        digest = hashlib.sha256(data).hexdigest()
        place = self.repository.blob_place(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return BlobRef(sha256=digest, length=len(data))


def _mapped(data: bytes) -> bytes:
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return chunk_map.encode(
        ChunkMap(
            sha256=hashlib.sha256(data).hexdigest(),
            length=len(data),
            lengths=tuple(len(chunk) for chunk in chunks),
            hashes=b"".join(hashlib.sha256(chunk).digest() for chunk in chunks),
        )
    )


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that were killed."""


@contextlib.contextmanager
def serving(directory: Path, port: int = 0) -> Iterator[str]:
    """Serve a directory over HTTP on loopback, and give its address. port: 0 is any."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with _Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
