"""Keep the hub's own certificate fresh while it listens.

What this room does: one key and certificate for all listeners, made at the start and again at two
thirds of its life; TLS for HTTPS, where a client's certificate is asked for and may be missing.
What it knows: a context and gRPC's credentials take a new certificate for new connections. Sessions
are not resumed, so that each connection shows its certificate again.
What it never does: decide who may come in; a client without a certificate may enrol, no more.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import ConfigError
from appliance.hub.authority import Authority
from appliance.store import write_durably

SERVER_FILE = "server.pem"
_RENEW_AT = 2 / 3


class ServerCertificate:
    """The certificate in use. `tls`: for HTTPS. `pems`: CA, key and certificate."""

    def __init__(
        self, directory: Path, authority: Authority, names: Sequence[str], life_ms: int
    ) -> None:
        """Prepare; `refresh` makes the first one."""
        self._path = directory / SERVER_FILE
        self._authority = authority
        self._names = tuple(names)
        self._life_ms = life_ms
        self._renew_utc_ms = 0
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self.tls.verify_mode = ssl.CERT_OPTIONAL
        self.tls.load_verify_locations(cadata=authority.certificate_pem)
        self.tls.options |= ssl.OP_NO_TICKET
        self.tls.num_tickets = 0
        self.pems: tuple[bytes, bytes, bytes] = (b"", b"", b"")

    def refresh(self, now_utc_ms: int) -> bool:
        """Make a new certificate if it is time; blocks for a small file. Tells whether it did.

        Raises:
            ConfigError: the file can't be written.
        """
        if now_utc_ms < self._renew_utc_ms:
            return False
        key_pem, pem = self._authority.issue_server(self._names, now_utc_ms, self._life_ms)
        try:
            write_durably(self._path, (key_pem + pem).encode(), mode=0o600)
            self.tls.load_cert_chain(self._path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(key=str(self._path), reason=reason) from error
        self.pems = (self._authority.certificate_pem.encode(), key_pem.encode(), pem.encode())
        self._renew_utc_ms = now_utc_ms + int(self._life_ms * _RENEW_AT)
        return True
