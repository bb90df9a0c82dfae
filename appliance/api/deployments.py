"""Show versions and deployments to operators, and take their orders: the use case behind gRPC.

What this room does: authorise, check the names, have it done, and see that it is recorded.
What it knows: an appliance that takes no versions from a hub refuses every order as such. Orders
are recorded by `sync.orders`, whatever came of them; what goes past it is recorded here.
What it never does: decide about a version; `sync` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from appliance.access.audit import Audit
from appliance.access.policy import Verb, authorise
from appliance.contract.names import NAME
from appliance.domain import Client, Digest, DrillReport, Value
from appliance.errors import ApplianceError, DeploymentRefused, InvalidRequest, PermissionDenied
from appliance.sync.deployment import Deployment
from appliance.sync.eligibility import Refused
from appliance.sync.orders import HISTORY_MAX, Orders, RolledBack
from appliance.sync.progress import Progress

COUNT_USUAL = 50
_PATH_CHARS_MAX = 4096


# --- what is shown --------------------------------------------------------------------------------


class KnownVersion(Value):
    """A version that is written down here, and who signed it."""

    version: str
    digest: Digest
    publisher: str
    sequence: int
    quantisation: str


class ShownDeployment(Value):
    """A deployment as it is now. waiting_for: what holds it. download: where that is."""

    deployment: Deployment
    waiting_for: str = ""
    download: Progress | None = None


class ModelOutlook(Value):
    """How one model of the hub stands; empty names are none. refused: why not that assigned."""

    model: str
    active: KnownVersion | None = None
    standby: KnownVersion | None = None
    assigned: str = ""
    pinned: str = ""
    is_held: bool = False
    deployment: ShownDeployment | None = None
    refused: Refused | None = None


class Alert(Value):
    """What stands that a person should look at. subject: the model, empty if it is of none."""

    kind: str
    subject: str
    since_utc_ms: int
    reason: str


class SyncState(Value):
    """What is known of the hub's word, and since when; all empty where none is taken."""

    is_on: bool = False
    cohort: str = ""
    sources: tuple[str, ...] = ()
    learnt_utc_ms: int = 0
    expires_utc_ms: int = 0
    is_stale: bool = False
    fault: str = ""
    is_linked: bool = False
    link_reason: str = ""
    alerts: tuple[Alert, ...] = ()


class Versions(Protocol):
    """Versions from a hub. Supplied by `hub_versions`."""

    @property
    def orders(self) -> Orders:
        """Name who takes orders."""
        ...

    async def sync_state(self) -> SyncState:
        """Say what is known, and since when. Raises StoreError."""
        ...

    async def outlooks(self) -> tuple[ModelOutlook, ...]:
        """Say how each model stands. Raises StoreError."""
        ...

    async def deployments(self, model: str, count: int) -> tuple[ShownDeployment, ...]:
        """List the newest deployments, of a model or of all. Raises StoreError."""
        ...

    async def take_in(self, path: Path) -> None:
        """Take in a bundle. Raises SyncError."""
        ...

    async def drill(self, model: str) -> DrillReport:
        """Rehearse the way back of a model. Raises DeploymentRefused."""
        ...


# --- what is asked --------------------------------------------------------------------------------


class DeploymentDesk:
    """What the gRPC face calls. All methods belong to the event loop's thread.

    Each raises PermissionDenied, and InvalidRequest where a name is none; orders raise
    DeploymentRefused where this appliance takes no versions from a hub.
    """

    def __init__(self, versions: Versions | None, audit: Audit) -> None:
        """Show and order `versions`; None: this appliance takes none."""
        self._versions = versions
        self._audit = audit

    def show(self, versions: Versions) -> None:
        """Show and order these from now on."""
        self._versions = versions

    async def sync_state(self, client: Client) -> SyncState:
        """Say what is known, and since when. Raises StoreError."""
        self._authorise(client, Verb.READ_DEPLOYMENTS, "*")
        return await self._versions.sync_state() if self._versions else SyncState()

    async def outlooks(self, client: Client) -> tuple[ModelOutlook, ...]:
        """Say how each model of the hub stands. Raises StoreError."""
        self._authorise(client, Verb.READ_DEPLOYMENTS, "*")
        return await self._versions.outlooks() if self._versions else ()

    async def deployments(
        self, client: Client, model: str, count: int
    ) -> tuple[ShownDeployment, ...]:
        """List deployments, the newest first; count 0: the usual number. Raises StoreError."""
        self._authorise(client, Verb.READ_DEPLOYMENTS, model or "*")
        if not 0 <= count <= HISTORY_MAX:
            raise InvalidRequest(field="count", reason=f"must be from 0 to {HISTORY_MAX}")
        if model:
            _check_name("model", model)
        if self._versions is None:
            return ()
        return await self._versions.deployments(model, count or COUNT_USUAL)

    async def rollback(self, client: Client, model: str) -> RolledBack:
        """Send users back. Raises as `Orders.rollback`."""
        return await self._orders(client, Verb.ROLLBACK, model).rollback(client.id, model)

    async def approve(self, client: Client, model: str) -> None:
        """Let a deployment go on that waits for it. Raises as `Orders.approve`."""
        await self._orders(client, Verb.APPROVE, model).approve(client.id, model)

    async def cancel(self, client: Client, model: str) -> None:
        """End what is under way. Raises as `Orders.cancel`."""
        await self._orders(client, Verb.CANCEL_DEPLOYMENT, model).cancel(client.id, model)

    async def pin(self, client: Client, model: str, version: str) -> None:
        """Take this version alone; empty: any. Raises as `Orders.pin`."""
        orders = self._orders(client, Verb.PIN_VERSION, model)
        if version:
            _check_name("version", version)
        await orders.pin(client.id, model, version)

    async def hold(self, client: Client, model: str, *, is_held: bool) -> None:
        """Take no new version, or again some. Raises as `Orders.hold`."""
        orders = self._orders(client, Verb.HOLD_MODEL, model)
        await orders.hold(client.id, model, is_held=is_held)

    async def forgive(self, client: Client, model: str, version: str) -> None:
        """Let a version be tried again. Raises as `Orders.forgive`."""
        orders = self._orders(client, Verb.FORGIVE_VERSION, model)
        _check_name("version", version)
        await orders.forgive(client.id, model, version)

    async def sync_now(self, client: Client) -> None:
        """Look for news now. Raises as `Orders.sync_now`."""
        await self._taking(client, Verb.SYNC, "*").orders.sync_now(client.id)

    async def take_in(self, client: Client, path: str) -> None:
        """Take in a bundle that lies on this machine.

        Raises:
            SyncError: it is none, says nothing that is believed, or lacks files.
        """
        versions = self._taking(client, Verb.IMPORT, path)
        if not path.startswith("/") or len(path) > _PATH_CHARS_MAX or "\0" in path:
            reason = f"must be absolute, of at most {_PATH_CHARS_MAX} characters"
            raise InvalidRequest(field="path", reason=reason)
        with self._recorded(client, Verb.IMPORT, path):
            await versions.take_in(Path(path))

    async def drill(self, client: Client, model: str) -> DrillReport:
        """Rehearse the way back of a model.

        Raises:
            DeploymentRefused: it has no standby, or something is under way.
        """
        versions = self._taking(client, Verb.DRILL, model)
        _check_name("model", model)
        with self._recorded(client, Verb.DRILL, model):
            return await versions.drill(model)

    # --- shared -----------------------------------------------------------------------------------

    def _orders(self, client: Client, verb: Verb, model: str) -> Orders:
        """Find who takes an order about a model."""
        versions = self._taking(client, verb, model)
        _check_name("model", model)
        return versions.orders

    def _taking(self, client: Client, verb: Verb, target: str) -> Versions:
        self._authorise(client, verb, target)
        if self._versions is None:
            reason = "this appliance takes no versions from a hub; 'appliance trust' begins it"
            raise DeploymentRefused(model=target, action=verb.value, reason=reason)
        return self._versions

    def _authorise(self, client: Client, verb: Verb, target: str) -> None:
        try:
            authorise(client, verb, target)
        except PermissionDenied as error:
            self._audit.record(client, verb, target, error.code)
            raise

    @contextmanager
    def _recorded(self, client: Client, verb: Verb, target: str) -> Iterator[None]:
        """Record how it ended; a client that left did not wait for the end."""
        outcome = "left"
        try:
            yield
            outcome = "ok"
        except ApplianceError as error:
            outcome = error.code
            raise
        finally:
            self._audit.record(client, verb, target, outcome)


def _check_name(field: str, name: str) -> None:
    if not NAME.fullmatch(name):
        reason = "must be 1 to 64 letters, digits, dots, dashes or underscores, the first no mark"
        raise InvalidRequest(field=field, reason=reason)
