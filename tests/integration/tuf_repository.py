"""A real repository whose keys are all at hand, so that a test can sign what a thief would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.contract import names
from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.document import SCHEMA, encode
from appliance.contract.release import BlobRef, Facts, FileRole, Release, ReleaseFile
from appliance.contract.standing import Standing

TOP = ("root", "targets", "snapshot", "timestamp")
ISSUED_UTC_MS = 1_700_000_000_000
DIGEST = sha256(b"weights").hexdigest()
Files: TypeAlias = dict[str, bytes]
State: TypeAlias = tuple[Files, dict[str, Metadata[Any]]]


def a_release(model: str, version: str, sequence: int = 1, **changes: object) -> Release:
    ref = BlobRef(sha256=DIGEST, length=7)
    values: dict[str, object] = {
        "schema": SCHEMA,
        "model": model,
        "version": version,
        "sequence": sequence,
        "issued_utc_ms": ISSUED_UTC_MS,
        "files": (ReleaseFile(name="m.gguf", role=FileRole.WEIGHTS, blob=ref, chunk_map=ref),),
        "facts": Facts(
            architecture="llama",
            parameters_count=1,
            quantisation="Q8_0",
            context_train_tokens=256,
            tokenizer_sha256=DIGEST,
        ),
    }
    return Release(**(values | changes))  # type: ignore[arg-type]


class Repository:
    """Metadata being edited (`roles`), who signs it (`keys`), and what lies published (`files`)."""

    def __init__(self, publishers: dict[str, Iterable[str]], threshold: int = 1) -> None:
        self.files: Files = {}
        self.keys = {role: self.new_keys(threshold) for role in TOP}
        self.roles: dict[str, Metadata[Any]] = {}
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=365)
        root = Root(expires=end, consistent_snapshot=True)
        for role in TOP:
            root.roles[role].threshold = threshold
            for key in self.keys[role]:
                root.add_key(key.public_key, role)
        targets = Targets(expires=end)
        targets.delegations = Delegations(keys={}, roles={})
        patterns = {
            names.publisher_role(name): [
                p for model in models for p in names.publisher_paths(model)
            ]
            for name, models in publishers.items()
        }
        patterns[names.DIRECTOR_ROLE] = list(names.DIRECTOR_PATHS)
        for role, paths in patterns.items():
            delegated = DelegatedRole(role, [], 1, terminating=True, paths=paths)
            targets.delegations.roles[role] = delegated  # type: ignore[index] # set above
            self.keys[role] = self.new_keys(1)
            targets.add_key(self.keys[role][0].public_key, role)
            self.roles[role] = Metadata(Targets(expires=end))
        self.roles |= {
            "root": Metadata(root),
            "targets": Metadata(targets),
            "snapshot": Metadata(Snapshot(expires=end)),
            "timestamp": Metadata(Timestamp(expires=end)),
        }
        for role in self.roles:
            self._write(role, bump=False)
        self._reseal(self.roles, bump=False)
        self.bootstrap = self.files["metadata/1.root.json"]

    @staticmethod
    def new_keys(count: int) -> list[CryptoSigner]:
        return [CryptoSigner.generate_ed25519() for _ in range(count)]

    def edit(self, role: str, change: Callable[[Any], None]) -> None:
        """Change a role and sign what follows from it, as its owner would."""
        change(self.roles[role].signed)
        self.publish(role)

    def publish(self, *roles: str) -> None:
        for role in roles:
            self._write(role, bump=True)
        self._reseal([role for role in roles if role != "root"], bump=True)

    def put(self, role: str, path: str, data: bytes) -> None:
        """Sign a document as `role`, wherever it lies."""
        signed = self.roles[role].signed
        assert isinstance(signed, Targets)
        signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        folder, _, name = path.rpartition("/")
        self.files[f"targets/{folder}/{sha256(data).hexdigest()}.{name}"] = data
        self.publish(role)

    def release(self, publisher: str, release: Release) -> str:
        """Publish a release; returns its digest."""
        data = encode(release)
        path = names.release_path(release.model, release.version)
        self.put(names.publisher_role(publisher), path, data)
        return sha256(data).hexdigest()

    def stand(self, publisher: str, standing: Standing) -> None:
        path = names.standing_path(standing.model)
        self.put(names.publisher_role(publisher), path, encode(standing))

    def assign(self, cohort: str, sequence: int, *assigned: tuple[str, str, str]) -> None:
        """Have the director assign (model, version, digest of the release)."""
        models = tuple(
            Assigned(model=model, version=version, release_sha256=digest)
            for model, version, digest in assigned
        )
        document = Assignment(
            schema=SCHEMA,
            cohort=cohort,
            sequence=sequence,
            issued_utc_ms=ISSUED_UTC_MS,
            models=models,
        )
        self.put(names.DIRECTOR_ROLE, names.assignment_path(cohort), encode(document))

    def rotate(self, role: str) -> None:
        """Give a top-level role new keys; the root says so."""
        root = self.root()
        for key in self.keys[role]:
            root.revoke_key(key.public_key.keyid, role)
        self.keys[role] = self.new_keys(len(self.keys[role]))
        for key in self.keys[role]:
            root.add_key(key.public_key, role)
        self._write("root", bump=True)

    def root(self) -> Root:
        root = self.roles["root"].signed
        assert isinstance(root, Root)
        return root

    def snapshot(self) -> Snapshot:
        snapshot = self.roles["snapshot"].signed
        assert isinstance(snapshot, Snapshot)
        return snapshot

    def state(self) -> State:
        """Copy what lies published now, and what it was made from."""
        return copy.copy(self.files), copy.deepcopy(self.roles)

    def restore(self, state: State) -> None:
        """Publish that state again, as a hub does that has its keys back: in newer versions."""
        online = ("snapshot", "timestamp")
        thiefs = {role: self.roles[role].signed.version for role in online}
        files, roles = state
        self.files.clear()
        self.files.update(files)
        self.roles = copy.deepcopy(roles)
        for role, version in thiefs.items():
            self.roles[role].signed.version = max(version, self.roles[role].signed.version)
        self._reseal(["targets"], bump=True)

    def save(self, directory: Path) -> Path:
        for path, data in self.files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(data)
        return directory

    def sign(self, role: str, keys: Iterable[CryptoSigner]) -> bytes:
        """Sign a role as it is now with other keys, and publish just that file."""
        metadata = self.roles[role]
        metadata.signatures.clear()
        for key in keys:
            metadata.sign(key, append=True)
        name = f"{role}.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        self.files[f"metadata/{name}"] = metadata.to_bytes()
        return self.files[f"metadata/{name}"]

    def _write(self, role: str, *, bump: bool) -> None:
        self.roles[role].signed.version += bump
        self.sign(role, self.keys[role])

    def _reseal(self, roles: Iterable[str], *, bump: bool) -> None:
        """Name new versions in the snapshot, and that in the timestamp."""
        named = [role for role in roles if role not in {"root", "snapshot", "timestamp"}]
        for role in named:
            version = self.roles[role].signed.version
            self.snapshot().meta[f"{role}.json"] = MetaFile(version)
        if not named:
            return
        self._write("snapshot", bump=bump)
        timestamp = self.roles["timestamp"].signed
        assert isinstance(timestamp, Timestamp)
        timestamp.snapshot_meta = MetaFile(self.snapshot().version)
        self._write("timestamp", bump=bump)
