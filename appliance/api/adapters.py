"""Load, list and unload LoRA adapters on somebody's word: the use case behind gRPC and REST.

What this room does: authorise, check the names, find out where the file lies, have it checked and
signed, have the model's worker load it, and record who did it.
What it knows: a path from a client is opened by the daemon. So only an operator, over the Unix
socket, may name any file; everybody else only what lies in server.adapter_dir, which is empty
unless an operator sets it. Links are followed before that is judged.
What it never does: read a file itself, or keep an adapter across a restart of the daemon: those
belong in the configuration.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Protocol

from appliance.access.audit import Audit
from appliance.access.policy import Verb, authorise
from appliance.api.model_names import find
from appliance.config import Adapter
from appliance.domain import AdapterStatus, Client, ModelStatus, ModelVersion
from appliance.errors import ApplianceError, InvalidRequest, PermissionDenied
from appliance.observe.metrics import Metrics
from appliance.runtime.adapters import AdapterFile
from appliance.runtime.router import Router

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PATH_CHARS_MAX = 4096
_SCALE_MAX = 16.0


class Signer(Protocol):
    """Check and sign the file of an adapter. Supplied by `local_versions`."""

    async def register_adapter(
        self, model: ModelVersion, model_path: Path, settings: Adapter
    ) -> AdapterFile:
        """Sign a file as an adapter of a model, whose own file lies at `model_path`.

        Raises:
            AdapterUnloadable: it can't be one.
        """
        ...


class AdapterService:
    """What both faces call for adapters. All methods belong to the event loop's thread."""

    def __init__(
        self, router: Router, signer: Signer, audit: Audit, metrics: Metrics, adapter_dir: str
    ) -> None:
        """Load for what `router` serves. `adapter_dir` "": there is no shelf."""
        self._router = router
        self._signer = signer
        self._audit = audit
        self._metrics = metrics
        self._adapter_dir = adapter_dir
        self._loading = asyncio.Lock()  # one file is read at a time

    async def load(
        self, client: Client, model: str, settings: Adapter, *, base: Path | None = None
    ) -> AdapterStatus:
        """Load an adapter; return when requests may name it. Idempotent.

        A relative path is seen from `base`; None: from server.adapter_dir.

        Raises:
            PermissionDenied: the client may not load this file.
            InvalidRequest, ModelNotServed, ModelNotReady, TooManyAdapters, AdapterUnloadable.
        """
        _check(settings)
        version = self._find(model)
        target = f"{version.label}:{settings.name}"
        path, is_shelved = await asyncio.to_thread(self._place, settings.path, base)
        verb = Verb.LOAD_SHELVED_ADAPTER if is_shelved else Verb.LOAD_ADAPTER
        self._authorise(client, verb, target)
        if not PurePath(path).is_absolute():
            raise InvalidRequest(field="path", reason="must be absolute")
        with self._recorded(client, verb, version, target):
            model_path = self._router.adapting(version)
            resolved = Adapter(name=settings.name, path=path, scale=settings.scale)
            async with self._loading:
                file = await self._signer.register_adapter(version, model_path, resolved)
            return await self._router.load_adapter(version, file, is_shelved=is_shelved)

    async def unload(self, client: Client, model: str, name: str) -> None:
        """Let an adapter go; return when the last request that names it has ended.

        Leaving early changes nothing: it takes no new requests and goes when it can.

        Raises:
            PermissionDenied, ModelNotServed, AdapterNotLoaded: as named.
        """
        version = self._find(model, name)
        target = f"{version.label}:{name}"
        is_shelved = all(
            status.is_shelved
            for status in self._status(version).adapters
            if status.adapter.name == name
        )
        verb = Verb.UNLOAD_SHELVED_ADAPTER if is_shelved else Verb.UNLOAD_ADAPTER
        self._authorise(client, verb, target)
        with self._recorded(client, verb, version, target):
            await self._router.unload_adapter(version, name)

    def list(self, client: Client, model: str) -> tuple[AdapterStatus, ...]:
        """List the adapters of one model, or of all where none is named.

        Raises:
            PermissionDenied, ModelNotServed: as named.
        """
        self._authorise(client, Verb.LIST_MODELS, model or "*")
        if model:
            return self._status(self._find(model)).adapters
        return tuple(adapter for status in self._router.models() for adapter in status.adapters)

    # --- shared -----------------------------------------------------------------------------------

    def _authorise(self, client: Client, verb: Verb, target: str) -> None:
        try:
            authorise(client, verb, target)
        except PermissionDenied as error:
            self._audit.record(client, verb, target, error.code)
            raise

    @contextmanager
    def _recorded(
        self, client: Client, verb: Verb, version: ModelVersion, target: str
    ) -> Iterator[None]:
        """Record and count how it ended; a client that left did not wait for the end."""
        outcome = "left"
        try:
            yield
            outcome = "ok"
        except ApplianceError as error:
            outcome = error.code
            raise
        finally:
            self._audit.record(client, verb, target, outcome)
            labels = {"model": version.label, "verb": verb.value, "outcome": outcome}
            self._metrics.record("appliance_adapter_changes_total", 1, **labels)

    def _place(self, path: str, base: Path | None) -> tuple[str, bool]:
        """Find where a file lies, and whether that is in the shelf; blocks on the disk.

        Outside, the path stays as it was given, so that a refusal tells nothing about it.
        """
        if base is not None:
            return str(base / path), False
        if not self._adapter_dir:
            return path, False
        shelf = Path(self._adapter_dir).resolve()
        found = (shelf / path).resolve()
        return (str(found), True) if found.is_relative_to(shelf) else (path, False)

    def _find(self, model: str, adapter: str = "") -> ModelVersion:
        """Find a version by name; without one, the only one that generates or has the adapter."""
        if not model and adapter:
            owners = [
                status.version
                for status in self._router.models()
                if any(adapter == entry.adapter.name for entry in status.adapters)
            ]
            if len(owners) == 1:
                return owners[0]
        return find(self._router, model)

    def _status(self, version: ModelVersion) -> ModelStatus:
        return next(s for s in self._router.models() if s.version.digest == version.digest)


def _check(settings: Adapter) -> None:
    """Hold what a client wrote against the bounds that the configuration has too.

    Raises:
        InvalidRequest: names the field.
    """
    if not _NAME.fullmatch(settings.name):
        reason = "must be 1 to 128 letters, digits, dots, dashes or underscores, the first no mark"
        raise InvalidRequest(field="name", reason=reason)
    if not 0 < len(settings.path) <= _PATH_CHARS_MAX or "\0" in settings.path:
        raise InvalidRequest(field="path", reason=f"must have 1 to {_PATH_CHARS_MAX} characters")
    if not -_SCALE_MAX <= settings.scale <= _SCALE_MAX:
        reason = f"must be a number from {-_SCALE_MAX:g} to {_SCALE_MAX:g}"
        raise InvalidRequest(field="scale", reason=reason)
