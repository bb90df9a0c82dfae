"""A real repository with real keys, and python-tuf's own client to read it back over HTTP."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer
from tuf.ngclient import Updater

from appliance.clock import utc_ms
from appliance.contract.document import SCHEMA, encode
from appliance.contract.names import DIRECTOR_ROLE, publisher_role, release_path
from appliance.contract.release import BlobRef, Facts, FileRole, Release, ReleaseFile
from appliance.hub.signing import Repository, RoleKeys, Validity

DAY = 86_400_000
ONLINE = ("snapshot", "timestamp", DIRECTOR_ROLE)


def keys_of(*signers: Signer, threshold: int = 1, owner: str = "owner") -> RoleKeys:
    keys = tuple((f"{owner}{n}", one.public_key) for n, one in enumerate(signers))
    return RoleKeys(keys=keys, threshold=threshold)


@dataclass
class Hub:
    """A founded repository and every key of it."""

    directory: Path
    now: int = field(default_factory=utc_ms)  # python-tuf's reader has no other clock
    repository: Repository = field(init=False)
    signers: dict[str, list[Signer]] = field(default_factory=dict)
    validity: Validity | None = None

    def __post_init__(self) -> None:
        self.repository = Repository(self.directory)
        for role in ("root", "targets", *ONLINE):
            self.signers.setdefault(role, [CryptoSigner.generate_ed25519()])

    def found(self, **thresholds: int) -> None:
        keys = {
            role: keys_of(*signers, threshold=thresholds.get(role, 1))
            for role, signers in self.signers.items()
        }
        self.repository.found(keys, now_utc_ms=self.now, validity=self.validity)
        for role in ("root", "targets", DIRECTOR_ROLE):
            self.sign(role)
        self.settle()

    @property
    def online(self) -> list[Signer]:
        return [signer for role in ONLINE for signer in self.signers[role]]

    def sign(self, role: str) -> None:
        self.repository.sign(role, self.signers[role])

    def settle(self) -> dict[str, int]:
        return self.repository.settle(self.online, now_utc_ms=self.now).versions

    def add_publisher(self, name: str, *models: str) -> str:
        role = publisher_role(name)
        signers = self.signers.setdefault(role, [CryptoSigner.generate_ed25519()])
        self.repository.set_publisher(name, models, keys_of(*signers), now_utc_ms=self.now)
        self.sign("targets")
        self.sign(role)
        self.settle()
        return role

    def put_blob(self, data: bytes) -> BlobRef:
        digest = hashlib.sha256(data).hexdigest()
        place = self.repository.blob_place(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return BlobRef(sha256=digest, length=len(data))

    def release(self, model: str, version: str, sequence: int = 1) -> tuple[str, bytes]:
        blob = self.put_blob(f"{model} {version}".encode())
        file = ReleaseFile(name="model.gguf", role=FileRole.WEIGHTS, blob=blob, chunk_map=blob)
        release = Release(
            schema=SCHEMA,
            model=model,
            version=version,
            sequence=sequence,
            issued_utc_ms=self.now,
            files=(file,),
            facts=Facts(
                architecture="llama",
                parameters_count=1,
                quantisation="Q8_0",
                context_train_tokens=256,
                tokenizer_sha256=blob.sha256,
            ),
        )
        return release_path(model, version), encode(release)

    def publish(self, role: str, model: str, version: str, sequence: int = 1) -> str:
        path, data = self.release(model, version, sequence)
        self.repository.put(role, {path: data}, now_utc_ms=self.now)
        self.sign(role)
        self.settle()
        return path


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve a directory over HTTP on loopback, and give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Reader:
    """An appliance's view: python-tuf's Updater, which remembers between refreshes."""

    def __init__(self, directory: Path, address: str, root: bytes) -> None:
        self.directory = directory
        self._address = address
        self._root = root
        for name in ("metadata", "targets"):
            (directory / name).mkdir(parents=True, exist_ok=True)

    def updater(self) -> Updater:
        updater = Updater(
            str(self.directory / "metadata"),
            f"{self._address}/metadata/",
            target_dir=str(self.directory / "targets"),
            target_base_url=f"{self._address}/targets/",
            bootstrap=self._root,
        )
        updater.refresh()
        return updater

    def read(self, path: str) -> bytes | None:
        updater = self.updater()
        found = updater.get_targetinfo(path)
        return Path(updater.download_target(found)).read_bytes() if found else None
