"""Tokens, names in certificates, and the bodies of enrolment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance.contract.enrolment import (
    BODY_BYTES_MAX,
    DeviceName,
    Enrolled,
    EnrolRequest,
    RenewRequest,
    decode_body,
    device_name,
    encode_body,
    parse_token,
    renewal_statement,
    token_text,
)
from appliance.contract.fleet import REPORT_BYTES_MAX, Report
from appliance.errors import DocumentRefused

DIGEST = "ab" * 32
SECRET = "s" * 43


def test_a_token_reads_back() -> None:
    assert parse_token(f" {token_text(SECRET, DIGEST)}\n") == (SECRET, DIGEST)


@pytest.mark.parametrize(
    "text",
    ["", "aplt", f"aplt.{DIGEST}", f"other.{DIGEST}.{SECRET}", f"aplt.{DIGEST[1:]}.{SECRET}",
     f"aplt.{DIGEST}.{SECRET[1:]}", f"aplt.{DIGEST}.{SECRET}.x", f"aplt.{DIGEST}.{SECRET[1:]}/"],
)  # fmt: skip
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(DocumentRefused, match="token: text"):
        parse_token(text)


@given(some.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True), some.integers(1, 2**31))
def test_a_device_reads_back_from_its_certificate(device: str, generation: int) -> None:
    name = DeviceName(device=device, generation=generation)
    assert device_name((name.uri,)) == name


@given(some.text())
def test_no_other_uri_is_a_device(text: str) -> None:
    found = device_name((text,))
    assert found is None or found.uri == text


def test_a_certificate_with_two_names_is_nobodys() -> None:
    uri = DeviceName(device="a", generation=1).uri
    assert device_name((uri, uri)) is None
    assert device_name(()) is None
    assert device_name(("urn:appliance:device:a:9999999999",)) is None


def test_bodies_read_back_and_what_is_out_of_bounds_is_refused() -> None:
    bodies = (
        EnrolRequest(secret=SECRET, csr_pem="csr"),
        RenewRequest(certificate_pem="a", csr_pem="b", signature="c"),
        Enrolled(device="a", cohort="b", certificate_pem="c", push_address="d:1"),
    )
    for body in bodies:
        assert decode_body(encode_body(body), type(body)) == body
    for data in (b"", b"{}", b"[" * 100_000, b"\xff", b" " * (BODY_BYTES_MAX + 1)):
        with pytest.raises(DocumentRefused):
            decode_body(data, EnrolRequest)
    with pytest.raises(DocumentRefused, match="csr_pem"):
        EnrolRequest(secret=SECRET, csr_pem="x" * 20_000)
    assert renewal_statement("a") != renewal_statement("b")


@pytest.mark.parametrize(
    ("field", "value"),
    [("outbox", "x"), ("seq", 0), ("utc_ms", -1), ("kind", "a/b"),
     ("body", bytes(REPORT_BYTES_MAX + 1))],
)  # fmt: skip
def test_a_report_out_of_bounds_is_refused(field: str, value: object) -> None:
    fields: dict[str, object] = {
        "outbox": "0" * 32, "seq": 1, "utc_ms": 0, "kind": "state", "body": b"{}",
    }  # fmt: skip
    assert Report(**fields)  # type: ignore[arg-type] # one is replaced below
    with pytest.raises(DocumentRefused, match=field):
        Report(**(fields | {field: value}))  # type: ignore[arg-type] # on purpose
