"""Hold the device's own key, and sign and check statements about local versions with it.

What this room does: making the Ed25519 key `local` at the first run, loading it afterwards, and
signing what an operator vouches for: that a file is this version of this model, or this LoRA
adapter of it.
What it knows: the only importer of cryptography here. A statement is canonical JSON with sorted
keys, prefixed by its purpose, so that a signature can't be shown for something else.
What it never does: leave the key readable by others, or sign bytes it did not compose itself.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import stat
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.domain import AdapterVersion, Digest, ModelVersion, Origin
from appliance.errors import ConfigError
from appliance.store import write_durably

KEY_FILE = "local.key"
KEY_BYTES_MAX = 4096
_PURPOSE = b"appliance local version 1\n"
_ADAPTER_PURPOSE = b"appliance local adapter 1\n"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Identity:
    """The device's key. `key_id`: "local:" and 16 hex digits of the public key's digest."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Keep the key; see `open`."""
        self._private = key
        self._public = key.public_key()
        raw = self._public.public_bytes_raw()
        self.key_id = f"local:{hashlib.sha256(raw).hexdigest()[:16]}"

    @classmethod
    def open(cls, state_dir: Path) -> Identity:
        """Load the key, or make it if there is none; blocks for a small file.

        Raises:
            ConfigError: the file can't be read or made, others may read it, or it is no such key.
        """
        path = state_dir / KEY_FILE
        try:
            if not path.exists():
                write_durably(path, _fresh_key(), mode=0o600)
            if path.stat().st_mode & _OTHERS:
                raise ConfigError(
                    key=str(path), reason="others may read it; run chmod 600 and consider it stolen"
                )
            with path.open("rb") as file:
                pem = file.read(KEY_BYTES_MAX)
        except OSError as error:
            raise ConfigError(key=str(path), reason=error.strerror or str(error)) from error
        return cls(_parsed(path, pem))

    def sign_local(self, model: str, version: str, digest: Digest, blob_bytes: int) -> ModelVersion:
        """Vouch that the blob `digest` is `version` of `model`; does not block."""
        unsigned = ModelVersion(
            model=model,
            version=version,
            digest=digest,
            blob_bytes=blob_bytes,
            origin=Origin.LOCAL,
            key_id=self.key_id,
            signature="",
        )
        signature = base64.b64encode(self._private.sign(_statement(unsigned))).decode()
        return msgspec.structs.replace(unsigned, signature=signature)

    def sign_adapter(
        self, model: str, name: str, digest: Digest, blob_bytes: int, scale: float
    ) -> AdapterVersion:
        """Vouch that the blob `digest` is the adapter `name` of `model`, a label, at this scale."""
        unsigned = AdapterVersion(
            model=model,
            name=name,
            digest=digest,
            blob_bytes=blob_bytes,
            scale=scale,
            origin=Origin.LOCAL,
            key_id=self.key_id,
            signature="",
        )
        signature = base64.b64encode(self._private.sign(_statement(unsigned))).decode()
        return msgspec.structs.replace(unsigned, signature=signature)

    def verify(self, version: ModelVersion | AdapterVersion) -> bool:
        """Tell whether this device's key signed exactly this version; does not block."""
        if version.origin is not Origin.LOCAL or version.key_id != self.key_id:
            return False
        with contextlib.suppress(InvalidSignature, binascii.Error):
            signature = base64.b64decode(version.signature, validate=True)
            self._public.verify(signature, _statement(version))
            return True
        return False


def _statement(version: ModelVersion | AdapterVersion) -> bytes:
    fields: dict[str, object] = {
        "bytes": version.blob_bytes,
        "digest": version.digest,
        "model": version.model,
    }
    if isinstance(version, AdapterVersion):
        purpose = _ADAPTER_PURPOSE
        fields |= {"adapter": version.name, "scale": version.scale}
    else:
        purpose = _PURPOSE
        fields |= {"version": version.version}
    return purpose + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _fresh_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _parsed(path: Path, pem: bytes) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(key=str(path), reason="is not a private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(key=str(path), reason="is not an Ed25519 key")
    return key
