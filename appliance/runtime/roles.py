"""Keep the table of roles: which loaded version of each model is asked by whom. Pure.

What this room does: one row for each model; the version a client's request goes to; the changes of
a row, each refused or returned with its reason.
What it knows: which versions are loaded, by digest, and what `domain.Traffic` says of each model.
What it never does: load, wait, look at a clock, or change a row unasked.

A row names the active version, the standby, which need not be loaded, and the traffic on trial: at
most one candidate with its percentage of the clients. Whatever else is loaded is a candidate that
nobody is sent to: only a request that names it (model@version) reaches it.

An active version may rest: it is stopped to make room for another of its model. It stays in the
row, loaded or not, until it wakes or another is switched to; whoever is sent to it must ask again.

Who is in at a percentage is decided by a hash of model, salt and client that is compared with the
percentage: so a client that is in stays in while the percentage rises, no table of clients is kept,
and a restart changes nothing.

| change   | the row before            | the row after                                        |
|----------|---------------------------|------------------------------------------------------|
| add      | any                       | the same; or the version active, where it is said so |
| direct   | any                       | traffic as said; its candidate must be loaded        |
| switch   | `expecting` active        | `to` active, the other the standby, nobody on trial  |
| switch   | `to` active               | nobody on trial                                      |
| rest     | an active version         | the same, resting                                    |
| wake     | it rests                  | the same, not resting                                |
| remove   | clients are sent to it    | without it; see `check_removal`                      |
| remove   | it rests                  | the same                                             |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from appliance.domain import Digest, ModelVersion, Role, Traffic, Value
from appliance.errors import DeploymentRefused, ModelNotServed

_HASH_BYTES = 8
_HASH_RANGE = 2.0 ** (8 * _HASH_BYTES)
_ALL = 100.0
_BELOW_ONE = 1.0 - 2.0**-53  # a hash of all ones would be rounded up
_NOBODY = Traffic()


class Row(Value):
    """The roles of one model. active is None until a first version is switched to."""

    active: Digest | None = None
    standby: Digest | None = None
    traffic: Traffic = _NOBODY
    rests: bool = False


class Change(Value):
    """What became of a row, and why."""

    model: str
    before: Row
    after: Row
    reason: str


class Roles:
    """The rows of all models, and what is loaded."""

    def __init__(self) -> None:
        """Begin with nothing loaded."""
        self._rows: dict[str, Row] = {}
        self._loaded: dict[Digest, ModelVersion] = {}

    # --- asking ---

    def row(self, model: str) -> Row:
        """Read the row of a model; of one that is not served, an empty one."""
        return self._rows.get(model, Row())

    def role(self, version: ModelVersion) -> Role:
        """Name the role of a version."""
        row = self.row(version.model)
        if version.digest == row.active:
            return Role.ACTIVE
        return Role.STANDBY if version.digest == row.standby else Role.CANDIDATE

    def rests(self, digest: Digest) -> bool:
        """Tell whether a version is the active one of its model, and rests."""
        return any(row.rests and row.active == digest for row in self._rows.values())

    def resting(self) -> frozenset[str]:
        """List the models whose active version rests."""
        return frozenset(model for model, row in self._rows.items() if row.rests)

    def pinned(self, label: str) -> Digest | None:
        """Find the loaded version that is written model@version; None: there is none."""
        found = [digest for digest, one in self._loaded.items() if one.label == label]
        return found[-1] if found else None

    def route(self, model: str, client: str, *, takes: Callable[[Digest], bool]) -> Digest:
        """Find the version that a client's request goes to now.

        takes: whether a version could take it; the candidate is passed over if it could not.

        Raises:
            ModelNotServed: the model has no active version.
        """
        row = self.row(model)
        if row.active is None:
            raise ModelNotServed(model=model)
        candidate = row.traffic.candidate
        if candidate is None or not is_in(model, row.traffic, client) or not takes(candidate):
            return row.active
        return candidate

    # --- changing ---

    def add(self, version: ModelVersion, *, active: bool) -> Change:
        """Note that a version is being loaded; active: and is the one to serve its model."""
        assert version.digest not in self._loaded, "this version is loaded already"
        row = self.row(version.model)
        assert not (active and row.active), "this model has an active version"
        self._loaded[version.digest] = version
        after = msgspec.structs.replace(row, active=version.digest) if active else row
        return self._put(version.model, after, f"{version.label}: is loaded")

    def check_removal(self, digest: Digest) -> None:
        """Refuse to have a version unloaded that clients are sent to.

        Raises:
            ModelNotServed: it is not loaded.
            DeploymentRefused: they are, and others of its model are loaded.
        """
        version = self._version(digest)
        model, row = version.model, self.row(version.model)
        others = [one for one in self._loaded.values() if one.model == model and one != version]
        is_on_trial = digest == row.traffic.candidate and row.traffic.percent > 0
        if others and (digest == row.active or is_on_trial):
            raise _refused(model, "unload", f"clients are sent to {version.label}")

    def remove(self, digest: Digest) -> Change:
        """Note that a version is not loaded any more; as a standby it stays in the row.

        Raises:
            ModelNotServed: it was not.
        """
        version = self._version(digest)
        model, row = version.model, self.row(version.model)
        is_on_trial = digest == row.traffic.candidate
        del self._loaded[digest]
        after = msgspec.structs.replace(
            row,
            active=None if digest == row.active and not row.rests else row.active,
            traffic=_NOBODY if is_on_trial else row.traffic,
        )
        return self._put(model, after, f"{version.label}: is not loaded any more")

    def rest(self, model: str) -> Change:
        """Note that the active version of a model is being stopped to make room for another."""
        after = msgspec.structs.replace(self.row(model), rests=True)
        return self._put(model, after, f"{after.active}: rests")

    def wake(self, model: str) -> Change:
        """Note that the active version of a model is loaded again."""
        after = msgspec.structs.replace(self.row(model), rests=False)
        return self._put(model, after, f"{after.active}: rests no more")

    def direct(self, model: str, traffic: Traffic) -> Change:
        """Say who is on trial.

        Raises:
            DeploymentRefused: the candidate is not loaded, is another model's, or is active.
        """
        row, candidate = self.row(model), traffic.candidate
        if candidate is None and (traffic.percent or traffic.shadow_share):
            raise _refused(model, "direct", "there is no candidate for its share")
        if candidate is not None and not self._is_loaded(model, candidate):
            raise _refused(model, "direct", f"{candidate} is not loaded")
        if candidate is not None and candidate == row.active:
            raise _refused(model, "direct", f"{self._version(candidate).label} is active already")
        label = "nobody" if candidate is None else self._version(candidate).label
        reason = f"{label}: {traffic.percent:g} %, shadow of {traffic.shadow_share:g}"
        return self._put(model, msgspec.structs.replace(row, traffic=traffic), reason)

    def switch(self, model: str, to: Digest, expecting: Digest | None) -> Change:
        """Make a loaded version the active one; who was it becomes the standby.

        Raises:
            DeploymentRefused: another version is active than expected, or `to` is not loaded.
        """
        row = self.row(model)
        if not self._is_loaded(model, to):
            raise _refused(model, "switch", f"{to} is not loaded")
        if row.active not in (expecting, to):
            raise _refused(model, "switch", f"{row.active or 'none'} is active, not {expecting}")
        standby = row.standby if row.active in (None, to) else row.active
        after = Row(active=to, standby=None if standby == to else standby)
        return self._put(model, after, f"{self._version(to).label}: is active")

    def keep_standby(self, model: str, digest: Digest | None) -> Change:
        """Name the standby of a model; whether it is loaded is another matter."""
        after = msgspec.structs.replace(self.row(model), standby=digest)
        return self._put(model, after, f"{digest or 'none'}: stands by")

    def restore(self, model: str, row: Row) -> None:
        """Put a row back as it was before a change, while nothing else has changed."""
        self._put(model, row, "as before")

    def _put(self, model: str, after: Row, reason: str) -> Change:
        before = self.row(model)
        if after.rests or any(version.model == model for version in self._loaded.values()):
            self._rows[model] = after
        else:
            self._rows.pop(model, None)
        return Change(model=model, before=before, after=after, reason=reason)

    def _version(self, digest: Digest) -> ModelVersion:
        try:
            return self._loaded[digest]
        except KeyError:
            raise ModelNotServed(model=digest) from None

    def _is_loaded(self, model: str, digest: Digest) -> bool:
        return digest in self._loaded and self._loaded[digest].model == model


def is_in(model: str, traffic: Traffic, client: str) -> bool:
    """Tell whether a client is among those that get the candidate."""
    salt = traffic.salt or traffic.candidate or ""
    return place(model, salt, client) < traffic.percent


def place(model: str, salt: str, client: str) -> float:
    """Find a client's place among all, 0 to below 100; evenly spread, and the same every time."""
    text = f"{model}\n{salt}\n{client}".encode(errors="replace")
    value = int.from_bytes(hashlib.sha256(text).digest()[:_HASH_BYTES], "big")
    return min(value / _HASH_RANGE, _BELOW_ONE) * _ALL


def _refused(model: str, action: str, reason: str) -> DeploymentRefused:
    return DeploymentRefused(model=model, action=action, reason=reason)
