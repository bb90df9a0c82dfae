"""Hold the hub's own certificate authority: who is the hub, and who is one of its appliances.

What this room does: making the CA at the first start, loading it afterwards; certificates for
devices from their requests, and for the hub's own listeners; checking who asks for a renewal.
What it knows: the only importer of cryptography in the hub. All keys are P-256: gRPC's TLS takes no
Ed25519. Certificates begin a while before they are made, for clocks that are behind.
What it never does: know a token, an inventory or a role of TUF. A stolen CA key lets a stranger
read what is published; it signs no version.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import ipaddress
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.contract.enrolment import (
    DeviceName,
    RenewRequest,
    device_name,
    renewal_statement,
)
from appliance.errors import ConfigError, EnrolmentRefused
from appliance.store import write_durably

CA_KEY_FILE = "ca.key"
CA_FILE = "ca.pem"
PEM_BYTES_MAX = 16 * 1024
CA_DAYS = 3650
BACKDATED = timedelta(hours=1)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_DAY_MS = 86_400_000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a certificate whose signature holds. `key_sha256`: of its public key, hex."""

    key_sha256: str
    public_key: ec.EllipticCurvePublicKey


class Authority:
    """The CA. `fingerprint`: SHA-256 of its certificate, hex. `certificate_pem`: public."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Keep both; see `open`."""
        self._key = key
        self._certificate = certificate
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.fingerprint = certificate.fingerprint(hashes.SHA256()).hex()

    @classmethod
    def open(cls, directory: Path, now_utc_ms: int) -> Authority:
        """Load the CA, or make it if there is none; blocks for two small files.

        Raises:
            ConfigError: a file can't be read or made, others may read the key, or it is none.
        """
        key_path, path = directory / CA_KEY_FILE, directory / CA_FILE
        try:
            with _held(directory):
                if not path.exists():
                    _found(key_path, path, now_utc_ms)
            if key_path.stat().st_mode & _OTHERS:
                raise ConfigError(
                    key=str(key_path),
                    reason="others may read it; run chmod 600 and consider it stolen",
                )
            key_pem, pem = _read(key_path), _read(path)
        except OSError as error:
            raise ConfigError(key=str(directory), reason=error.strerror or str(error)) from error
        return cls(_private_key(key_path, key_pem), _certificate(path, pem))

    def issue_device(
        self, request: Request, name: DeviceName, now_utc_ms: int, life_ms: int
    ) -> tuple[str, int]:
        """Certify that the key of `request` is this device's; returns PEM and its end (UTC ms)."""
        ends = _moment(now_utc_ms + life_ms)
        certificate = (
            self._builder(name.device, request.public_key, now_utc_ms, ends)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name.uri)]),
                critical=False,
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate), int(ends.timestamp() * 1000)

    def issue_server(self, names: Sequence[str], now_utc_ms: int, life_ms: int) -> tuple[str, str]:
        """Make a key and a certificate for the hub's listeners; returns both as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        ends = _moment(now_utc_ms + life_ms)
        certificate = (
            self._builder(names[0], key.public_key(), now_utc_ms, ends)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]),
                critical=False,
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _private_pem(key).decode(), _pem(certificate)

    def renewing(self, asked: RenewRequest, now_utc_ms: int, grace_ms: int) -> DeviceName:
        """Tell which device asks, by its certificate and the signature of that one's key.

        Raises:
            EnrolmentRefused: not ours, over for longer than `grace_ms`, or not signed by its key.
        """
        try:
            certificate = x509.load_pem_x509_certificate(asked.certificate_pem.encode())
            certificate.verify_directly_issued_by(self._certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
            key = certificate.public_key()
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
            raise EnrolmentRefused(reason="the certificate is not of this hub") from error
        name = device_name(tuple(uris))
        if name is None or not isinstance(key, ec.EllipticCurvePublicKey):
            raise EnrolmentRefused(reason="the certificate is not an appliance's")
        if _moment(now_utc_ms - grace_ms) > certificate.not_valid_after_utc:
            raise EnrolmentRefused(
                reason=f"the certificate ended {certificate.not_valid_after_utc:%Y-%m-%d}, which"
                f" is more than {grace_ms / _DAY_MS:g} days ago; enrol again with a new token"
            )
        try:
            signature = base64.b64decode(asked.signature, validate=True)
            key.verify(signature, renewal_statement(asked.csr_pem), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, binascii.Error) as error:
            raise EnrolmentRefused(reason="the old key did not sign this renewal") from error
        return name

    def _builder(
        self, common: str, key: ec.EllipticCurvePublicKey, now_utc_ms: int, ends: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_moment(now_utc_ms) - BACKDATED)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )


def read_request(csr_pem: str) -> Request:
    """Read a request for a certificate; only its key is taken from it, no name.

    Raises:
        EnrolmentRefused: it is none, its key is not P-256, or that key did not sign it.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        signed = csr.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EnrolmentRefused(reason="the request for a certificate can't be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise EnrolmentRefused(reason="the key must be of the curve P-256")
    if not signed:
        raise EnrolmentRefused(reason="the request is not signed by its own key")
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Request(key_sha256=hashlib.sha256(der).hexdigest(), public_key=key)


def _found(key_path: Path, path: Path, now_utc_ms: int) -> None:
    """Make the CA: the key first, so that a certificate on disk always has one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("appliance hub")
    begins = _moment(now_utc_ms) - timedelta(days=1)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_durably(key_path, _private_pem(key), mode=0o600)
    write_durably(path, _pem(certificate).encode(), mode=0o644)


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold a directory, so that two processes that start at once make one CA."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(PEM_BYTES_MAX)


def _private_key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(key=str(path), reason="is not a private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(key=str(path), reason="is not a P-256 key")
    return key


def _certificate(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(key=str(path), reason="is not a certificate") from error


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name)


def _moment(utc_ms: int) -> datetime:
    return datetime.fromtimestamp(utc_ms / 1000, tz=UTC)
