"""Load the files of the operator's own: sign them, serve them with their adapters, tell how far.

What this room does: goes through the models of the configuration once, at the start.
What it knows: a model's draft model is a file of its own, and is signed too.
What it never does: keep a version running; the router does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from appliance import logs
from appliance.access.audit import Audit
from appliance.access.policy import Verb
from appliance.api.adapters import AdapterService
from appliance.clock import monotonic_ms
from appliance.config import Model
from appliance.domain import Client, ModelVersion, VersionState
from appliance.errors import ConfigError
from appliance.local_versions import LocalVersions, Reading
from appliance.runtime.router import Router

PROGRESS_TICK_S = 0.25


class LocalModels:
    """The models of the configuration."""

    def __init__(
        self,
        models: Sequence[Model],
        versions: LocalVersions,
        router: Router,
        adapters: AdapterService,
        audit: Audit,
        operator: Client,
    ) -> None:
        """Load `models`, on the word of `operator`; relative paths are seen from here."""
        self._models = models
        self._versions = versions
        self._router = router
        self._adapters = adapters
        self._audit = audit
        self._operator = operator
        self._directory = Path.cwd()
        self._reading: tuple[str, Reading] | None = None

    async def load(self) -> None:
        """Load one after the other; returns when all answer.

        Raises:
            ModelUnloadable, AdapterUnloadable: a file can't be served.
            ConfigError: two of them have one name, or are one file.
        """
        seen: dict[str, str] = {}
        for model in self._models:
            begun_ms = monotonic_ms()
            path, version = await self._register(model)
            for key in (version.digest, version.model):
                if key in seen:
                    reason = f"{model.path} and {seen[key]} are both '{key}'; name them apart"
                    raise ConfigError(key="models", reason=reason)
                seen[key] = model.path
            self._audit.record(self._operator, Verb.REGISTER_VERSION, version.label, "ok")
            settings = await self._with_draft(model)
            facts = await self._router.serve(version, path, settings)
            for adapter in model.adapters:
                await self._adapters.load(
                    self._operator, version.label, adapter, base=self._directory
                )
            logs.event(
                "model_ready",
                model=version.label,
                digest=version.digest,
                load_ms=round(monotonic_ms() - begun_ms, 1),
                memory_kind=facts.memory_kind.value,
                cache_layout=facts.cache_layout.value,
                cache_layout_reason=facts.cache_layout_reason,
            )

    async def _register(self, settings: Model) -> tuple[Path, ModelVersion]:
        """Have a file signed; how much of it is read shows meanwhile. Raises as `register`."""
        reading = Reading()
        self._reading = (Path(settings.path).name, reading)
        try:
            return await self._versions.register(settings, reading)
        finally:
            self._reading = None

    async def _with_draft(self, model: Model) -> Model:
        """Have the draft model of a model signed too, if it has one; return its place as well."""
        if not model.draft:
            return model
        path, version = await self._register(Model(path=model.draft))
        self._audit.record(self._operator, Verb.REGISTER_VERSION, version.label, "ok")
        return msgspec.structs.replace(model, draft=str(path))

    async def tell_progress(self, progress: Callable[[str, float], None]) -> None:
        """Say what is being done and how far it is, until cancelled."""
        while True:
            if self._reading is not None:
                name, reading = self._reading
                progress(f"reading {name}", reading.ratio)
            for status in self._router.models():
                if status.state is VersionState.LOADING:
                    progress(f"loading {status.version.label}", status.loading_ratio)
            await asyncio.sleep(PROGRESS_TICK_S)
