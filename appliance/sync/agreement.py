"""Find the releases on which publisher and director agree, and say why another is refused.

What this room does: reads the documents that concern this appliance, each already verified by
signature, and holds each against its own name, the digests and what its publisher withdrew.
What it knows: an appliance acts where two authorities agree. The director names a release by its
digest; the publisher of that model has signed a document with that digest. Whoever has the hub's
keys can delay, or choose among genuine releases; a model of his own he can't bring in.
What it never does: verify a signature, or decide whether a release fits this machine
(`eligibility` does). One bad document refuses one version; the others are learnt.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from appliance.contract import names
from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.document import decode
from appliance.contract.release import Release
from appliance.contract.standing import Standing
from appliance.domain.value import Value
from appliance.errors import HubUnreachable, SyncError, Untrusted
from appliance.sync.verified import Verified


class Documents(Protocol):
    """What is signed."""

    def document(self, path: str) -> Verified | None:
        """Read a document whose signatures were checked; None where nobody signed one.

        Raises:
            SyncError: it is signed, and can't be read as it was.
        """
        ...


class Genuine(Value):
    """One release that publisher and director agree on. `standing`: None where none was signed."""

    assigned: Assigned
    release: Release
    release_sha256: str
    standing: Standing | None


class Refusal(Value):
    """What was not believed, and why. `version`: "" where the model's standing is unreadable."""

    model: str
    version: str
    error: SyncError


class Agreement(Value):
    """All that concerns one appliance. `standings`: of every model asked for that has one.

    `consistent`: the documents whose signer, names and content fit, whether agreed on or not.
    `answered`: the paths of which we know what is signed there now, if anything.
    """

    assignment: Assignment | None = None
    genuine: tuple[Genuine, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    standings: tuple[Standing, ...] = ()
    consistent: tuple[Verified, ...] = ()
    answered: tuple[str, ...] = ()


def agree(documents: Documents, cohort: str, models: Collection[str]) -> Agreement:
    """Read what `cohort` should run, and what is withdrawn of its models and of `models`.

    Raises:
        SyncError: the assignment can't be read, or is not for this cohort.
    """
    reading = _Reading(documents)
    assignment = reading.assignment(cohort)
    assigned = assignment.models if assignment else ()
    genuine: list[Genuine] = []
    refusals: list[Refusal] = []
    standings: dict[str, Standing | None] = {}
    for model in sorted({*models, *(one.model for one in assigned)}):
        try:
            standings[model] = reading.standing(model)
        except SyncError as error:  # what is withdrawn of it is unknown: nothing new of it is taken
            refusals.append(Refusal(model=model, version="", error=error))
    for one in assigned:
        if one.model not in standings:
            continue
        try:
            genuine.append(reading.genuine(one, standings[one.model]))
        except SyncError as error:
            refusals.append(Refusal(model=one.model, version=one.version, error=error))
    return Agreement(
        assignment=assignment,
        genuine=tuple(genuine),
        refusals=tuple(refusals),
        standings=tuple(one for one in standings.values() if one is not None),
        consistent=tuple(reading.consistent),
        answered=tuple(reading.answered),
    )


class _Reading:
    """Documents as they are read: which fit, and of which paths we know what is signed now."""

    def __init__(self, documents: Documents) -> None:
        self.consistent: list[Verified] = []
        self.answered: list[str] = []
        self._documents = documents

    def assignment(self, cohort: str) -> Assignment | None:
        path = names.assignment_path(cohort)
        found = self._signed(path, names.DIRECTOR_ROLE)
        if found is None:
            return None
        assignment = decode(found.data, Assignment)
        _same(path, "cohort", assignment.cohort, cohort)
        self.consistent.append(found)
        return assignment

    def standing(self, model: str) -> Standing | None:
        path = names.standing_path(model)
        found = self._signed(path, names.PUBLISHER_ROLE_PREFIX)
        if found is None:
            return None
        standing = decode(found.data, Standing)
        _same(path, "model", standing.model, model)
        self.consistent.append(found)
        return standing

    def genuine(self, assigned: Assigned, standing: Standing | None) -> Genuine:
        path = names.release_path(assigned.model, assigned.version)
        found = self._signed(path, names.PUBLISHER_ROLE_PREFIX)
        if found is None:
            raise Untrusted(what=path, reason="no publisher of this model has signed it")
        release = decode(found.data, Release)
        _same(path, "model", release.model, assigned.model)
        _same(path, "version", release.version, assigned.version)
        self.consistent.append(found)
        _same(path, "digest", found.sha256, assigned.release_sha256)
        if standing is not None:
            _check_standing(release, found.sha256, standing)
        return Genuine(
            assigned=assigned, release=release, release_sha256=found.sha256, standing=standing
        )

    def _signed(self, path: str, role: str) -> Verified | None:
        try:
            found = self._documents.document(path)
        except HubUnreachable:
            raise  # what is signed now, nobody told
        except SyncError:
            self.answered.append(path)
            raise
        self.answered.append(path)
        if found is not None and not found.signer.startswith(role):
            # whatever patterns somebody delegated to it by mistake, a role keeps to its trade
            raise Untrusted(what=path, reason=f"is signed by {found.signer}, not by a {role}")
        return found


def _check_standing(release: Release, sha256: str, standing: Standing) -> None:
    revoked = standing.revokes(sha256)
    if revoked is not None:
        reason = f"its publisher has revoked it: {revoked.reason or 'no reason given'}"
        raise Untrusted(what=release.label, reason=reason)
    if release.sequence < standing.floor_sequence:
        raise Untrusted(
            what=release.label,
            reason=f"its sequence is {release.sequence}; its publisher's floor is"
            f" {standing.floor_sequence}",
        )


def _same(path: str, field: str, found: str, expected: str) -> None:
    if found != expected:
        raise Untrusted(what=path, reason=f"its {field} is {found}, not {expected}")
