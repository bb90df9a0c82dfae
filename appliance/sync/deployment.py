"""Carry one deployment over one event: what it becomes, and what is commanded. Pure.

What this room does: a deployment as a value; the stages that its signed strategy asks for; and
`decide`, which resolves what `states` leaves to the deployment.
What it knows: that a first install has nothing to try it against or to go back to, so it has no
shadow, steps or probation: its checks decide. That a version which had to stop the active one to
have room is seen by users from its loading on.
What it never does: save, act, or read a clock. It is saved on entering a state, before its acts.

The stages of a strategy, in order; each that is not asked for is left out:

    planned, fetching, staged, loading, checking, [shadowing], [awaiting approval],
    [shifting, once for each step], [probation], committed

Where it runs alone, approval comes before anything is stopped, and there is nothing to share with:

    planned, fetching, [awaiting approval], staged, loading, checking, [probation], committed

Undoing a committed version is a deployment born in ROLLING_BACK, back to the one before.
"""

from __future__ import annotations

import enum

import msgspec

from appliance.contract.release import Strategy, Trial
from appliance.domain import Digest, Traffic, Value
from appliance.sync.judge import Measures
from appliance.sync.states import (
    BLAMED,
    ENDS,
    KEPT,
    ON_ENTERING,
    SEEN,
    TABLE,
    TRIED,
    Act,
    Event,
    State,
    Target,
    Turn,
)

REASON_CHARS_MAX = 500
ALL_PERCENT = 100


class Undo(enum.Enum):
    """Why a committed version is left."""

    OPERATOR = "operator"
    CRASH_LOOP = "crash_loop"
    REVOKED = "revoked"
    REGRET = "regret"


class Bounds(Value):
    """How often a deployment may do what it does. entries_max: into the states from LOADING on."""

    entries_max: int = 64
    reboots_max: int = 2


class Deployment(Value):
    """One replacement of one version by another. Empty digests mean none; times in UTC ms, 0: none.

    previous: who served when it was planned; empty on a first install. step: of the strategy, while
    SHIFTING. entries: into states that the budget counts. is_alone: the active version is stopped
    for it. deadline_utc_ms: counted from its first loading. cause: the event or `Undo` that ended
    its way forward. undo: set where it was born to leave a committed version. baseline: what was
    last measured of the previous version. quantisation: the edition of its files; empty: the
    preferred one.
    """

    id: int
    model: str
    version: str
    digest: Digest
    previous: Digest
    strategy: Strategy
    state: State = State.PLANNED
    step: int = 0
    entries: int = 0
    reboots: int = 0
    is_alone: bool = False
    is_approved: bool = False
    cause: str = ""
    reason: str = ""
    undo: Undo | None = None
    created_utc_ms: int = 0
    entered_utc_ms: int = 0
    deadline_utc_ms: int = 0
    baseline: Measures = Measures()
    quantisation: str = ""

    @property
    def label(self) -> str:
        """Name the version it is about: model@version."""
        return f"{self.model}@{self.version}"

    @property
    def has_ended(self) -> bool:
        """Tell whether nothing can happen to it any more."""
        return self.state in ENDS

    @property
    def is_seen(self) -> bool:
        """Tell whether users notice that it is here."""
        stopped = self.is_alone and self.state in (State.LOADING, State.CHECKING)
        return self.state in SEEN or stopped

    @property
    def is_blamed(self) -> bool:
        """Tell whether its version is to be left alone from now on. Asked at an end."""
        if self.state is State.COMMITTED:
            return False
        return self.undo is not None or self.cause in {event.value for event in BLAMED}

    @property
    def traffic(self) -> Traffic:
        """Say who gets the candidate in this state."""
        if self.state is State.SHADOWING:
            return Traffic(candidate=self.digest, shadow_share=self.strategy.shadow_share)
        if self.state is State.SHIFTING:
            return Traffic(
                candidate=self.digest, percent=float(self.strategy.steps_percent[self.step])
            )
        if self.state is State.PROBATION:
            return Traffic(candidate=self.digest, percent=float(ALL_PERCENT))
        return Traffic()

    @property
    def trial(self) -> Trial | None:
        """Say what this state measures, if it does."""
        trials = {
            State.SHADOWING: self.strategy.shadow,
            State.SHIFTING: self.strategy.step,
            State.PROBATION: self.strategy.probation,
        }
        return trials.get(self.state)


class Serving(Value):
    """Who serves a model, as it is written down: the truth after a restart. Empty digests: none.

    generation: rises with each change. floor_sequence: no release below it is taken any more.
    """

    model: str
    active: Digest = Digest("")
    standby: Digest = Digest("")
    generation: int = 0
    floor_sequence: int = 0

    def after(self, deployment: Deployment) -> Serving:
        """Say who serves once a deployment has entered its state; the same value if nobody else."""
        if deployment.state is State.COMMITTED:
            return self._next(deployment.digest, deployment.previous)
        if deployment.state is State.ROLLED_BACK and deployment.undo is not None:
            return self._next(deployment.previous, Digest(""))
        return self

    def _next(self, active: Digest, standby: Digest) -> Serving:
        return msgspec.structs.replace(
            self, active=active, standby=standby, generation=self.generation + 1
        )


class Happening(Value):
    """An event, when it happened, and why, in words for a person."""

    event: Event
    utc_ms: int
    reason: str = ""


class Decision(Value):
    """What a deployment becomes, to be saved first; then the acts, in order."""

    deployment: Deployment
    acts: tuple[Act, ...]

    @property
    def must_be_saved(self) -> bool:
        """Tell whether nothing may be done without saving: not on the way back."""
        state = self.deployment.state
        return state not in (State.ROLLING_BACK, State.ROLLED_BACK, State.ABORTED, State.STRANDED)


def stages(deployment: Deployment) -> tuple[tuple[State, int], ...]:
    """List the stages of a deployment, in order, each with its step."""
    strategy, first = deployment.strategy, not deployment.previous
    approval = [State.AWAITING_APPROVAL] if strategy.needs_approval else []
    probation = [State.PROBATION] if strategy.probation and not first else []
    loading = [State.STAGED, State.LOADING, State.CHECKING]
    begun: list[State] = [State.PLANNED, State.FETCHING]
    if deployment.is_alone:
        plain = [*begun, *approval, *loading, *probation, State.COMMITTED]
        return tuple((state, 0) for state in plain)
    shadowing = [State.SHADOWING] if strategy.shadow_share > 0 and not first else []
    steps = [] if first else list(range(len(strategy.steps_percent)))
    return (
        *((state, 0) for state in (*begun, *loading, *shadowing, *approval)),
        *((State.SHIFTING, step) for step in steps),
        *((state, 0) for state in (*probation, State.COMMITTED)),
    )


def plan(
    *,
    model: str,
    version: str,
    digest: Digest,
    previous: Digest,
    strategy: Strategy,
    quantisation: str = "",
    utc_ms: int,
) -> Deployment:
    """Begin a deployment; its id is given when it is first saved."""
    return Deployment(
        id=0,
        model=model,
        version=version,
        digest=digest,
        previous=previous,
        strategy=strategy,
        quantisation=quantisation,
        created_utc_ms=utc_ms,
        entered_utc_ms=utc_ms,
    )


def undoing(
    *, model: str, version: str, digest: Digest, to: Digest, undo: Undo, utc_ms: int, reason: str
) -> Deployment:
    """Begin to leave a committed version for the one before."""
    return Deployment(
        id=0,
        model=model,
        version=version,
        digest=digest,
        previous=to,
        strategy=Strategy(),
        state=State.ROLLING_BACK,
        undo=undo,
        cause=undo.value,
        reason=reason[:REASON_CHARS_MAX],
        created_utc_ms=utc_ms,
        entered_utc_ms=utc_ms,
    )


def decide(deployment: Deployment, happening: Happening, bounds: Bounds) -> Decision | None:
    """Say what an event makes of a deployment; None: it means nothing in this state."""
    target = TABLE.get((deployment.state, happening.event))
    if target is None:
        return None
    entered = _entered(deployment, _resolved(deployment, target, bounds), happening)
    if entered.state in TRIED and entered.entries > bounds.entries_max:
        spent = f"entered {bounds.entries_max} states without coming to an end"
        over = Happening(event=Event.BUDGET_SPENT, utc_ms=happening.utc_ms, reason=spent)
        entered = _entered(deployment, (_back(deployment), 0), over)
    again = target in (Turn.AGAIN, Turn.AGAIN_OR_BACK) and entered.state is deployment.state
    loads_first = again or happening.event is Event.APPROVED
    return Decision(deployment=entered, acts=_acts(entered, loads_first=loads_first))


def _resolved(deployment: Deployment, target: Target, bounds: Bounds) -> tuple[State, int]:
    """Find the state and step that a target means for this deployment."""
    may_be_alone = deployment.strategy.stop_then_start and deployment.previous
    if isinstance(target, State):
        return target, 0
    if target is Turn.FORWARD:
        course = stages(deployment)
        return course[course.index((deployment.state, deployment.step)) + 1]
    if target is Turn.ALONE and may_be_alone and not deployment.is_alone:
        wants = deployment.strategy.needs_approval and not deployment.is_approved
        return (State.AWAITING_APPROVAL if wants else State.STAGED), 0
    reboots_left = deployment.reboots < bounds.reboots_max
    if target is Turn.AGAIN or (target is Turn.AGAIN_OR_BACK and reboots_left):
        return deployment.state, deployment.step
    return _back(deployment), 0


def _back(deployment: Deployment) -> State:
    return State.ROLLING_BACK if deployment.is_seen else State.ABORTED


def _entered(deployment: Deployment, place: tuple[State, int], happening: Happening) -> Deployment:
    """Write down that a state is entered, and why."""
    state, step = place
    alone = happening.event is Event.NO_ROOM and state in (State.STAGED, State.AWAITING_APPROVAL)
    turned = state in (State.ABORTED, State.ROLLING_BACK, State.STRANDED) and not deployment.cause
    forgiven = happening.event is Event.RESTARTED_REBOOTED and deployment.state in KEPT
    deadline = deployment.deadline_utc_ms
    if state is State.LOADING and not deadline:
        deadline = happening.utc_ms + round(deployment.strategy.deadline_s * 1000)
    return msgspec.structs.replace(
        deployment,
        state=state,
        step=step,
        entries=deployment.entries + (state in TRIED),
        reboots=deployment.reboots + forgiven,
        is_alone=deployment.is_alone or alone,
        is_approved=deployment.is_approved or happening.event is Event.APPROVED,
        cause=happening.event.value if turned else deployment.cause,
        reason=(happening.reason or deployment.reason)[:REASON_CHARS_MAX],
        entered_utc_ms=happening.utc_ms,
        deadline_utc_ms=0 if alone else deadline,
    )


def _acts(deployment: Deployment, *, loads_first: bool) -> tuple[Act, ...]:
    """List what entering commands, with loading where the candidate may not be loaded yet.

    After a restart nothing is; and an approval may come while it is being loaded after one.
    """
    acts = ON_ENTERING[deployment.state]
    loaded = {*TRIED, State.COMMITTED} - {State.LOADING}
    approved_first = deployment.is_alone and deployment.state is State.AWAITING_APPROVAL
    needs_loading = loads_first and deployment.state in loaded and not approved_first
    return (Act.LOAD, *acts) if needs_loading else acts
