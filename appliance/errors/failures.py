"""Name what is not the request's fault: access, load, the engine, versions, the house.

What this room does: every branch of the tree but `RequestError`.
What it knows: which of them a retry can help.
What it never does: retry.
"""

from __future__ import annotations

from appliance.errors.base import ApplianceError, FieldValue

# --- the client may not -------------------------------------------------------------------------


class AccessError(ApplianceError):
    """The client is unknown, or may not do this."""


class Unauthenticated(AccessError):
    """No credential, or one that is not valid."""

    code = "UNAUTHENTICATED"
    sentence = "a valid credential is needed"

    def __init__(self) -> None:
        super().__init__()


class PermissionDenied(AccessError):
    """The client is known and may not do this to that object."""

    code = "PERMISSION_DENIED"
    sentence = "'{client}' may not {verb} '{object}'"

    def __init__(self, *, client: str, verb: str, object: str) -> None:  # noqa: A002 - the field's name
        super().__init__(client=client, verb=verb, object=object)


class HostNotAllowed(AccessError):
    """The Host or Origin header names a host that is not on the allow-list (DNS rebinding)."""

    code = "HOST_NOT_ALLOWED"
    sentence = "{header}: '{value}' is not on the allow-list"

    def __init__(self, *, header: str, value: str) -> None:
        super().__init__(header=header, value=value)


class EnrolmentRefused(AccessError):
    """The hub does not take this appliance in, or no longer knows it."""

    code = "ENROLMENT_REFUSED"
    sentence = "the hub refuses: {reason}"

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason=reason)
        self.reason = reason


# --- not now ------------------------------------------------------------------------------------


class Overloaded(ApplianceError):
    """The appliance is healthy and can't take or finish this request now."""


class QueueFull(Overloaded):
    """A bound on waiting requests or waiting prompt tokens is reached."""

    code = "QUEUE_FULL"
    retryable = True
    sentence = "the queue is full: {bound} is {limit}; try again in {retry_after_s:.1f} s"

    def __init__(self, *, bound: str, limit: int, retry_after_s: float) -> None:
        super().__init__(bound=bound, limit=limit, retry_after_s=retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(Overloaded):
    """The deadline passed (phase: 'queue' or 'generation'), or would pass before the start.

    retry_after_s: when it is worth asking again; given where a request is refused at once.
    """

    code = "DEADLINE_EXCEEDED"
    sentence = "the deadline passed during {phase}"

    def __init__(self, *, phase: str, retry_after_s: float | None = None) -> None:
        fields: dict[str, FieldValue] = {"phase": phase}
        if retry_after_s is not None:
            fields["retry_after_s"] = retry_after_s
        super().__init__(**fields)
        self.phase = phase
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Say what happened, or what would have."""
        if self.retry_after_s is None:
            return super().__str__()
        wait = f"try again in {self.retry_after_s:.1f} s"
        return f"the deadline would pass during {self.phase}; {wait}"


class Draining(Overloaded):
    """The daemon is stopping and admits nothing more."""

    code = "DRAINING"
    retryable = True
    sentence = "the appliance is shutting down"

    def __init__(self) -> None:
        super().__init__()


class TooManyAdapters(Overloaded):
    """A model has as many LoRA adapters as are allowed; one must be unloaded first."""

    code = "TOO_MANY_ADAPTERS"
    sentence = "'{model}' has {limit} adapters, and limits.adapters allows no more"

    def __init__(self, *, model: str, limit: int) -> None:
        super().__init__(model=model, limit=limit)


class ClientTooSlow(Overloaded):
    """The client read its stream more slowly than the configured buffer allows."""

    code = "CLIENT_TOO_SLOW"
    sentence = "the stream was not read: more than {limit_events} events were waiting"

    def __init__(self, *, limit_events: int) -> None:
        super().__init__(limit_events=limit_events)


# --- the engine ---------------------------------------------------------------------------------


class EngineError(ApplianceError):
    """A worker or its model failed."""


class ModelUnloadable(EngineError):
    """The file can't be served: missing, truncated, not a GGUF, too big, of an unknown kind."""

    code = "MODEL_UNLOADABLE"
    sentence = "{path}: {reason}"

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(path=path, reason=reason)
        self.path = path
        self.reason = reason


class AdapterUnloadable(EngineError):
    """The file can't be used: missing, truncated, no LoRA adapter, not for this model, too big."""

    code = "ADAPTER_UNLOADABLE"
    sentence = "{path}: {reason}"

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(path=path, reason=reason)
        self.path = path
        self.reason = reason


class ModelNotReady(EngineError):
    """The model is served here and is loading or being restarted."""

    code = "MODEL_NOT_READY"
    retryable = True
    sentence = "the model '{model}' is {state}; try again in {retry_after_s:.1f} s"

    def __init__(self, *, model: str, state: str, retry_after_s: float) -> None:
        super().__init__(model=model, state=state, retry_after_s=retry_after_s)
        self.retry_after_s = retry_after_s


class WorkerLost(EngineError):
    """The worker ended and the request could not be replayed within the configured bounds."""

    code = "WORKER_LOST"
    retryable = True
    sentence = "the worker process ended ({cause}) after {tokens_sent} tokens were sent"

    def __init__(self, *, cause: str, tokens_sent: int) -> None:
        super().__init__(cause=cause, tokens_sent=tokens_sent)


class DecodeFailed(EngineError):
    """The engine could not evaluate this request although it alone was tried."""

    code = "DECODE_FAILED"
    sentence = "the engine failed: {reason}"

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason=reason)
        self.reason = reason


# --- versions from the hub ----------------------------------------------------------------------


class SyncError(ApplianceError):
    """A version can't be learnt of, fetched, believed or put in place."""


class DocumentRefused(SyncError):
    """A document of the hub is out of bounds, of another schema, or contradicts itself."""

    code = "DOCUMENT_REFUSED"
    sentence = "{document}: {field}: {reason}"

    def __init__(self, *, document: str, field: str, reason: str) -> None:
        super().__init__(document=document, field=field, reason=reason)
        self.document = document
        self.field = field
        self.reason = reason


class HubUnreachable(SyncError):
    """No source answers, or not in time; the appliance goes on with what it has."""

    code = "HUB_UNREACHABLE"
    retryable = True
    sentence = "{source}: {reason}"

    def __init__(self, *, source: str, reason: str) -> None:
        super().__init__(source=source, reason=reason)
        self.source = source
        self.reason = reason


class Untrusted(SyncError):
    """What a source says is not signed by those who may say it, or is older than what is known."""

    code = "UNTRUSTED"
    sentence = "{what} is not trusted: {reason}"

    def __init__(self, *, what: str, reason: str) -> None:
        super().__init__(what=what, reason=reason)
        self.what = what
        self.reason = reason


class BlobCorrupt(SyncError):
    """A file is not what its digest says, and no source has the right bytes."""

    code = "BLOB_CORRUPT"
    sentence = "the file sha256:{digest} is corrupt: {reason}"

    def __init__(self, *, digest: str, reason: str) -> None:
        super().__init__(digest=digest, reason=reason)
        self.digest = digest
        self.reason = reason


class DiskFull(SyncError):
    """A file does not fit on the disk beside the floor of free space."""

    code = "DISK_FULL"
    retryable = True
    sentence = "{path}: {needed_bytes} bytes are needed, {free_bytes} may be used"

    def __init__(self, *, path: str, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(path=path, needed_bytes=needed_bytes, free_bytes=free_bytes)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class DiskRefused(SyncError):
    """The disk does not take or give a file: read-only, damaged, or without permission."""

    code = "DISK_REFUSED"
    retryable = True
    sentence = "{path}: {reason}"

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(path=path, reason=reason)
        self.path = path
        self.reason = reason


class ClockUntrusted(SyncError):
    """The clock contradicts what was signed; nothing new is learnt until it is right."""

    code = "CLOCK_UNTRUSTED"
    retryable = True
    sentence = "the clock is not trusted: {reason}"

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason=reason)
        self.reason = reason


class DeploymentRefused(SyncError):
    """What an operator asks of a deployment is not possible in the state it is in."""

    code = "DEPLOYMENT_REFUSED"
    sentence = "{model}: {action}: {reason}"

    def __init__(self, *, model: str, action: str, reason: str) -> None:
        super().__init__(model=model, action=action, reason=reason)
        self.model = model
        self.action = action
        self.reason = reason


class PublishRefused(SyncError):
    """What is to be published, signed or put out is not complete, not allowed or out of bounds."""

    code = "PUBLISH_REFUSED"
    sentence = "{what}: {reason}"

    def __init__(self, *, what: str, reason: str) -> None:
        super().__init__(what=what, reason=reason)
        self.what = what
        self.reason = reason


# --- the house ----------------------------------------------------------------------------------


class StoreError(ApplianceError):
    """A local database can't be opened, migrated or written."""

    code = "STORE"
    sentence = "{database}: {reason}"

    def __init__(self, *, database: str, reason: str) -> None:
        super().__init__(database=database, reason=reason)


class ConfigError(ApplianceError):
    """The configuration is not valid; names the key, the reason and the nearest known key."""

    code = "CONFIG"
    sentence = "{key}: {reason}"

    def __init__(self, *, key: str, reason: str) -> None:
        super().__init__(key=key, reason=reason)
        self.key = key
        self.reason = reason
