"""Name every way the appliance refuses or fails, once, with typed fields.

What this room does: the tree of `ApplianceError`; a stable code and whether a retry can help, per
concrete class; the way an error crosses a process boundary (`to_wire`, `from_wire`).
What it knows: nothing but the words of the domain.
What it never does: know an HTTP or gRPC status (each transport has its own table), log, or format
for a person beyond one plain sentence.
"""

from __future__ import annotations

from appliance.errors.asked import (
    AdapterNotLoaded,
    BodyTooLarge,
    ContextTooLong,
    InvalidRequest,
    ModelNotServed,
    RequestCancelled,
    RequestError,
    RequestUnsafe,
    SchemaUnsupported,
    StreamGone,
    StreamNotHeld,
    StreamTaken,
)
from appliance.errors.base import (
    ApplianceError,
    FieldValue,
)
from appliance.errors.failures import (
    AccessError,
    AdapterUnloadable,
    BlobCorrupt,
    ClientTooSlow,
    ClockUntrusted,
    ConfigError,
    DeadlineExceeded,
    DecodeFailed,
    DeploymentRefused,
    DiskFull,
    DiskRefused,
    DocumentRefused,
    Draining,
    EngineError,
    EnrolmentRefused,
    HostNotAllowed,
    HubUnreachable,
    ModelNotReady,
    ModelUnloadable,
    Overloaded,
    PermissionDenied,
    PublishRefused,
    QueueFull,
    StoreError,
    SyncError,
    TooManyAdapters,
    Unauthenticated,
    Untrusted,
    WorkerLost,
)

__all__ = [
    "AccessError",
    "AdapterNotLoaded",
    "AdapterUnloadable",
    "ApplianceError",
    "BlobCorrupt",
    "BodyTooLarge",
    "ClientTooSlow",
    "ClockUntrusted",
    "ConfigError",
    "ContextTooLong",
    "DeadlineExceeded",
    "DecodeFailed",
    "DeploymentRefused",
    "DiskFull",
    "DiskRefused",
    "DocumentRefused",
    "Draining",
    "EngineError",
    "EnrolmentRefused",
    "FieldValue",
    "HostNotAllowed",
    "HubUnreachable",
    "InvalidRequest",
    "ModelNotReady",
    "ModelNotServed",
    "ModelUnloadable",
    "Overloaded",
    "PermissionDenied",
    "PublishRefused",
    "QueueFull",
    "RequestCancelled",
    "RequestError",
    "RequestUnsafe",
    "SchemaUnsupported",
    "StoreError",
    "StreamGone",
    "StreamNotHeld",
    "StreamTaken",
    "SyncError",
    "TooManyAdapters",
    "Unauthenticated",
    "Untrusted",
    "WorkerLost",
    "concrete_classes",
    "from_wire",
]


def concrete_classes() -> tuple[type[ApplianceError], ...]:
    """List every class that can be raised, in the order of this file."""
    found: list[type[ApplianceError]] = []
    pending = list(reversed(ApplianceError.__subclasses__()))
    while pending:
        cls = pending.pop()
        pending.extend(reversed(cls.__subclasses__()))
        if cls.code:
            found.append(cls)
    return tuple(found)


def from_wire(code: str, fields: dict[str, FieldValue]) -> ApplianceError:
    """Rebuild an error that another of our processes sent as (code, fields)."""
    by_code = {cls.code: cls for cls in concrete_classes()}
    return by_code[code](**fields)
