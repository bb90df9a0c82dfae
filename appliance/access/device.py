"""Hold what this appliance shows a hub: its certificate, its key, and what the hub told it.

What this room does: making a key here, the request for a certificate, keeping what comes back,
TLS towards the hub and nobody else, and the request for a renewal, signed by the key in use.
What it knows: the key never leaves this machine. Key and certificate are one file, so that they
change together, at once; a key that waits for its certificate lies beside it, so that a request
that was cut off is repeated with the same key.
What it never does: talk to a hub (`sync.enrolment`), or trust any other CA than the pinned one.

| file in `device/` | what |
|---|---|
| `device.pem` | the certificate in use and its key, 0600 |
| `next.key` | a key without a certificate yet, 0600 |
| `hub.pem` | the hub's CA |
| `hub.json` | where the hub is, and who it says we are |
"""

from __future__ import annotations

import base64
import hashlib
import ssl
import stat
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.contract.document import Part
from appliance.contract.enrolment import (
    PEM_CHARS_MAX,
    Enrolled,
    RenewRequest,
    decode_body,
    encode_body,
    renewal_statement,
)
from appliance.errors import ConfigError, DocumentRefused, EnrolmentRefused
from appliance.store import write_durably

DIRECTORY = "device"
_DEVICE_FILE, _NEXT_FILE, _CA_FILE, _HUB_FILE = "device.pem", "next.key", "hub.pem", "hub.json"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_RENEW_AT = 2 / 3  # of a certificate's life


class Hub(Part, frozen=True):
    """The hub that this appliance belongs to. `url`: https://HOST:PORT."""

    url: str
    device: str
    cohort: str
    push_address: str = ""


class DeviceIdentity:
    """The certificate in use. `tls` is one context, which a renewal refreshes for new connections.

    hub: where it is and who it says we are. begins_utc_ms, ends_utc_ms: the certificate's life.
    """

    def __init__(self, directory: Path) -> None:
        """Read what lies in `directory`; blocks for small files. See `load`."""
        self._directory = directory
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self.reload()

    @classmethod
    def load(cls, state_dir: Path) -> DeviceIdentity | None:
        """Load the identity of this appliance; None if it is not enrolled.

        Raises:
            ConfigError: a file can't be read, is not what it should be, or others may read the key.
        """
        directory = state_dir / DIRECTORY
        if not (directory / _HUB_FILE).exists():
            return None
        return cls(directory)

    def reload(self) -> None:
        """Read the files again, after a renewal. Raises as `load`."""
        path = self._directory / _DEVICE_FILE
        try:
            if path.stat().st_mode & _OTHERS:
                raise ConfigError(
                    key=str(path), reason="others may read it; run chmod 600 and enrol again"
                )
            self._pem = _read(path)
            self._ca_pem = _read(self._directory / _CA_FILE)
            self.hub = decode_body(_read(self._directory / _HUB_FILE), Hub)
            self.tls.load_verify_locations(cadata=self._ca_pem.decode("ascii"))
            self.tls.load_cert_chain(path)
            certificate = x509.load_pem_x509_certificate(self._pem)
            self._key = _private_key(self._pem)
        except (ssl.SSLError, ValueError, DocumentRefused) as error:
            raise ConfigError(key=str(self._directory), reason=f"is damaged: {error}") from error
        except OSError as error:
            raise ConfigError(key=str(path), reason=error.strerror or str(error)) from error
        self.begins_utc_ms = _utc_ms(certificate.not_valid_before_utc)
        self.ends_utc_ms = _utc_ms(certificate.not_valid_after_utc)

    @property
    def renew_utc_ms(self) -> int:
        """Tell from when on the certificate should be renewed."""
        return self.begins_utc_ms + int((self.ends_utc_ms - self.begins_utc_ms) * _RENEW_AT)

    def pems(self) -> tuple[bytes, bytes, bytes]:
        """Return CA, key and certificate, for a transport that wants them as bytes."""
        certificate = self._pem[self._pem.index(b"-----BEGIN CERTIFICATE") :]
        return self._ca_pem, _key_pem(self._key), certificate

    def renewal(self) -> RenewRequest:
        """Compose the request for the next certificate, for a new key; blocks for a small file."""
        csr_pem = request(self._directory, self.hub.device)
        signature = self._key.sign(renewal_statement(csr_pem), ec.ECDSA(hashes.SHA256()))
        certificate = self.pems()[2].decode("ascii")
        return RenewRequest(
            certificate_pem=certificate,
            csr_pem=csr_pem,
            signature=base64.b64encode(signature).decode("ascii"),
        )

    def renewed(self, enrolled: Enrolled) -> None:
        """Keep the next certificate, and use it from now on; blocks. Raises as `adopt`."""
        ca_pem = self._ca_pem.decode("ascii")
        adopt(self._directory, self.hub.url, enrolled, ca_pem)
        self.reload()


def device_directory(state_dir: Path) -> Path:
    """Make the directory of the identity if there is none, and name it.

    Raises:
        ConfigError: it can't be made.
    """
    directory = state_dir / DIRECTORY
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(key=str(directory), reason=error.strerror or str(error)) from error
    return directory


def request(directory: Path, common: str) -> str:
    """Make a key, unless one waits already, and the request for its certificate, as PEM.

    Raises:
        ConfigError: the key can't be written or read.
    """
    path = directory / _NEXT_FILE
    try:
        if not path.exists():
            write_durably(path, _key_pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
        key = _private_key(_read(path))
    except OSError as error:
        raise ConfigError(key=str(path), reason=error.strerror or str(error)) from error
    except ValueError as error:
        raise ConfigError(key=str(path), reason="is no key; remove it") from error
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")


def adopt(directory: Path, url: str, enrolled: Enrolled, ca_pem: str) -> None:
    """Keep a certificate for the key that waits, and what the hub said; blocks for some fsyncs.

    `hub.json` comes last: an appliance is enrolled once it is there.

    Raises:
        EnrolmentRefused: the certificate is none, or not for the key that waits.
        ConfigError: a file can't be written.
    """
    waiting = directory / _NEXT_FILE
    try:
        key = _private_key(_read(waiting))
        certificate = x509.load_pem_x509_certificate(enrolled.certificate_pem.encode())
        if certificate.public_key() != key.public_key():
            raise EnrolmentRefused(reason="it certified another key than ours")
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        hub = Hub(
            url=url,
            device=enrolled.device,
            cohort=enrolled.cohort,
            push_address=enrolled.push_address,
        )
        write_durably(directory / _DEVICE_FILE, _key_pem(key) + pem, mode=0o600)
        write_durably(directory / _CA_FILE, ca_pem.encode("ascii"), mode=0o644)
        write_durably(directory / _HUB_FILE, encode_body(hub), mode=0o644)
        waiting.unlink()
    except ValueError as error:
        raise EnrolmentRefused(reason="what it sent is not a certificate") from error
    except OSError as error:
        raise ConfigError(key=str(directory), reason=error.strerror or str(error)) from error


def pinned(ca_pem: bytes, ca_sha256: str) -> str:
    """Check a CA certificate against the digest that a token carries, and give it back.

    Raises:
        EnrolmentRefused: it is another one.
    """
    try:
        certificate = x509.load_pem_x509_certificate(ca_pem[:PEM_CHARS_MAX])
    except ValueError as error:
        raise EnrolmentRefused(reason="what it calls its CA is not a certificate") from error
    der = certificate.public_bytes(serialization.Encoding.DER)
    if hashlib.sha256(der).hexdigest() != ca_sha256:
        raise EnrolmentRefused(reason="its CA is not the one that the token names")
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2 * PEM_CHARS_MAX)


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a P-256 key")  # noqa: TRY004 - as of a key that can't be read
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _utc_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
