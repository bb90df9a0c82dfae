"""Answer the routes of the REST face that load and unload LoRA adapters.

What this room does: vLLM's two routes.
What it knows: `api.adapters`, `adapter_json`. REST is on TCP, so its clients load only what lies in
server.adapter_dir.
What it never does: decide who may load what.
"""

from __future__ import annotations

from aiohttp import web

from appliance.api.adapter_json import read_load, read_unload
from appliance.api.adapters import AdapterService
from appliance.api.generate import Service
from appliance.api.openai_answers import adapter_object
from appliance.api.rest_guard import Guard
from appliance.api.rest_stream import json_response
from appliance.domain import Client, ClientKind


class AdapterHandlers:
    """The routes for adapters."""

    def __init__(self, service: Service, adapters: AdapterService, guard: Guard) -> None:
        """Answer from `adapters`; `service` says who asks."""
        self._service = service
        self._adapters = adapters
        self._guard = guard

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        expect = self._guard.expect
        return [
            web.post("/v1/load_lora_adapter", self.load, expect_handler=expect),
            web.post("/v1/unload_lora_adapter", self.unload, expect_handler=expect),
        ]

    async def load(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/load_lora_adapter: the adapter as an entry of /v1/models."""
        client = self._client(request)
        model, settings = read_load(await self._guard.body(request))
        return json_response(adapter_object(await self._adapters.load(client, model, settings)))

    async def unload(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/unload_lora_adapter: answered when the adapter is gone."""
        client = self._client(request)
        model, name = read_unload(await self._guard.body(request))
        await self._adapters.unload(client, model, name)
        return json_response({"id": name, "object": "model", "deleted": True})

    def _client(self, request: web.Request) -> Client:
        authorization = request.headers.get("Authorization", "")
        return self._service.identify(ClientKind.LOOPBACK, authorization)
