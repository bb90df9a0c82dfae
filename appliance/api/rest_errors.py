"""Say every error of the house in HTTP's and OpenAI's words, by one table.

What this room does: the table error class → status, OpenAI's type and code; the body and headers
of an error; the same for what HTTP itself refuses (routes, methods, broken requests).
What it knows: `errors`; that OpenAI's clients look at the status, at `code`, at Retry-After and at
x-should-retry.
What it never does: I/O, or invent a message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from appliance import errors
from appliance.api.openai_answers import error_object
from appliance.domain import JsonObject
from appliance.errors import ApplianceError

INVALID = "invalid_request_error"
PERMISSION = "permission_error"
SERVER = "server_error"
LIMIT = "rate_limit_error"


@dataclass(frozen=True, slots=True)
class HttpError:
    """One row. An empty code means our own stable one."""

    status: int
    kind: str
    code: str = ""


HTTP_STATUS: dict[type[ApplianceError], HttpError] = {
    errors.InvalidRequest: HttpError(400, INVALID),
    errors.ModelNotServed: HttpError(404, INVALID, "model_not_found"),
    errors.AdapterNotLoaded: HttpError(404, INVALID, "adapter_not_loaded"),
    errors.ContextTooLong: HttpError(400, INVALID, "context_length_exceeded"),
    errors.BodyTooLarge: HttpError(413, INVALID),
    errors.SchemaUnsupported: HttpError(400, INVALID),
    errors.RequestUnsafe: HttpError(422, INVALID),
    errors.RequestCancelled: HttpError(499, INVALID),
    errors.StreamNotHeld: HttpError(404, INVALID),
    errors.StreamGone: HttpError(410, INVALID),
    errors.StreamTaken: HttpError(409, INVALID),
    errors.Unauthenticated: HttpError(401, "authentication_error", "invalid_api_key"),
    errors.PermissionDenied: HttpError(403, PERMISSION),
    errors.HostNotAllowed: HttpError(403, PERMISSION),
    errors.EnrolmentRefused: HttpError(403, PERMISSION),
    errors.QueueFull: HttpError(429, LIMIT),
    errors.DeadlineExceeded: HttpError(504, SERVER),
    errors.Draining: HttpError(503, SERVER),
    errors.TooManyAdapters: HttpError(409, LIMIT),
    errors.ClientTooSlow: HttpError(429, LIMIT),
    errors.ModelUnloadable: HttpError(503, SERVER),
    errors.AdapterUnloadable: HttpError(400, INVALID),
    errors.ModelNotReady: HttpError(503, SERVER),
    errors.WorkerLost: HttpError(503, SERVER),
    errors.DecodeFailed: HttpError(500, SERVER),
    errors.DocumentRefused: HttpError(409, INVALID),
    errors.HubUnreachable: HttpError(503, SERVER),
    errors.Untrusted: HttpError(409, INVALID),
    errors.BlobCorrupt: HttpError(500, SERVER),
    errors.DiskFull: HttpError(507, SERVER),
    errors.DiskRefused: HttpError(500, SERVER),
    errors.ClockUntrusted: HttpError(409, SERVER),
    errors.DeploymentRefused: HttpError(409, INVALID),
    errors.PublishRefused: HttpError(409, INVALID),
    errors.StoreError: HttpError(500, SERVER),
    errors.ConfigError: HttpError(500, SERVER),
}


def status_of(error: ApplianceError) -> int:
    """Name the HTTP status of an error."""
    return HTTP_STATUS[type(error)].status


def body_of(error: ApplianceError) -> JsonObject:
    """Write the error object; `param` is the field it is about, if there is one."""
    row = HTTP_STATUS[type(error)]
    field = error.fields.get("field")
    if isinstance(error, errors.ModelNotServed):
        field = "model"
    if isinstance(error, errors.AdapterNotLoaded):
        field = "adapter"
    param = None if field is None else str(field)
    return error_object(
        message=error.message, kind=row.kind, code=row.code or error.code, param=param
    )


def headers_of(error: ApplianceError) -> dict[str, str]:
    """Tell clients whether and when to try again; one that names a time is worth trying."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    retry_after_s = error.fields.get("retry_after_s")
    if isinstance(retry_after_s, (int, float)):
        headers["x-should-retry"] = "true"
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return headers


def http_refusal(message: str, code: str) -> JsonObject:
    """Write the error object of what HTTP itself refuses."""
    return error_object(message=message, kind=INVALID, code=code, param=None)


def bug_body() -> JsonObject:
    """Write the error object of a bug of ours; what it was stands in the log, not here."""
    message = "the appliance failed; its log says why"
    return error_object(message=message, kind=SERVER, code="INTERNAL", param=None)
