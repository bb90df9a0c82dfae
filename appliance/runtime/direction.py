"""Direct clients to versions: who is on trial, who takes over, who stands by, and who is told.

What this room does: each change of a model's roles as one call that never waits: the table first,
so that no new request goes to the other side any more; then what has no answer there yet is taken
back, and its readers ask again; then whoever looks on is told.
What it knows: the table of roles, of which it is the only writer, and the loaded versions.
What it never does: load, unload, or let a request in.

Streams that have begun end where they are. What is taken back was let in before, and is let in on
the new side beyond the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from appliance.clock import utc_ms
from appliance.domain import Digest, ModelVersion, SwitchReport, Traffic
from appliance.errors import DeploymentRefused
from appliance.runtime.hosting import Hosting
from appliance.runtime.roles import Change, Roles
from appliance.runtime.served import Observer, Served
from appliance.runtime.yielding import may_return, set_yielding


class Direction:
    """The changes of roles. `on_trial_ended` is called when a model's candidate is another one."""

    def __init__(
        self,
        roles: Roles,
        hosting: Hosting,
        observer: Observer,
        *,
        clock: Callable[[], float],
        on_trial_ended: Callable[[], None],
    ) -> None:
        """Write into `roles`, for what `hosting` holds."""
        self._roles = roles
        self._hosting = hosting
        self._observer = observer
        self._clock = clock
        self._on_trial_ended = on_trial_ended
        self._may_yield = may_return()

    # --- what is loaded ---

    def add(self, version: ModelVersion, *, active: bool) -> None:
        """Note that a version is being loaded; active: and is the one to serve its model."""
        self._told(self._roles.add(version, active=active))

    def remove(self, digest: Digest) -> None:
        """Note that a version is not loaded any more. Raises as `Roles.remove`."""
        self._told(self._roles.remove(digest))

    def rest(self, model: str) -> None:
        """Note that the active version of a model is being stopped to make room for another."""
        self._told(self._roles.rest(model))

    def wake(self, model: str) -> None:
        """Note that the active version of a model is loaded again."""
        self._told(self._roles.wake(model))

    # --- who is asked ---

    def direct(self, model: str, traffic: Traffic) -> None:
        """Say who is on trial, from now on.

        A candidate that loses its share here gives back what it has not answered yet.

        Raises:
            ModelNotReady: the candidate does not answer; nothing was changed.
            DeploymentRefused: it is not loaded, or active already.
        """
        served = self._hosting.get(traffic.candidate) if traffic.candidate else None
        if served is not None:
            served.answering()
        change = self._told(self._roles.direct(model, traffic))
        before = change.before.traffic.candidate
        if before is not None and (before != traffic.candidate or not traffic.percent):
            self._take_back(before)
        for digest in (change.after.active, traffic.candidate):
            measured = self._hosting.get(digest) if digest else None
            if measured is not None:
                measured.book.measure.restart(utc_ms())

    def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        """Make a loaded version the active one, now.

        Raises:
            ModelNotReady: it does not answer; nothing was changed.
            DeploymentRefused: another version is active than expected, or `to` is not loaded.
        """
        began_ms = self._clock()
        served = self._hosting.get(to)
        if served is not None:
            served.answering()
        change = self._told(self._roles.switch(model, to, expecting))
        others = {change.before.active, change.before.traffic.candidate} - {None, to}
        counts = [self._take_back(digest) for digest in others if digest is not None]
        return SwitchReport(
            model=model,
            previous=change.before.active or to,
            to=to,
            utc_ms=utc_ms(),
            flip_ms=self._clock() - began_ms,
            moved_count=sum(moved for moved, _ in counts),
            left_count=sum(left for _, left in counts),
            reason=change.reason,
        )

    def keep_standby(self, model: str, digest: Digest | None) -> None:
        """Name the standby of a model; whether it is loaded is another matter."""
        self._told(self._roles.keep_standby(model, digest))

    @contextmanager
    def rehearsing(self, model: str) -> Iterator[None]:
        """Have the standby be the active version, for what is done at once, without waiting.

        Nobody is told, and nothing is moved.

        Raises:
            ModelNotServed, DeploymentRefused: there is no loaded standby.
        """
        row = self._roles.row(model)
        if row.standby is None:
            raise DeploymentRefused(model=model, action="drill", reason="there is no standby")
        self._roles.switch(model, row.standby, row.active)
        try:
            yield
        finally:
            self._roles.restore(model, row)

    # --- what a version does ---

    def take_ready(self, served: Served) -> None:
        """Let a worker that no user waits for run only on cores that nobody else wants."""
        traffic = self._roles.row(served.version.model).traffic
        yields = served.version.digest == traffic.candidate and not traffic.percent
        if served.pid and yields != served.yields and self._may_yield:
            served.yields = set_yielding(served.pid, yields=yields) and yields

    def take_failure(self, served: Served) -> None:
        """Send on whatever a candidate or standby that has failed did not answer yet."""
        if self._roles.row(served.version.model).active not in (None, served.version.digest):
            served.book.move_unanswered()

    def _take_back(self, digest: Digest) -> tuple[int, int]:
        """Have what a version has not answered yet ask again; count it, and what stays there."""
        served = self._hosting.get(digest)
        return served.book.move_unanswered() if served is not None else (0, 0)

    def _told(self, change: Change) -> Change:
        row = change.after
        for served in self._hosting:
            if served.version.model == change.model:
                self.take_ready(served)
        if change.before.traffic.candidate != row.traffic.candidate:
            self._on_trial_ended()
        self._observer.event(
            "roles_changed",
            model=change.model,
            reason=change.reason,
            active=row.active or "",
            standby=row.standby or "",
            candidate=row.traffic.candidate or "",
            percent=row.traffic.percent,
            shadow_share=row.traffic.shadow_share,
        )
        return change
