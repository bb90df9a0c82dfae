"""Say every error of the house in gRPC's words, by one table.

What this room does: the table error class → status code, and the google.rpc details beside it:
ErrorInfo always (its reason is our stable code), RetryInfo, BadRequest and ResourceInfo where due.
What it knows: `errors`; google.rpc's error model (AIP-193).
What it never does: invent a message, or put an error into a message of ours.
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from appliance import errors
from appliance.errors import ApplianceError, FieldValue

DOMAIN = "appliance"
_S_NANOS = 1_000_000_000
# Trailers have a bound (8 kB by default), so every text in them has one too, in bytes.
_MESSAGE_BYTES_MAX = 1024
_FIELD_BYTES_MAX = 256

GRPC_STATUS: dict[type[ApplianceError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotServed: grpc.StatusCode.NOT_FOUND,
    errors.AdapterNotLoaded: grpc.StatusCode.NOT_FOUND,
    errors.ContextTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BodyTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SchemaUnsupported: grpc.StatusCode.INVALID_ARGUMENT,
    errors.RequestUnsafe: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RequestCancelled: grpc.StatusCode.CANCELLED,
    errors.StreamNotHeld: grpc.StatusCode.NOT_FOUND,
    errors.StreamGone: grpc.StatusCode.OUT_OF_RANGE,
    errors.StreamTaken: grpc.StatusCode.ABORTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.HostNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.EnrolmentRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.TooManyAdapters: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ClientTooSlow: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ModelUnloadable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterUnloadable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    errors.WorkerLost: grpc.StatusCode.ABORTED,
    errors.DecodeFailed: grpc.StatusCode.INTERNAL,
    errors.DocumentRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HubUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.Untrusted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BlobCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DiskRefused: grpc.StatusCode.INTERNAL,
    errors.ClockUntrusted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeploymentRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PublishRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StoreError: grpc.StatusCode.INTERNAL,
    errors.ConfigError: grpc.StatusCode.INTERNAL,
}


def status_of(error: ApplianceError) -> grpc.Status:
    """Make the status of an error, with its details."""
    status = status_pb2.Status(
        code=GRPC_STATUS[type(error)].value[0],
        message=_cut(error.message, _MESSAGE_BYTES_MAX),
        details=[_pack(detail) for detail in _details(error)],
    )
    return rpc_status.to_status(status)


def internal_status() -> grpc.Status:
    """Make the status of a bug of ours; what it was stands in the log, not here."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN)
    status = status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0],
        message="the appliance failed; its log says why",
        details=[_pack(info)],
    )
    return rpc_status.to_status(status)


def _pack(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _details(error: ApplianceError) -> list[Message]:
    metadata = {name: _shown(value) for name, value in error.fields.items()}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN, metadata=metadata)
    ]
    retry_after_s = error.fields.get("retry_after_s")
    if isinstance(retry_after_s, (int, float)):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after_s * _S_NANOS))
        details.append(retry)
    if isinstance(error, (errors.InvalidRequest, errors.SchemaUnsupported)):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, _FIELD_BYTES_MAX),
            description=_cut(error.reason, _FIELD_BYTES_MAX),
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.ModelNotServed):
        details.append(_resource("model", error.model, "the model is not served here"))
    if isinstance(error, errors.AdapterNotLoaded):
        details.append(_resource("adapter", error.adapter, "the adapter is not loaded here"))
    return details


def _resource(kind: str, name: str, description: str) -> error_details_pb2.ResourceInfo:
    return error_details_pb2.ResourceInfo(
        resource_type=kind, resource_name=_cut(name, _FIELD_BYTES_MAX), description=description
    )


def _shown(value: FieldValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _cut(str(value), _FIELD_BYTES_MAX)


def _cut(text: str, bytes_max: int) -> str:
    """Leave out the end of a text that is too long, at a whole character."""
    return text.encode()[:bytes_max].decode(errors="ignore")
