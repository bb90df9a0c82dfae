"""Hold the table of a deployment's life: states, events, where they lead, and what is done there.

What this room does: names; one row for each thing that can happen; what entering a state commands.
What it knows: nothing of one deployment. A row may point to a `Turn`, which `deployment` resolves:
the next stage of the signed strategy, or the way back that fits what users have seen.
What it never does: decide about clocks, samples or documents; whoever feeds events has.

What no row names means nothing in that state and is passed over; so do all events at an end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import msgspec


class State(enum.Enum):
    """Where a deployment is. Users are on the candidate in part in SHIFTING, all in PROBATION."""

    PLANNED = "planned"
    FETCHING = "fetching"
    STAGED = "staged"
    LOADING = "loading"
    CHECKING = "checking"
    SHADOWING = "shadowing"
    AWAITING_APPROVAL = "awaiting_approval"
    SHIFTING = "shifting"
    PROBATION = "probation"
    ROLLING_BACK = "rolling_back"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"  # users never saw the candidate
    STRANDED = "stranded"  # the way back failed: a person is needed


class Event(enum.Enum):
    """What can happen to a deployment."""

    STARTED = "started"
    BLOBS_READY = "blobs_ready"
    BLOB_REFUSED = "blob_refused"
    WINDOW_OPEN = "window_open"
    LOADED = "loaded"
    NO_ROOM = "no_room"
    LOAD_FAILED = "load_failed"
    WORKER_LOST = "worker_lost"
    CHECKS_PASSED = "checks_passed"
    CHECK_FAILED = "check_failed"
    VERDICT_PASS = "verdict_pass"  # noqa: S105 - a verdict, not a password
    VERDICT_FAIL = "verdict_fail"
    APPROVED = "approved"
    TRAFFIC_BACK = "traffic_back"
    ROLLBACK_FAILED = "rollback_failed"
    CANCELLED = "cancelled"
    REVOKED = "revoked"
    SUPERSEDED = "superseded"
    DEADLINE = "deadline"
    BUDGET_SPENT = "budget_spent"
    RESTARTED_CLEAN = "restarted_clean"
    RESTARTED_DIRTY = "restarted_dirty"
    RESTARTED_REBOOTED = "restarted_rebooted"  # not cleanly, but the machine itself went down


class Act(enum.Enum):
    """What is commanded. All may be done twice; the second time changes nothing."""

    START = "start"
    FETCH = "fetch"
    AWAIT_WINDOW = "await_window"
    LOAD = "load"
    CHECK = "check"
    DIRECT = "direct"
    MEASURE = "measure"
    AWAIT_APPROVAL = "await_approval"
    SWITCH_OVER = "switch_over"  # the previous version becomes the standby
    SWITCH_BACK = "switch_back"
    UNLOAD = "unload"
    ALERT = "alert"


class Turn(enum.Enum):
    """A target that depends on the deployment."""

    FORWARD = "forward"  # the next stage that its strategy has
    BACK = "back"  # ABORTED where users saw nothing of it, else ROLLING_BACK
    AGAIN = "again"  # the same state is entered anew, with the candidate loaded again
    AGAIN_OR_BACK = "again_or_back"  # likewise as often as reboots may be forgiven
    ALONE = "alone"  # to where stopping the active version first begins; BACK if it may not


Target: TypeAlias = State | Turn

ENDS = frozenset({State.COMMITTED, State.ROLLED_BACK, State.ABORTED, State.STRANDED})
UNDER_WAY = tuple(state for state in State if state not in ENDS and state != State.ROLLING_BACK)
SEEN = frozenset({State.SHIFTING, State.PROBATION})
TRIED = UNDER_WAY[UNDER_WAY.index(State.LOADING) :]  # what the budget counts

# Going back because of these is the version's own fault, or a person's word against it.
BLAMED = frozenset(
    {
        Event.BLOB_REFUSED,
        Event.LOAD_FAILED,
        Event.WORKER_LOST,
        Event.CHECK_FAILED,
        Event.VERDICT_FAIL,
        Event.CANCELLED,
        Event.BUDGET_SPENT,
    }
)


class Row(msgspec.Struct, frozen=True):
    """In any of `states`, any of `events` leads to `to`."""

    states: tuple[State, ...]
    events: tuple[Event, ...]
    to: Target


_RESTARTED = (Event.RESTARTED_CLEAN, Event.RESTARTED_DIRTY, Event.RESTARTED_REBOOTED)
_UNLOADED = (Event.LOAD_FAILED, Event.WORKER_LOST)
KEPT = (State.AWAITING_APPROVAL, State.SHIFTING, State.PROBATION)  # over a clean restart

# fmt: off
ROWS = (
    Row((State.PLANNED,),      (Event.STARTED,),                      Turn.FORWARD),
    Row((State.FETCHING,),     (Event.BLOBS_READY,),                  Turn.FORWARD),
    Row((State.FETCHING,),     (Event.BLOB_REFUSED,),                 Turn.BACK),
    Row((State.STAGED,),       (Event.WINDOW_OPEN,),                  Turn.FORWARD),
    Row((State.LOADING,),      (Event.LOADED,),                       Turn.FORWARD),
    Row((State.LOADING,),      (Event.NO_ROOM,),                      Turn.ALONE),
    Row((State.LOADING,),      _UNLOADED,                             Turn.BACK),
    Row((State.CHECKING,),     (Event.CHECKS_PASSED,),                Turn.FORWARD),
    Row((State.CHECKING,),     (Event.CHECK_FAILED, Event.WORKER_LOST), Turn.BACK),
    Row((State.SHADOWING,),    (Event.VERDICT_PASS,),                 Turn.FORWARD),
    Row((State.SHADOWING,),    (Event.VERDICT_FAIL, Event.WORKER_LOST), Turn.BACK),
    Row((State.AWAITING_APPROVAL,), (Event.APPROVED,),                Turn.FORWARD),
    Row((State.SHIFTING, State.PROBATION), (Event.VERDICT_PASS,),     Turn.FORWARD),
    Row((State.SHIFTING, State.PROBATION), (Event.VERDICT_FAIL,),     Turn.BACK),
    Row(KEPT,                 (*_UNLOADED, Event.NO_ROOM),           Turn.BACK),
    Row((State.ROLLING_BACK,), (Event.TRAFFIC_BACK,),                 State.ROLLED_BACK),
    Row((State.ROLLING_BACK,), (Event.ROLLBACK_FAILED,),              State.STRANDED),

    Row(UNDER_WAY, (Event.CANCELLED, Event.REVOKED, Event.SUPERSEDED,
                    Event.DEADLINE, Event.BUDGET_SPENT),              Turn.BACK),

    Row((State.PLANNED, State.FETCHING, State.STAGED), _RESTARTED,    Turn.AGAIN),
    Row((State.LOADING, State.CHECKING, State.SHADOWING), _RESTARTED, State.LOADING),
    Row(KEPT,                 (Event.RESTARTED_CLEAN,),              Turn.AGAIN),
    Row(KEPT,                 (Event.RESTARTED_REBOOTED,),           Turn.AGAIN_OR_BACK),
    Row(KEPT,                 (Event.RESTARTED_DIRTY,),              Turn.BACK),
    Row((State.ROLLING_BACK,), _RESTARTED,                            Turn.AGAIN),
)

ON_ENTERING: Mapping[State, tuple[Act, ...]] = {
    State.PLANNED:           (Act.START,),
    State.FETCHING:          (Act.FETCH,),
    State.STAGED:            (Act.AWAIT_WINDOW,),
    State.LOADING:           (Act.LOAD,),
    State.CHECKING:          (Act.CHECK,),
    State.SHADOWING:         (Act.DIRECT, Act.MEASURE),
    State.AWAITING_APPROVAL: (Act.DIRECT, Act.AWAIT_APPROVAL),
    State.SHIFTING:          (Act.DIRECT, Act.MEASURE),
    State.PROBATION:         (Act.DIRECT, Act.MEASURE),
    State.ROLLING_BACK:      (Act.SWITCH_BACK,),
    State.COMMITTED:         (Act.SWITCH_OVER,),
    State.ROLLED_BACK:       (Act.UNLOAD,),
    State.ABORTED:           (Act.UNLOAD,),
    State.STRANDED:          (Act.ALERT,),
}
# fmt: on


def _flat() -> Iterator[tuple[tuple[State, Event], Target]]:
    for row in ROWS:
        for state in row.states:
            for event in row.events:
                yield (state, event), row.to


TABLE: Mapping[tuple[State, Event], Target] = dict(_flat())
