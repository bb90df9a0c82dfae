"""Say which versions a cohort should run: the director's documents.

What this room does: changes a cohort's assignment, one model at a time, and stops or lets go on
what has begun.
What it knows: an assignment names a release by its digest, and only one that readers can see, that
is not withdrawn and not below the floor.
What it never does: publish, or sign with anything but the director's key.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.document import SCHEMA, decode, encode
from appliance.contract.names import (
    DIRECTOR_ROLE,
    assignment_path,
    checked,
    publisher_paths,
    release_path,
    standing_path,
)
from appliance.contract.release import Release, Strategy
from appliance.contract.standing import Standing
from appliance.errors import PublishRefused
from appliance.hub.signing import Repository, Signer, Signing


def assignment_of(repository: Repository, cohort: str) -> Assignment | None:
    """Read what a cohort should run, what is pending among it; None where nobody said."""
    data = repository.document(DIRECTOR_ROLE, assignment_path(cohort), pending=True)
    return decode(data, Assignment) if data else None


def cohorts(repository: Repository) -> tuple[str, ...]:
    """Name the cohorts that have an assignment."""
    paths = repository.documents(DIRECTOR_ROLE, pending=True)
    return tuple(sorted(path.split("/")[1] for path in paths))


def assign(
    repository: Repository,
    cohort: str,
    model: str,
    version: str,
    signers: Sequence[Signer],
    *,
    now_utc_ms: int,
    strategy: Strategy | None = None,
    not_before_utc_ms: int = 0,
) -> tuple[Assignment, Signing]:
    """Let a cohort run a version of a model, beside its other models.

    Raises:
        PublishRefused: readers can't see that version, it is withdrawn or below the floor, or none
            of the keys is the director's.
    """
    assigned = Assigned(
        model=model,
        version=version,
        release_sha256=release_digest(repository, model, version),
        strategy=strategy,
        not_before_utc_ms=not_before_utc_ms,
    )
    repository.drop_unsigned(DIRECTOR_ROLE)  # whoever carried it here is not the director
    before = assignment_of(repository, cohort)
    kept = tuple(one for one in before.models if one.model != model) if before else ()
    models = (*kept, assigned)
    return _put(repository, cohort, before, signers, now_utc_ms=now_utc_ms, models=models)


def unassign(
    repository: Repository, cohort: str, model: str, signers: Sequence[Signer], *, now_utc_ms: int
) -> tuple[Assignment, Signing]:
    """Say nothing more of a model to a cohort; appliances keep what they have.

    Raises:
        PublishRefused: the cohort has no such model, or none of the keys is the director's.
    """
    repository.drop_unsigned(DIRECTOR_ROLE)
    before = assignment_of(repository, cohort)
    kept = tuple(one for one in before.models if one.model != model) if before else ()
    if before is None or len(kept) == len(before.models):
        raise PublishRefused(what=f"{cohort}: {model}", reason="is not assigned")
    return _put(repository, cohort, before, signers, now_utc_ms=now_utc_ms, models=kept)


def halt(
    repository: Repository,
    cohort: str,
    signers: Sequence[Signer],
    *,
    now_utc_ms: int,
    is_halted: bool = True,
) -> tuple[Assignment, Signing]:
    """Stop what a cohort has begun, or let it go on. Raises PublishRefused as `unassign`."""
    repository.drop_unsigned(DIRECTOR_ROLE)
    before = assignment_of(repository, cohort)
    if before is None:
        raise PublishRefused(what=cohort, reason="nothing is assigned to it")
    return _put(repository, cohort, before, signers, now_utc_ms=now_utc_ms, halt=is_halted)


def release_digest(repository: Repository, model: str, version: str) -> str:
    """Find the digest of a release that may be assigned. Raises PublishRefused as `assign`."""
    path, own = release_path(model, version), publisher_paths(model)[0]
    roles = [role for role, paths in repository.delegated().items() if own in paths]
    for role in roles:
        found = repository.documents(role).get(path)
        data = repository.document(role, path)
        if found is None or data is None:
            continue
        standing = repository.document(role, standing_path(model), pending=True)
        if standing is not None:
            _check_standing(path, found[0], decode(data, Release), decode(standing, Standing))
        return found[0]
    raise PublishRefused(what=path, reason="readers can't see such a version yet")


def _check_standing(path: str, sha256: str, release: Release, standing: Standing) -> None:
    withdrawn = standing.revokes(sha256)
    if withdrawn is not None:
        raise PublishRefused(what=path, reason=f"is withdrawn: {withdrawn.reason or 'no reason'}")
    if release.sequence < standing.floor_sequence:
        reason = f"its sequence {release.sequence} is below the floor {standing.floor_sequence}"
        raise PublishRefused(what=path, reason=reason)


def _put(
    repository: Repository,
    cohort: str,
    before: Assignment | None,
    signers: Sequence[Signer],
    *,
    now_utc_ms: int,
    **changes: object,
) -> tuple[Assignment, Signing]:
    base = before or Assignment(
        schema=SCHEMA, cohort=checked(cohort, "cohort"), sequence=1, issued_utc_ms=now_utc_ms
    )
    sequence = before.sequence + 1 if before else 1
    given = msgspec.structs.replace(base, sequence=sequence, issued_utc_ms=now_utc_ms, **changes)
    allowed = repository.signers_of(DIRECTOR_ROLE)
    if not any(signer.public_key.keyid in allowed for signer in signers):
        raise PublishRefused(what=DIRECTOR_ROLE, reason="its key is not here")
    documents = {assignment_path(cohort): encode(given)}
    repository.put(DIRECTOR_ROLE, documents, now_utc_ms=now_utc_ms)
    return given, repository.sign(DIRECTOR_ROLE, signers)
