"""Answer the calls of `appliance.v1.DeploymentService`: translate, call, translate back.

What this room does: one method per rpc; values of deployments as messages.
What it knows: `deployments.DeploymentDesk`.
What it never does: decide anything, or catch an error (`grpc_handlers` does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio

from appliance.api.deployments import (
    DeploymentDesk,
    KnownVersion,
    ModelOutlook,
    ShownDeployment,
    SyncState,
)
from appliance.api.proto import deployment_pb2 as pb
from appliance.domain import Client
from appliance.sync.progress import Progress

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class DeploymentServicer:
    """Shows and orders."""

    def __init__(
        self,
        desk: DeploymentDesk,
        client_of: Callable[[Context], Client],
        clock: Callable[[], float],
    ) -> None:
        """Answer from `desk`. client_of: says who calls. clock: monotonic, in milliseconds."""
        self._desk = desk
        self._client_of = client_of
        self._clock = clock

    async def get_overview(self, request: pb.GetOverviewRequest, context: Context) -> object:
        """Answer with all that is known."""
        del request
        client = self._client_of(context)
        return pb.GetOverviewResponse(
            sync=_sync(await self._desk.sync_state(client)),
            models=[_outlook(one) for one in await self._desk.outlooks(client)],
        )

    async def list_deployments(
        self, request: pb.ListDeploymentsRequest, context: Context
    ) -> object:
        """Answer with the newest."""
        client = self._client_of(context)
        found = await self._desk.deployments(client, request.model, request.count)
        return pb.ListDeploymentsResponse(deployments=[_deployment(one) for one in found])

    async def rollback(self, request: pb.RollbackRequest, context: Context) -> object:
        """Answer when users are back."""
        began_ms = self._clock()
        done = await self._desk.rollback(self._client_of(context), request.model)
        return pb.RollbackResponse(
            deployment=_deployment(ShownDeployment(deployment=done.deployment)),
            is_durable=done.is_durable,
            took_ms=self._clock() - began_ms,
        )

    async def approve(self, request: pb.ApproveRequest, context: Context) -> object:
        """Answer when it goes on."""
        await self._desk.approve(self._client_of(context), request.model)
        return pb.ApproveResponse()

    async def cancel(self, request: pb.CancelRequest, context: Context) -> object:
        """Answer when it ends."""
        await self._desk.cancel(self._client_of(context), request.model)
        return pb.CancelResponse()

    async def pin(self, request: pb.PinRequest, context: Context) -> object:
        """Answer when it is written down; an empty version is none."""
        client = self._client_of(context)
        await self._desk.pin(client, request.model, request.version or "?")
        return pb.PinResponse()

    async def unpin(self, request: pb.UnpinRequest, context: Context) -> object:
        """Answer when it is written down."""
        await self._desk.pin(self._client_of(context), request.model, "")
        return pb.UnpinResponse()

    async def hold(self, request: pb.HoldRequest, context: Context) -> object:
        """Answer when it is written down."""
        await self._desk.hold(self._client_of(context), request.model, is_held=True)
        return pb.HoldResponse()

    async def release(self, request: pb.ReleaseRequest, context: Context) -> object:
        """Answer when it is written down."""
        await self._desk.hold(self._client_of(context), request.model, is_held=False)
        return pb.ReleaseResponse()

    async def forgive(self, request: pb.ForgiveRequest, context: Context) -> object:
        """Answer when it is written down."""
        await self._desk.forgive(self._client_of(context), request.model, request.version)
        return pb.ForgiveResponse()

    async def sync_now(self, request: pb.SyncNowRequest, context: Context) -> object:
        """Answer when what came is acted on."""
        del request
        client = self._client_of(context)
        await self._desk.sync_now(client)
        return pb.SyncNowResponse(sync=_sync(await self._desk.sync_state(client)))

    async def import_bundle(self, request: pb.ImportBundleRequest, context: Context) -> object:
        """Answer when the bundle may go."""
        client = self._client_of(context)
        await self._desk.take_in(client, request.path)
        return pb.ImportBundleResponse(sync=_sync(await self._desk.sync_state(client)))

    async def drill(self, request: pb.DrillRequest, context: Context) -> object:
        """Answer with what was measured."""
        report = await self._desk.drill(self._client_of(context), request.model)
        return pb.DrillResponse(
            label=report.version,
            level=report.level.value,
            load_ms=report.load_ms,
            accepted_ms=report.accepted_ms,
            first_token_ms=report.first_token_ms,
            reason=report.reason,
        )


def _sync(state: SyncState) -> pb.SyncStatus:
    return pb.SyncStatus(
        is_on=state.is_on,
        cohort=state.cohort,
        sources=state.sources,
        learnt_utc_ms=state.learnt_utc_ms,
        expires_utc_ms=state.expires_utc_ms,
        is_stale=state.is_stale,
        fault=state.fault,
        is_linked=state.is_linked,
        link_reason=state.link_reason,
        alerts=[
            pb.Alert(
                kind=one.kind,
                subject=one.subject,
                since_utc_ms=one.since_utc_ms,
                reason=one.reason,
            )
            for one in state.alerts
        ],
    )


def _outlook(outlook: ModelOutlook) -> pb.ModelOutlook:
    refused = outlook.refused
    return pb.ModelOutlook(
        model=outlook.model,
        active=_known(outlook.active),
        standby=_known(outlook.standby),
        assigned_version=outlook.assigned,
        pinned_version=outlook.pinned,
        is_held=outlook.is_held,
        deployment=_deployment(outlook.deployment) if outlook.deployment else None,
        refusal=pb.Refusal(
            code=refused.refusal.value, reason=refused.reason, retry_utc_ms=refused.retry_utc_ms
        )
        if refused
        else None,
    )


def _known(known: KnownVersion | None) -> pb.KnownVersion | None:
    if known is None:
        return None
    return pb.KnownVersion(
        version=known.version,
        digest=known.digest,
        publisher=known.publisher,
        sequence=known.sequence,
        quantisation=known.quantisation,
    )


def _deployment(shown: ShownDeployment) -> pb.Deployment:
    one = shown.deployment
    return pb.Deployment(
        id=one.id,
        model=one.model,
        version=one.version,
        digest=one.digest,
        previous_digest=one.previous,
        state=f"DEPLOYMENT_STATE_{one.state.name}",
        percent=one.traffic.percent,
        reason=one.reason,
        cause=one.cause,
        undo=one.undo.value if one.undo is not None else "",
        created_utc_ms=one.created_utc_ms,
        entered_utc_ms=one.entered_utc_ms,
        deadline_utc_ms=one.deadline_utc_ms,
        waiting_for=shown.waiting_for,
        download=_download(shown.download),
        quantisation=one.quantisation,
    )


def _download(progress: Progress | None) -> pb.DownloadProgress | None:
    if progress is None:
        return None
    return pb.DownloadProgress(
        total_bytes=progress.total_bytes,
        verified_bytes=progress.verified_bytes,
        fetched_bytes=progress.fetched_bytes,
        seeded_bytes=progress.seeded_bytes,
        bytes_per_s=progress.bytes_per_s,
        seconds_left=progress.seconds_left,
        stopped_by=progress.waits_for,
    )
