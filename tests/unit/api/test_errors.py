"""Every error of the house has a word in each transport."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from appliance.api.grpc_errors import GRPC_STATUS, internal_status, status_of
from appliance.api.rest_errors import HTTP_STATUS, body_of, bug_body, headers_of
from appliance.errors import (
    ApplianceError,
    DeadlineExceeded,
    FieldValue,
    InvalidRequest,
    ModelNotServed,
    QueueFull,
    WorkerLost,
    concrete_classes,
    from_wire,
)

FIELDS: dict[str, FieldValue] = {
    "action": "x",
    "digest": "x",
    "document": "x",
    "free_bytes": 1,
    "needed_bytes": 2,
    "source": "x",
    "what": "x",
    "adapter": "x",
    "bound": "x",
    "cause": "x",
    "client": "x",
    "database": "x",
    "field": "x",
    "first_seq": 3,
    "from_seq": 2,
    "header": "x",
    "key": "x",
    "last_seq": 4,
    "limit": 1,
    "limit_bytes": 1,
    "limit_events": 1,
    "limit_tokens": 1,
    "loaded": "x",
    "model": "x",
    "object": "x",
    "path": "x",
    "phase": "x",
    "prompt_tokens": 1,
    "reason": "x",
    "request_id": "x",
    "retry_after_s": 1.5,
    "state": "x",
    "tokens_sent": 1,
    "value": "x",
    "verb": "x",
    "worker_losses": 2,
}


def _make(cls: type[ApplianceError]) -> ApplianceError:
    names = cls.__init__.__code__.co_varnames[1 : 1 + cls.__init__.__code__.co_kwonlyargcount]
    return cls(**{name: FIELDS[name] for name in names})


def _details(error: ApplianceError) -> status_pb2.Status:
    ((_, value),) = status_of(error).trailing_metadata
    assert isinstance(value, bytes)
    return status_pb2.Status.FromString(value)


def test_both_tables_hold_exactly_the_concrete_classes() -> None:
    assert set(GRPC_STATUS) == set(concrete_classes())
    assert set(HTTP_STATUS) == set(concrete_classes())


@pytest.mark.parametrize("cls", concrete_classes())
def test_every_error_becomes_a_status_and_a_body(cls: type[ApplianceError]) -> None:
    error = _make(cls)
    status = _details(error)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (cls.code, "appliance")
    assert set(info.metadata) == set(error.fields)
    assert status.message == body_of(error)["error"]["message"] == error.message
    assert status.code == GRPC_STATUS[cls].value[0]
    worth_it = cls.retryable or "retry_after_s" in error.fields
    assert headers_of(error)["x-should-retry"] == str(worth_it).lower()


@pytest.mark.parametrize(
    "error",
    [
        QueueFull(bound="queue_requests", limit=4, retry_after_s=1.5),
        DeadlineExceeded(phase="queue", retry_after_s=1.5),
    ],
)
def test_a_retry_is_timed_in_both_words(error: ApplianceError) -> None:
    retry = error_details_pb2.RetryInfo()
    assert _details(error).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert headers_of(error)["Retry-After"] == "2"
    assert headers_of(error)["x-should-retry"] == "true"
    assert error.message.endswith("; try again in 1.5 s")
    assert from_wire(error.code, error.fields).message == error.message


def test_a_deadline_that_has_passed_names_no_time_to_come_back() -> None:
    error = DeadlineExceeded(phase="generation")
    assert len(_details(error).details) == 1
    assert headers_of(error) == {"x-should-retry": "false"}
    assert error.message == "the deadline passed during generation"


def test_a_wrong_field_is_named_in_both_words() -> None:
    error = InvalidRequest(field="n", reason="is too large")
    bad = error_details_pb2.BadRequest()
    assert _details(error).details[1].Unpack(bad)
    assert (bad.field_violations[0].field, bad.field_violations[0].description) == (
        "n",
        "is too large",
    )
    assert body_of(error)["error"]["param"] == "n"


def test_a_missing_model_is_a_resource() -> None:
    resource = error_details_pb2.ResourceInfo()
    assert _details(ModelNotServed(model="x")).details[1].Unpack(resource)
    assert resource.resource_name == "x"


def test_a_lost_worker_is_one_retryable_abort() -> None:
    assert GRPC_STATUS[WorkerLost] is grpc.StatusCode.ABORTED
    assert WorkerLost.retryable


def test_a_long_field_does_not_burst_the_trailers() -> None:
    status = _details(InvalidRequest(field="x" * 10_000, reason=""))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert len(info.metadata["field"]) == 256


def test_a_long_name_does_not_burst_the_trailers() -> None:
    error = ModelNotServed(model="\N{GRINNING FACE}" * 20_000)
    status = status_of(error)
    ((_, value),) = status.trailing_metadata
    percent_encoded = 3 * len(status.details.encode())
    assert percent_encoded + 4 * len(value) / 3 < 8192  # gRPC's own default for trailers
    assert _details(error).message == status.details


def test_a_bug_of_ours_says_nothing_of_itself() -> None:
    assert internal_status().code is grpc.StatusCode.INTERNAL
    assert bug_body()["error"]["code"] == "INTERNAL"
