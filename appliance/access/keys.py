"""Know the clients that have an API key, and name everybody else by where they came in.

What this room does: a new key and its digest; who a request comes from, by the key it shows or else
by its listener and the user it names.
What it knows: `config.Client`: the SHA-256 of each key, never a key. Keys have 256 random bits, so
a plain digest is enough. Every configured digest is compared, each in constant time.
What it never does: store, log or show a key it was given; decide what a client may do (`policy`).

| shown                  | no client configured | clients configured                            |
|------------------------|----------------------|-----------------------------------------------|
| no key                 | anonymous            | anonymous; over TCP refused if key is required |
| a configured key       |                      | that client                                   |
| anything else          | anonymous            | refused                                       |

OpenAI's clients always send a key, which is why one means nothing where none is configured.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from appliance import domain
from appliance.config import Access, Client
from appliance.domain import ClientKind
from appliance.errors import InvalidRequest, Unauthenticated

KEY_CHARS_MAX = 256
USER_CHARS_MAX = 128
_KEY_BYTES = 32
_PREFIX = "apl-"
_SCHEME = "bearer"
_USER = re.compile(rf"[A-Za-z0-9._:@+=|-]{{1,{USER_CHARS_MAX}}}")
_PRIORITIES = {priority.value: priority for priority in domain.Priority}
ANONYMOUS = {ClientKind.LOCAL_SOCKET: "local", ClientKind.LOOPBACK: "loopback"}


def new_key() -> tuple[str, str]:
    """Make a key that nobody can guess; returns it and the digest to configure."""
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, digest_of(key)


def digest_of(key: str) -> str:
    """Compute the digest under which a key is configured."""
    return hashlib.sha256(key.encode()).hexdigest()


def anonymous(listener: ClientKind, user: str = "") -> domain.Client:
    """Name a client without a key; `user` tells programs behind one listener apart.

    Raises:
        InvalidRequest: `user` is too long or has characters that can't stand in an id.
    """
    base = ANONYMOUS[listener]
    if not user:
        return domain.Client(id=base, kind=listener)
    if not _USER.fullmatch(user):
        reason = f"must be 1 to {USER_CHARS_MAX} letters, digits or characters of ._:@+=|-"
        raise InvalidRequest(field="user", reason=reason)
    return domain.Client(id=f"{base}/{user}", kind=listener)


class Keyring:
    """The configured clients."""

    def __init__(self, settings: Access, clients: tuple[Client, ...]) -> None:
        """Know these clients, by the digests of their keys."""
        self._key_required = settings.require_key
        self._clients = tuple(
            (
                client.key_sha256.encode(),
                domain.Client(
                    id=client.name,
                    kind=ClientKind.API_KEY,
                    weight=client.weight,
                    priority_max=_PRIORITIES[client.priority_max],
                ),
            )
            for client in clients
        )

    def identify(self, listener: ClientKind, authorization: str, user: str) -> domain.Client:
        """Say who asks; does not block. `authorization`: "Bearer KEY", or "" where there is none.

        Raises:
            Unauthenticated: the key is none of ours, or there is none and one is needed.
            InvalidRequest: `user` is too long or has characters that can't stand in an id.
        """
        named = anonymous(listener, user)
        if not self._clients:
            return named
        if not authorization:
            if self._key_required and listener is ClientKind.LOOPBACK:
                raise Unauthenticated
            return named
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != _SCHEME or len(key) > KEY_CHARS_MAX:
            raise Unauthenticated
        return self._holder(key.strip(), user)

    def _holder(self, key: str, user: str) -> domain.Client:
        shown = hashlib.sha256(key.encode(errors="replace")).hexdigest().encode()
        found: domain.Client | None = None
        for digest, client in self._clients:  # all of them: how long it takes tells nothing
            if hmac.compare_digest(digest, shown):
                found = client
        if found is None:
            raise Unauthenticated
        return domain.Client(
            id=found.id,
            kind=found.kind,
            weight=found.weight,
            priority_max=found.priority_max,
            user=user,
        )
