"""Ask a running daemon about its versions and deployments, and give it an operator's orders.

What this room does: one method for each call of `DeploymentService`; its answers as values.
What it knows: the proto; a value here has the names that the message has.
What it never does: print, retry, or let a message of the wire out of this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
from google.protobuf import json_format

from appliance.api.proto import deployment_pb2 as pb
from appliance.api.proto import deployment_pb2_grpc
from appliance.cli.connection import CALL_TIMEOUT_S, Connection

if TYPE_CHECKING:
    from google.protobuf.message import Message

ORDER_TIMEOUT_S = 90.0  # the daemon itself says how it stands after a minute
NEWS_TIMEOUT_S = 600.0  # a slow line; the daemon gives up by itself before
_STATE_PREFIX = "DEPLOYMENT_STATE_"
_ENDS = frozenset({"committed", "rolled_back", "aborted", "stranded"})


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """Where a download is; `seconds_left` is None where nothing comes."""

    total_bytes: int
    verified_bytes: int
    fetched_bytes: int
    seeded_bytes: int
    bytes_per_s: float
    stopped_by: str
    seconds_left: float | None = None


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One replacement of a version by another; `state` is its word in lower case."""

    id: int
    model: str
    version: str
    digest: str
    previous_digest: str
    state: str
    percent: float
    reason: str
    cause: str
    undo: str
    created_utc_ms: int
    entered_utc_ms: int
    deadline_utc_ms: int
    waiting_for: str
    quantisation: str
    download: Download | None = None

    @property
    def label(self) -> str:
        """Name the version it is about: model@version."""
        return f"{self.model}@{self.version}"

    @property
    def has_ended(self) -> bool:
        """Tell whether nothing can happen to it any more."""
        return self.state in _ENDS


class KnownVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is written down as the active one or the standby."""

    version: str
    digest: str
    publisher: str
    sequence: int
    quantisation: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why what is assigned does not apply now; `retry_utc_ms` 0: when something changes."""

    code: str
    reason: str
    retry_utc_ms: int


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """How one model of the hub stands. Empty names: none."""

    model: str
    assigned_version: str
    pinned_version: str
    is_held: bool
    active: KnownVersion | None = None
    standby: KnownVersion | None = None
    deployment: Deployment | None = None
    refusal: Refusal | None = None


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What stands that a person should look at. subject: the model, empty if it is of none."""

    kind: str
    subject: str
    since_utc_ms: int
    reason: str


class SyncStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the appliance has learnt from its hub, and since when; times in UTC ms, 0: never."""

    is_on: bool
    cohort: str
    sources: tuple[str, ...]
    learnt_utc_ms: int
    expires_utc_ms: int
    is_stale: bool
    fault: str
    is_linked: bool
    link_reason: str
    alerts: tuple[Alert, ...] = ()


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """How the appliance stands with its hub, and each model of it."""

    sync: SyncStatus
    models: tuple[Outlook, ...]


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback came to. is_durable: a power cut now would leave it so."""

    deployment: Deployment
    is_durable: bool
    took_ms: float


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    """What a rehearsal of the way back measured; `reason` is empty if it went well."""

    label: str
    level: str
    load_ms: float
    accepted_ms: float
    first_token_ms: float
    reason: str


class VersionsClient(Connection):
    """What commands ask of a daemon about versions from a hub; an async context manager.

    Every method raises CallFailed where it was refused, or the connection broke.
    """

    def __init__(self, address: str) -> None:
        """Prepare a connection to "unix:PATH" or "HOST:PORT"; nothing is sent yet."""
        super().__init__(address)
        self._stub = deployment_pb2_grpc.DeploymentServiceStub(self._channel)

    async def overview(self) -> Overview:
        """Say how the appliance and each model of the hub stand."""
        with self._failures():
            answer = await self._stub.GetOverview(pb.GetOverviewRequest(), timeout=CALL_TIMEOUT_S)
        return value_of(answer, Overview)

    async def deployments(self, model: str, count: int) -> tuple[Deployment, ...]:
        """List the newest deployments of a model, or of all; the newest first."""
        request = pb.ListDeploymentsRequest(model=model, count=count)
        with self._failures():
            answer = await self._stub.ListDeployments(request, timeout=CALL_TIMEOUT_S)
        return tuple(value_of(one, Deployment) for one in answer.deployments)

    async def rollback(self, model: str) -> RolledBack:
        """Send users back; returns when that has ended, or after a minute as it is then."""
        request = pb.RollbackRequest(model=model)
        with self._failures():
            answer = await self._stub.Rollback(request, timeout=ORDER_TIMEOUT_S)
        return value_of(answer, RolledBack)

    async def approve(self, model: str) -> None:
        """Let the deployment that waits for it go on."""
        with self._failures():
            await self._stub.Approve(pb.ApproveRequest(model=model), timeout=CALL_TIMEOUT_S)

    async def cancel(self, model: str) -> None:
        """End the deployment that is under way."""
        with self._failures():
            await self._stub.Cancel(pb.CancelRequest(model=model), timeout=ORDER_TIMEOUT_S)

    async def pin(self, model: str, version: str) -> None:
        """Take no other version than this; empty: any again."""
        with self._failures():
            if version:
                request = pb.PinRequest(model=model, version=version)
                await self._stub.Pin(request, timeout=CALL_TIMEOUT_S)
            else:
                await self._stub.Unpin(pb.UnpinRequest(model=model), timeout=CALL_TIMEOUT_S)

    async def hold(self, model: str, *, is_held: bool) -> None:
        """Take no new version of a model, or again some."""
        with self._failures():
            if is_held:
                await self._stub.Hold(pb.HoldRequest(model=model), timeout=CALL_TIMEOUT_S)
            else:
                await self._stub.Release(pb.ReleaseRequest(model=model), timeout=CALL_TIMEOUT_S)

    async def forgive(self, model: str, version: str) -> None:
        """Let a version be tried again."""
        request = pb.ForgiveRequest(model=model, version=version)
        with self._failures():
            await self._stub.Forgive(request, timeout=CALL_TIMEOUT_S)

    async def sync_now(self) -> SyncStatus:
        """Look for news; returns when what came is acted on."""
        with self._failures():
            answer = await self._stub.SyncNow(pb.SyncNowRequest(), timeout=NEWS_TIMEOUT_S)
        return value_of(answer.sync, SyncStatus)

    async def take_in(self, path: str) -> SyncStatus:
        """Have the daemon take in a bundle of its machine."""
        with self._failures():
            answer = await self._stub.ImportBundle(
                pb.ImportBundleRequest(path=path), timeout=NEWS_TIMEOUT_S
            )
        return value_of(answer.sync, SyncStatus)

    async def drill(self, model: str) -> Drill:
        """Rehearse the way back to the standby of a model."""
        with self._failures():
            answer = await self._stub.Drill(pb.DrillRequest(model=model), timeout=ORDER_TIMEOUT_S)
        return value_of(answer, Drill)


_T = TypeVar("_T")


def value_of(message: Message, kind: type[_T]) -> _T:
    """Turn a message into the value that has its names."""
    fields = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return msgspec.convert(_worded(fields), kind, strict=False)  # 64-bit numbers come as text


def _worded(value: object) -> object:
    """Replace the names of states by their words, at any depth."""
    if isinstance(value, list):
        return [_worded(item) for item in value]
    if isinstance(value, dict):
        return {
            key: str(item).removeprefix(_STATE_PREFIX).lower() if key == "state" else _worded(item)
            for key, item in value.items()
        }
    return value
