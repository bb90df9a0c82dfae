"""Say which signed release applies to this appliance now, or why none does. Pure.

What this room does: one model of the assignment against its release, its standing, what is known
of it here and what the operator wished.
What it knows: publisher and director must agree: an assignment names a release by its digest, and
the release is there only where its publisher signed it.
What it never does: look anything up; all it reads is handed in.

The first reason that applies is given; the order goes from what nobody here can change to what
passes by itself.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Mapping

from appliance.contract.assignment import Assigned
from appliance.contract.release import Release, Strategy
from appliance.contract.standing import Standing
from appliance.domain import Digest, Value
from appliance.sync.deployment import Serving
from appliance.sync.editions import NoEdition, Room, allowed, choose, least_bytes

_PART_DIGITS_MAX = 9


class Refusal(enum.Enum):
    """Why a release does not apply now. Behind each: what changes it."""

    UNSIGNED = "unsigned"  # no publisher of this model signed what the director names: the hub
    NOT_AS_ASSIGNED = "not_as_assigned"  # signed, but not what the director names: the hub
    LOCAL_NAME = "local_name"  # the operator serves a file of his own under this name: he
    BELOW_FLOOR = "below_floor"  # its publisher withdrew all versions this old: nobody
    REVOKED = "revoked"  # its publisher withdrew it: nobody
    APPLIANCE_TOO_OLD = "appliance_too_old"  # an upgrade of this program
    TOO_LITTLE_MEMORY = "too_little_memory"  # a larger machine, or less on it
    NO_SUCH_EDITION = "no_such_edition"  # the operator named one that it does not have: he
    QUARANTINED = "quarantined"  # it failed here, or the operator cancelled it: he
    ATTEMPTS_SPENT = "attempts_spent"  # tried and not finished too often: the operator
    PINNED = "pinned"  # the operator wants another version: he
    HELD = "held"  # the operator wants no change of this model: he
    HALTED = "halted"  # the director stops what has begun: he
    NOT_BEFORE = "not_before"  # time
    TOO_SOON = "too_soon"  # it was tried a moment ago: time
    ACTIVE = "active"  # it serves already


class Wish(Value):
    """What the operator wants of a model. pinned: a version's name, empty for none."""

    pinned: str = ""
    is_held: bool = False


class Attempts(Value):
    """How often a release was tried here without an end, and when the last try ended."""

    count: int = 0
    ended_utc_ms: int = 0


class Local(Value):
    """What this appliance is and remembers. memory_bytes: all it may use for models; 0: unknown.

    quarantined: reason by digest. attempts: by digest. retry_s: doubled with each attempt. room:
    for a version of the model that is decided about.
    """

    appliance_version: str
    memory_bytes: int = 0
    quarantined: Mapping[Digest, str] = {}
    attempts: Mapping[Digest, Attempts] = {}
    attempts_max: int = 3
    retry_s: float = 3600.0
    local_names: frozenset[str] = frozenset()
    needs_approval: bool = False
    may_stop_first: bool = False
    room: Room = Room()


class Refused(Value):
    """Why not, in one word and in words for a person; when to ask again, 0: when told to."""

    refusal: Refusal
    reason: str
    retry_utc_ms: int = 0


class Eligible(Value):
    """What applies now, with the strategy that holds: the director's, and this site's on top.

    quantisation: the edition that suits this machine.
    """

    release: Release
    digest: Digest
    strategy: Strategy
    quantisation: str = ""


def digest_of(release_sha256: str) -> Digest:
    """Name a version by the SHA-256 of its release document, in hex."""
    return Digest(f"sha256:{release_sha256}")


def eligible(
    assigned: Assigned,
    offer: tuple[Release, Digest] | None,
    standing: Standing | None,
    serving: Serving,
    wish: Wish,
    local: Local,
    *,
    is_halted: bool,
    utc_ms: int,
) -> Eligible | Refused:
    """Decide about one assigned model. offer: what its publisher signed under that name."""
    if offer is None:
        return Refused(
            refusal=Refusal.UNSIGNED,
            reason=f"no publisher signed {assigned.model}@{assigned.version}",
        )
    release, digest = offer
    reasons = itertools.chain(
        _for_good(assigned, release, digest, standing, serving, local),
        _for_here(release, digest, wish, local),
        _for_now(assigned, digest, serving, local, is_halted=is_halted, utc_ms=utc_ms),
    )
    refused = next(reasons, None)
    if refused is not None:
        return refused
    strategy = strategy_of(assigned, release, local)
    edition = choose(release, local.room, may_stop=strategy.stop_then_start)
    if isinstance(edition, NoEdition):
        if not edition.is_known:
            return Refused(refusal=Refusal.NO_SUCH_EDITION, reason=edition.reason)
        return Refused(
            refusal=Refusal.TOO_LITTLE_MEMORY,
            reason=edition.reason,
            retry_utc_ms=utc_ms + round(local.retry_s * 1000),
        )
    return Eligible(release=release, digest=digest, strategy=strategy, quantisation=edition)


def withdrawn(
    release_sha256: str, sequence: int, standing: Standing | None, floor_sequence: int
) -> Refused | None:
    """Say whether a publisher has withdrawn a version, whoever assigned it."""
    floor = max(floor_sequence, standing.floor_sequence if standing else 0)
    if sequence < floor:
        return Refused(
            refusal=Refusal.BELOW_FLOOR,
            reason=f"its sequence is {sequence}; its publisher takes none below {floor}",
        )
    revoked = standing.revokes(release_sha256) if standing else None
    if revoked is not None:
        why = f": {revoked.reason}" if revoked.reason else ""
        return Refused(refusal=Refusal.REVOKED, reason=f"its publisher revoked it{why}")
    return None


def strategy_of(assigned: Assigned, release: Release, local: Local) -> Strategy:
    """Combine what the director, the publisher and this site ask for; the site only adds care."""
    signed = assigned.strategy or release.strategy
    return Strategy(
        shadow_share=signed.shadow_share,
        shadow=signed.shadow,
        needs_approval=signed.needs_approval or local.needs_approval,
        steps_percent=signed.steps_percent,
        step=signed.step,
        probation=signed.probation,
        deadline_s=signed.deadline_s,
        stop_then_start=signed.stop_then_start and local.may_stop_first,
    )


def _for_good(
    assigned: Assigned,
    release: Release,
    digest: Digest,
    standing: Standing | None,
    serving: Serving,
    local: Local,
) -> Iterator[Refused]:
    """Refuse what is not what it should be, or was withdrawn."""
    if digest != digest_of(assigned.release_sha256) or release.model != assigned.model:
        yield Refused(
            refusal=Refusal.NOT_AS_ASSIGNED,
            reason=f"the director names another document than the publisher's {release.label}",
        )
    if assigned.model in local.local_names:
        yield Refused(
            refusal=Refusal.LOCAL_NAME, reason=f"{assigned.model} is a file of this site's own"
        )
    gone = withdrawn(assigned.release_sha256, release.sequence, standing, serving.floor_sequence)
    if gone is not None:
        yield gone


def _for_here(release: Release, digest: Digest, wish: Wish, local: Local) -> Iterator[Refused]:
    """Refuse what does not suit this machine, what failed here, and what its operator refuses."""
    if _numbers(local.appliance_version) < _numbers(release.needs.appliance_min):
        yield Refused(
            refusal=Refusal.APPLIANCE_TOO_OLD,
            reason=f"it needs version {release.needs.appliance_min} of this program",
        )
    needed = least_bytes(release, allowed(release, local.room.wanted))
    if 0 < local.memory_bytes < needed:
        yield Refused(
            refusal=Refusal.TOO_LITTLE_MEMORY,
            reason=f"it needs {needed} bytes of memory, this machine has {local.memory_bytes}",
        )
    if digest in local.quarantined:
        yield Refused(refusal=Refusal.QUARANTINED, reason=local.quarantined[digest])
    attempts = local.attempts.get(digest, Attempts())
    if attempts.count >= local.attempts_max:
        yield Refused(
            refusal=Refusal.ATTEMPTS_SPENT, reason=f"was tried {attempts.count} times without end"
        )
    if wish.pinned and wish.pinned != release.version:
        yield Refused(refusal=Refusal.PINNED, reason=f"pinned to version {wish.pinned}")
    if wish.is_held:
        yield Refused(refusal=Refusal.HELD, reason="held by the operator")


def _for_now(
    assigned: Assigned,
    digest: Digest,
    serving: Serving,
    local: Local,
    *,
    is_halted: bool,
    utc_ms: int,
) -> Iterator[Refused]:
    """Refuse what is there already, and what only has to wait."""
    if digest == serving.active:
        yield Refused(refusal=Refusal.ACTIVE, reason="serves already")
    if is_halted:
        yield Refused(refusal=Refusal.HALTED, reason="the director halted this assignment")
    if utc_ms < assigned.not_before_utc_ms:
        yield Refused(
            refusal=Refusal.NOT_BEFORE,
            reason="the director wants it later",
            retry_utc_ms=assigned.not_before_utc_ms,
        )
    attempts = local.attempts.get(digest, Attempts())
    if attempts.count:
        wait_ms = round(local.retry_s * 1000 * 2 ** (attempts.count - 1))
        if 0 <= utc_ms - attempts.ended_utc_ms < wait_ms:
            yield Refused(
                refusal=Refusal.TOO_SOON,
                reason=f"attempt {attempts.count} ended a moment ago",
                retry_utc_ms=attempts.ended_utc_ms + wait_ms,
            )


def _numbers(version: str) -> tuple[int, ...]:
    """Read the leading numbers of a version for comparison; what is no number ends them."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal() or len(part) > _PART_DIGITS_MAX:
            break
        numbers.append(int(part))
    return tuple(numbers)
