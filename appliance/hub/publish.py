"""Publish a version of a model: read its files, say what will be signed, sign it. OFFLINE.

What this room does: checks every file before anything else reads it, finds the facts, maps the
chunks, makes the release; puts blobs and release into the repository and signs with the publisher's
keys; withdraws a version again.
What it knows: where the publisher works there is a copy of the repository and no online key; what
is signed here waits as a pending version until the hub puts it out.
What it never does: run on the hub's server, sign before the caller has shown what will be signed,
or write anything before that.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from appliance.contract import chunk_map
from appliance.contract.document import SCHEMA, decode, encode
from appliance.contract.names import publisher_paths, release_path, standing_path
from appliance.contract.release import (
    BlobRef,
    Facts,
    FileRole,
    HealthPack,
    Needs,
    Release,
    ReleaseFile,
    Strategy,
)
from appliance.contract.standing import Revoked, Standing
from appliance.errors import DocumentRefused, PublishRefused
from appliance.gguf import (
    GgufFault,
    GgufHead,
    kv_cache_bytes,
    parameters_count,
    template_digest,
    tokenizer_digest,
)
from appliance.hub import chunks
from appliance.hub.blob_files import take_bytes, take_file
from appliance.hub.model_files import Edition, read_adapter, read_editions
from appliance.hub.signing import Repository, Signer, Signing

OTHERS_SHOWN = 5
CONTEXT_TOKENS_COUNTED = 8192  # of a KV cache in `memory_bytes`; an appliance reckons its own


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """What a publisher wants to publish. `weights`: one file of each edition is enough.

    `sequence`: 0 takes the next one.
    """

    model: str
    version: str
    weights: tuple[Path, ...]
    adapters: tuple[Path, ...] = ()
    health: HealthPack = HealthPack()
    strategy: Strategy = Strategy()
    needs: Needs = Needs()
    licence: str = ""
    notes: str = ""
    sequence: int = 0


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One file that will be published: where it is, and what its blob and its chunk map are."""

    path: Path
    file: ReleaseFile
    chunk_map: bytes
    chunks_count: int
    new_bytes: int


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What will be signed, and by which role. Nothing is written yet."""

    role: str
    release: Release
    sources: tuple[Source, ...]
    known_version: str

    @property
    def new_bytes(self) -> int:
        """Bytes that an appliance with the last version must fetch for all of these files."""
        return sum(source.new_bytes for source in self.sources)


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What was signed: the path and digest of the document, and how far its signatures are."""

    path: str
    sha256: str
    signing: Signing


def prepare(repository: Repository, intent: Intent, *, now_utc_ms: int) -> Prepared:
    """Read and check all files of a version; blocks for as long as hashing them takes.

    Raises:
        PublishRefused: a file is not whole, the files do not belong together, nobody may publish
            this model, or the version exists.
        DocumentRefused: a name or a number is out of bounds.
    """
    role = publisher_of(repository, intent.model)
    path = release_path(intent.model, intent.version)
    releases = releases_of(repository, intent.model)
    if repository.document(role, path, pending=True) is not None:
        raise PublishRefused(what=path, reason="is signed already; a version is never changed")
    last = max(releases, key=lambda one: one.sequence, default=None)
    known = _known_maps(repository, last)
    editions = read_editions(intent.weights)
    adapters = tuple(read_adapter(one, editions[0].heads[0]) for one in intent.adapters)
    sources = [
        _source(known, path, head, FileRole.WEIGHTS, edition.quantisation)
        for edition in editions
        for path, head in zip(edition.paths, edition.heads, strict=True)
    ]
    sources += [
        _source(known, path, head, FileRole.ADAPTER, "")
        for path, head in zip(intent.adapters, adapters, strict=True)
    ]
    facts = _facts(editions, intent.licence)
    release = Release(
        schema=SCHEMA,
        model=intent.model,
        version=intent.version,
        sequence=intent.sequence or next_sequence(repository, intent.model),
        issued_utc_ms=now_utc_ms,
        files=tuple(source.file for source in sources),
        facts=facts,
        needs=msgspec.structs.replace(
            intent.needs, memory_bytes=intent.needs.memory_bytes or facts.memory_bytes
        ),
        health=intent.health,
        strategy=intent.strategy,
        notes=intent.notes,
    )
    encode(release)
    return Prepared(
        role=role,
        release=release,
        sources=tuple(sources),
        known_version=last.version if last else "",
    )


def publish(
    repository: Repository, prepared: Prepared, signers: Sequence[Signer], *, now_utc_ms: int
) -> Published:
    """Put the blobs and the release into the repository, and sign; blocks while copying.

    Raises:
        PublishRefused: a file changed since `prepare`, the disk is full, or no signer may sign.
    """
    _check_signers(repository, prepared.role, signers)
    for source in prepared.sources:
        blob = source.file.blob
        take_file(repository.blob_place(blob.sha256), source.path, blob.sha256, blob.length)
        take_bytes(repository.blob_place(source.file.chunk_map.sha256), source.chunk_map)
    path = release_path(prepared.release.model, prepared.release.version)
    return _sign(
        repository, prepared.role, path, encode(prepared.release), signers, now_utc_ms=now_utc_ms
    )


def revoke(
    repository: Repository,
    model: str,
    version: str,
    signers: Sequence[Signer],
    *,
    now_utc_ms: int,
    reason: str = "",
    is_floor_raised: bool = False,
) -> Published:
    """Withdraw a version for ever. `is_floor_raised`: and every one before it.

    Raises:
        PublishRefused: there is no such version, it is withdrawn already, or no signer may sign.
    """
    role, path = publisher_of(repository, model), release_path(model, version)
    entry = repository.documents(role, pending=True).get(path)
    data = repository.document(role, path, pending=True)
    if entry is None or data is None:
        raise PublishRefused(what=path, reason="there is no such version")
    standing = standing_of(repository, model)
    if standing.revokes(entry[0]):
        raise PublishRefused(what=path, reason="is withdrawn already")
    _check_signers(repository, role, signers)
    floor = standing.floor_sequence
    if is_floor_raised:
        floor = max(floor, decode(data, Release).sequence + 1)
    withdrawn = Revoked(version=version, release_sha256=entry[0], reason=reason)
    standing = msgspec.structs.replace(
        standing, revoked=(*standing.revoked, withdrawn), floor_sequence=floor
    )
    document = encode(standing)
    return _sign(repository, role, standing_path(model), document, signers, now_utc_ms=now_utc_ms)


# --- what is there already ------------------------------------------------------------------------


def publisher_of(repository: Repository, model: str) -> str:
    """Find the role that may publish a model.

    Raises:
        PublishRefused: there is none.
    """
    path = publisher_paths(model)[0]
    for role, paths in repository.delegated().items():
        if path in paths:
            return role
    raise PublishRefused(what=model, reason="no publisher may sign for it; add one first")


def releases_of(repository: Repository, model: str) -> tuple[Release, ...]:
    """Read every release of a model, pending ones among them."""
    role, found = publisher_of(repository, model), []
    for path in repository.documents(role, pending=True):
        if path.startswith(f"models/{model}/") and path.endswith("/release.json"):
            data = repository.document(role, path, pending=True)
            assert data is not None
            found.append(decode(data, Release))
    return tuple(found)


def standing_of(repository: Repository, model: str) -> Standing:
    """Read what is withdrawn of a model, what is pending among it."""
    role, path = publisher_of(repository, model), standing_path(model)
    data = repository.document(role, path, pending=True)
    return decode(data, Standing) if data else Standing(schema=SCHEMA, model=model)


def next_sequence(repository: Repository, model: str) -> int:
    """Find the number of a model's next release."""
    floor = standing_of(repository, model).floor_sequence
    used = (release.sequence for release in releases_of(repository, model))
    return max(floor, max(used, default=0) + 1)


# --- within ---------------------------------------------------------------------------------------


def _sign(
    repository: Repository,
    role: str,
    path: str,
    document: bytes,
    signers: Sequence[Signer],
    *,
    now_utc_ms: int,
) -> Published:
    vouched = {path}
    if repository.is_signed_by(role, signers):
        vouched |= {one.subject for one in repository.changes(role, signers)}
    repository.put(role, {path: document}, now_utc_ms=now_utc_ms)
    others = [one.subject for one in repository.changes(role, signers)]
    others = [subject for subject in others if subject not in vouched]
    if others:
        reason = (
            f"signing it would also vouch for {', '.join(others[:OTHERS_SHOWN])}; look at it and "
            f"sign with 'appliance hub sign {role}'"
        )
        raise PublishRefused(what=role, reason=reason)
    signing = repository.sign(role, signers)
    sha256 = repository.documents(role, pending=True)[path][0]
    return Published(path=path, sha256=sha256, signing=signing)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_signers(repository: Repository, role: str, signers: Iterable[Signer]) -> None:
    """Refuse before anything is written what could not be signed."""
    allowed = repository.signers_of(role)
    if not any(signer.public_key.keyid in allowed for signer in signers):
        names = ", ".join(allowed.values())
        raise PublishRefused(what=role, reason=f"none of these keys may sign it; may: {names}")


def _source(
    known: dict[str, chunk_map.ChunkMap],
    path: Path,
    head: GgufHead,
    role: FileRole,
    edition: str,
) -> Source:
    found = chunks.build(path, head)
    data = chunk_map.encode(found)
    file = ReleaseFile(
        name=path.name,
        role=role,
        blob=BlobRef(sha256=found.sha256, length=found.length),
        chunk_map=BlobRef(sha256=_digest(data), length=len(data)),
        quantisation=edition,
    )
    fetched = min((chunks.new_bytes(one, found) for one in known.values()), default=found.length)
    return Source(path=path, file=file, chunk_map=data, chunks_count=len(found), new_bytes=fetched)


def _known_maps(repository: Repository, last: Release | None) -> dict[str, chunk_map.ChunkMap]:
    """Read the chunk maps of the last version, as far as they are here."""
    found = {}
    for file in last.files if last else ():
        place = repository.blob_place(file.chunk_map.sha256)
        if place.is_file() and place.stat().st_size <= chunk_map.MAP_BYTES_MAX:
            with contextlib.suppress(DocumentRefused):  # it only says how much would be new
                found[file.name] = chunk_map.decode(place.read_bytes())
    return found


def _facts(editions: Sequence[Edition], licence: str) -> Facts:
    """Tell what the model is: of its preferred edition; the others must be the same model."""
    facts = [_edition_facts(edition, licence) for edition in editions]
    for other, edition in zip(facts[1:], editions[1:], strict=True):
        for field in ("architecture", "tokenizer_sha256", "template_sha256"):
            if getattr(other, field) != getattr(facts[0], field):
                reason = f"its {field} is another than that of {editions[0].paths[0].name}"
                raise PublishRefused(what=str(edition.paths[0]), reason=reason)
    return facts[0]


def _edition_facts(edition: Edition, licence: str) -> Facts:
    head = edition.heads[0]
    context = head.number("context_length")
    per_token = kv_cache_bytes(head, "f16", "f16", 1)
    weights = sum(one.file_bytes for one in edition.heads)
    try:
        tokenizer = tokenizer_digest(edition.paths[0], head)
    except GgufFault as fault:
        raise PublishRefused(what=str(edition.paths[0]), reason=str(fault)) from fault
    return Facts(
        architecture=head.architecture,
        parameters_count=sum(parameters_count(one) for one in edition.heads),
        quantisation=edition.quantisation,
        context_train_tokens=context,
        tokenizer_sha256=tokenizer,
        template_sha256=template_digest(head),
        licence=licence or str(head.metadata.get("general.license", "")),
        kv_bytes_per_token=per_token,
        memory_bytes=weights + per_token * min(context, CONTEXT_TOKENS_COUNTED),
    )
