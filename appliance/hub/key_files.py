"""Make and open the files that hold signing keys, and the public halves that are handed around.

What this room does: a new key pair, encrypted with a passphrase where one is given; a signer from
such a file or from the address of a key in hardware; a public key as a small JSON file.
What it knows: PKCS#8 in PEM; securesystemslib's signers and their addresses (`hsm:`, `awskms:` …).
A private key is readable by its owner alone, and a file that is not is refused.
What it never does: choose which key signs what, ask a person, or keep a passphrase.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signer, SSlibKey

from appliance.contract.names import checked
from appliance.errors import PublishRefused
from appliance.store import make_directory, write_durably

KEY_BYTES_MAX = 65_536
PASSPHRASE_CHARS_MIN = 8
PRIVATE_SUFFIX = ".key"
PUBLIC_SUFFIX = ".pub"
ALGORITHMS = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa": CryptoSigner.generate_ecdsa,
    "ml-dsa-65": CryptoSigner.generate_mldsa,
}
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is handed around of a key. `uri`: where hardware holds it; "" is the file beside."""

    owner: str
    keyid: str
    key: dict[str, Any]
    uri: str = ""

    def __post_init__(self) -> None:
        """Refuse an owner that is no name."""
        checked(self.owner, "owner")

    def verifier(self) -> Key:
        """Give the key that checks signatures.

        Raises:
            PublishRefused: it is of no kind that is known here.
        """
        try:
            return Key.from_dict(self.keyid, dict(self.key))
        except (ValueError, KeyError, TypeError) as error:
            raise PublishRefused(what=self.owner, reason=f"its key is no key: {error}") from error


def make(directory: Path, owner: str, *, algorithm: str, passphrase: str) -> PublicKey:
    """Make OWNER.key (0600) and OWNER.pub in `directory`; blocks for some fsyncs.

    `passphrase`: "" leaves the private key in the clear, for a hub that starts by itself.

    Raises:
        PublishRefused: there is such a key already, the passphrase is short, the algorithm is not
            known here, or the files can't be written.
    """
    checked(owner, "owner")
    if passphrase and len(passphrase) < PASSPHRASE_CHARS_MIN:
        reason = f"has fewer than {PASSPHRASE_CHARS_MIN} characters"
        raise PublishRefused(what="passphrase", reason=reason)
    if algorithm not in ALGORITHMS:
        reason = f"{algorithm} is not one of {', '.join(ALGORITHMS)}"
        raise PublishRefused(what="algorithm", reason=reason)
    private = directory / f"{owner}{PRIVATE_SUFFIX}"
    try:
        signer = ALGORITHMS[algorithm]()
        make_directory(directory)
        if private.exists():
            raise PublishRefused(what=str(private), reason="is there already; choose another owner")
        write_durably(private, _encrypted(signer.private_bytes, passphrase), mode=0o600)
        public = _public(owner, signer.public_key)
        write_public(directory / f"{owner}{PUBLIC_SUFFIX}", public)
    except (SigningError, UnsupportedAlgorithm) as error:
        raise PublishRefused(what=algorithm, reason=f"is not possible here: {error}") from error
    except OSError as error:
        raise PublishRefused(what=str(private), reason=error.strerror or str(error)) from error
    return public


def write_public(path: Path, public: PublicKey) -> None:
    """Write a public key; blocks for some fsyncs. An OSError leaves what was there."""
    make_directory(path.parent)
    write_durably(path, msgspec.json.format(msgspec.json.encode(public), indent=2), mode=0o644)


def read_public(path: Path) -> PublicKey:
    """Read a public key; blocks for a small file.

    Raises:
        PublishRefused: it can't be read, or is no public key.
        DocumentRefused: its owner is no name.
    """
    try:
        return msgspec.json.decode(_read(path), type=PublicKey)
    except msgspec.DecodeError as error:
        raise PublishRefused(what=str(path), reason="is not a public key of this tool") from error


def from_hardware(owner: str, uri: str, pem: Path) -> PublicKey:
    """Describe a key that stays where it is, by its address and its public half in PEM.

    Raises:
        PublishRefused: securesystemslib knows no such address, or the file holds no public key.
    """
    if not _is_hardware(uri):
        schemes = ", ".join(one for one in SIGNER_FOR_URI_SCHEME if _is_hardware(f"{one}:"))
        raise PublishRefused(what=uri, reason=f"is no address of a key; known are {schemes}")
    try:
        key = SSlibKey.from_crypto(serialization.load_pem_public_key(_read(pem)))
    except (ValueError, UnsupportedAlgorithm, SigningError) as error:
        raise PublishRefused(what=str(pem), reason="is not a public key in PEM") from error
    return msgspec.structs.replace(_public(owner, key), uri=uri)


def is_encrypted(path: Path) -> bool:
    """Tell whether a private key asks for a passphrase. Raises PublishRefused as `read_public`."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in _read(path)


def open_signer(path: Path, passphrase: str = "") -> Signer:
    """Open a private key, or the hardware that a public key's `uri` names; blocks for a file.

    `path`: OWNER.key, or OWNER.pub of a key in hardware.

    Raises:
        PublishRefused: others may read it, the passphrase is wrong, or it is no such key.
    """
    if path.suffix == PUBLIC_SUFFIX:
        return _hardware_signer(path)
    public = read_public(path.with_suffix(PUBLIC_SUFFIX))
    try:
        if path.stat().st_mode & _OTHERS:
            reason = "others may read it; run chmod 600 and consider it stolen"
            raise PublishRefused(what=str(path), reason=reason)
    except OSError as error:
        raise PublishRefused(what=str(path), reason=error.strerror or str(error)) from error
    data = _read(path)
    encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in data
    if encrypted and not passphrase:
        raise PublishRefused(what=str(path), reason="needs its passphrase")
    password = passphrase.encode() if encrypted else None
    try:
        private = serialization.load_pem_private_key(data, password)
        return CryptoSigner(private, public.verifier())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = "the passphrase is wrong" if encrypted else "is not a private key"
        raise PublishRefused(what=str(path), reason=reason) from error
    except SigningError as error:
        raise PublishRefused(what=str(path), reason=str(error)) from error


def _hardware_signer(path: Path) -> Signer:
    public = read_public(path)
    if not _is_hardware(public.uri):
        reason = "names no key in hardware; give the private key's file"
        raise PublishRefused(what=str(path), reason=reason)
    try:
        return Signer.from_priv_key_uri(public.uri, public.verifier())
    except (SigningError, ValueError, OSError) as error:
        raise PublishRefused(what=public.uri, reason=str(error)) from error


def _is_hardware(uri: str) -> bool:
    scheme = uri.partition(":")[0]
    return scheme in SIGNER_FOR_URI_SCHEME and not scheme.startswith("file")


def _public(owner: str, key: Key) -> PublicKey:
    return PublicKey(owner=owner, keyid=key.keyid, key=key.to_dict())


def _encrypted(pem: bytes, passphrase: str) -> bytes:
    if not passphrase:
        return pem
    key = serialization.load_pem_private_key(pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(KEY_BYTES_MAX + 1)
    except OSError as error:
        raise PublishRefused(what=str(path), reason=error.strerror or str(error)) from error
    if len(data) > KEY_BYTES_MAX:
        raise PublishRefused(what=str(path), reason=f"is larger than {KEY_BYTES_MAX} bytes")
    return data
