"""Say how an appliance and a hub come to know each other: tokens, names in certificates, requests.

What this room does: the text of a one-time token, the name of a device in its certificate, and the
bodies that enrolment and renewal send and answer.
What it knows: a token carries the digest of the hub's CA certificate, so that nothing is trusted on
first use. A name in a certificate carries its generation: enrolling again makes older ones void.
What it never does: make a key, check a signature, or decide whether a token is still good.

| path | who may ask | body → answer |
|---|---|---|
| `/ca.pem` | anybody | the CA's certificate; public, checked by its digest |
| `/enrol` | who has a token | `EnrolRequest` → `Enrolled` |
| `/renew` | who has a certificate and its key, expired or not | `RenewRequest` → `Enrolled` |
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from appliance.contract.document import DIGEST, Part, check
from appliance.contract.names import NAME, checked
from appliance.errors import DocumentRefused

BODY_BYTES_MAX = 64 * 1024
PEM_CHARS_MAX = 16 * 1024
CA_PATH = "/ca.pem"
ENROL_PATH = "/enrol"
RENEW_PATH = "/renew"
GENERATION_MAX = 2**31

_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_PREFIX = "aplt"
_DOCUMENT = "token"
_URI = re.compile(rf"urn:appliance:device:({NAME.pattern}):([1-9][0-9]{{0,9}})")
_RENEWAL_PURPOSE = b"appliance certificate renewal 1\n"


class DeviceName(Part, frozen=True):
    """Who a certificate is for: the device, and how many times it has been enrolled."""

    device: str
    generation: int

    def __post_init__(self) -> None:
        """Refuse what is no name."""
        checked(self.device, "device")
        check(
            ok=1 <= self.generation <= GENERATION_MAX,
            document="certificate",
            field="generation",
            reason=f"must be from 1 to {GENERATION_MAX}",
        )

    @property
    def uri(self) -> str:
        """Write it as the one URI of the certificate's subjectAltName."""
        return f"urn:appliance:device:{self.device}:{self.generation}"


class EnrolRequest(Part, frozen=True):
    """The secret of a token, and a request for a certificate that the device's own key signed."""

    secret: str
    csr_pem: str

    def __post_init__(self) -> None:
        """Refuse what is too long to be read."""
        _check_pem("csr_pem", self.csr_pem)


class RenewRequest(Part, frozen=True):
    """The certificate in use, a request for its successor, and the old key's signature over that.

    `signature`: base64, over `renewal_statement`. Who replays it gets a certificate for a key that
    only the device has.
    """

    certificate_pem: str
    csr_pem: str
    signature: str

    def __post_init__(self) -> None:
        """Refuse what is too long to be read."""
        _check_pem("certificate_pem", self.certificate_pem)
        _check_pem("csr_pem", self.csr_pem)
        _check_pem("signature", self.signature)


class Enrolled(Part, frozen=True):
    """A certificate, and what the device must know: its name, its cohort, where hints come from.

    `push_address`: HOST:PORT; empty where the hub sends no hints.
    """

    device: str
    cohort: str
    certificate_pem: str
    push_address: str = ""

    def __post_init__(self) -> None:
        """Refuse names that are none."""
        checked(self.device, "device")
        checked(self.cohort, "cohort")
        _check_pem("certificate_pem", self.certificate_pem)


_PartT = TypeVar("_PartT", bound=Part)


def token_text(secret: str, ca_sha256: str) -> str:
    """Write a token as an operator carries it to the device."""
    return f"{_PREFIX}.{ca_sha256}.{secret}"


def parse_token(text: str) -> tuple[str, str]:
    """Cut a token into its secret and the digest of the hub's CA certificate.

    Raises:
        DocumentRefused: it is none; the text is not repeated, for it may be a secret.
    """
    prefix, _, rest = text.strip().partition(".")
    ca_sha256, _, secret = rest.partition(".")
    check(
        ok=prefix == _PREFIX
        and DIGEST.fullmatch(ca_sha256) is not None
        and _SECRET.fullmatch(secret) is not None,
        document=_DOCUMENT,
        field="text",
        reason=f"must be {_PREFIX}.DIGEST.SECRET, as the hub printed it",
    )
    return secret, ca_sha256


def device_name(uris: tuple[str, ...]) -> DeviceName | None:
    """Find the device in the URIs of a certificate; None if there is not exactly one."""
    found = [match for uri in uris if (match := _URI.fullmatch(uri))]
    if len(uris) != 1 or len(found) != 1 or int(found[0][2]) > GENERATION_MAX:
        return None
    return DeviceName(device=found[0][1], generation=int(found[0][2]))


def renewal_statement(csr_pem: str) -> bytes:
    """Compose what the old key signs."""
    return _RENEWAL_PURPOSE + csr_pem.encode()


def encode_body(body: Part) -> bytes:
    """Write a body as JSON."""
    return msgspec.json.encode(body)


def decode_body(data: bytes, kind: type[_PartT]) -> _PartT:
    """Read a body.

    Raises:
        DocumentRefused: it is too large, no such body, or out of bounds.
    """
    name = kind.__name__
    check(
        ok=len(data) <= BODY_BYTES_MAX,
        document=name,
        field="length",
        reason=f"is over {BODY_BYTES_MAX} bytes",
    )
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentRefused(document=name, field="", reason=str(error)) from error


def _check_pem(field: str, text: str) -> None:
    check(
        ok=0 < len(text) <= PEM_CHARS_MAX,
        document="enrolment",
        field=field,
        reason=f"must have 1 to {PEM_CHARS_MAX} characters",
    )
