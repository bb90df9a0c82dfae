"""Listen for gRPC on a Unix socket, and on loopback TCP if asked.

What this room does: binds, registers our services, health and reflection; starts and stops.
What it knows: `config.Grpc`; grpcio's options.
What it never does: answer a call (`grpc_handlers`, `grpc_health`), or listen beyond this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from appliance.api.adapters import AdapterService
from appliance.api.deployments import DeploymentDesk
from appliance.api.generate import Service
from appliance.api.grpc_deployments import DeploymentServicer
from appliance.api.grpc_handlers import (
    Context,
    InferenceServicer,
    ModelServicer,
    client_of,
    handlers_of,
)
from appliance.api.grpc_health import Health
from appliance.api.listen import claim_unix_path, loopback_address, shown
from appliance.api.oip_handlers import OpenInferenceServicer
from appliance.api.proto import deployment_pb2, inference_pb2, model_pb2, open_inference_pb2
from appliance.api.resume import Streams
from appliance.config import Grpc
from appliance.domain import Client
from appliance.errors import ConfigError

SOCKET_MODE = 0o660
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_MODELS = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
_DEPLOYMENTS = deployment_pb2.DESCRIPTOR.services_by_name["DeploymentService"]
_OPEN_INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_HEALTH = cast("ServiceDescriptor", health_pb2.DESCRIPTOR.services_by_name["Health"])


class GrpcServer:
    """The listener. `start` once, `stop` once."""

    def __init__(
        self,
        service: Service,
        streams: Streams,
        adapters: AdapterService,
        deployments: DeploymentDesk,
        settings: Grpc,
        runtime_dir: Path,
        *,
        clock: Callable[[], float],
        version: str = "0",
    ) -> None:
        """Answer from `service`, `adapters` and `deployments`.

        `clock` is monotonic, in milliseconds; `version` is the program's own.
        """
        self._service = service
        self._streams = streams
        self._adapters = adapters
        self._deployments = deployments
        self._settings = settings
        self._unix_path = runtime_dir / settings.unix_path
        self._clock = clock
        self._server: grpc.aio.Server | None = None
        self._version = version
        names = tuple(one.full_name for one in (_INFERENCE, _MODELS, _DEPLOYMENTS, _OPEN_INFERENCE))
        self._health = Health(names, service.statuses)
        self.tcp_address = ""

    @property
    def unix_path(self) -> Path:
        """Where the socket is."""
        return self._unix_path

    async def start(self) -> None:
        """Bind and begin to answer.

        Raises:
            ConfigError: an address is refused or can't be bound.
        """
        server = grpc.aio.server(
            maximum_concurrent_rpcs=self._settings.calls_max,
            options=(
                ("grpc.max_receive_message_length", self._settings.message_bytes_max),
                ("grpc.max_send_message_length", -1),  # our answers are bounded by what was asked
                ("grpc.so_reuseport", 0),  # two daemons must not share a port unawares
            ),
        )
        self._register(server)
        claim_unix_path("grpc.unix_path", self._unix_path)
        _bind(server, "grpc.unix_path", f"unix:{self._unix_path}")
        self._unix_path.chmod(SOCKET_MODE)
        if self._settings.tcp:
            host, port = loopback_address("grpc.tcp", self._settings.tcp)
            bound = _bind(server, "grpc.tcp", shown(host, port))
            self.tcp_address = shown(host, bound)
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, let those in flight end for `grace_s`, then cut them off."""
        self._health.stop()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
            self._unix_path.unlink(missing_ok=True)

    def _deployment_servicer(self) -> DeploymentServicer:
        def caller(context: Context) -> Client:
            return client_of(self._service, context)

        return DeploymentServicer(self._deployments, caller, self._clock)

    def _register(self, server: grpc.aio.Server) -> None:
        handlers = [
            handlers_of(_INFERENCE, InferenceServicer(self._service, self._streams, self._clock)),
            handlers_of(_MODELS, ModelServicer(self._service, self._adapters)),
            handlers_of(_DEPLOYMENTS, self._deployment_servicer()),
            handlers_of(
                _OPEN_INFERENCE, OpenInferenceServicer(self._service, self._clock, self._version)
            ),
            handlers_of(_HEALTH, self._health),
        ]
        if self._settings.reflection:
            services = (_INFERENCE, _MODELS, _DEPLOYMENTS, _OPEN_INFERENCE, _HEALTH)
            names = [service.full_name for service in services]
            names += [reflection.SERVICE_NAME, REFLECTION_V1]
            handlers.append(_reflection_v1(names))
            reflection.enable_server_reflection(names, server)
        server.add_generic_rpc_handlers(tuple(handlers))


def _bind(server: grpc.aio.Server, key: str, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(key=key, reason=f"can't listen on {address}") from error


def _reflection_v1(names: list[str]) -> grpc.GenericRpcHandler:
    """Serve reflection under its v1 name too; its messages are those of v1alpha, byte by byte."""
    servicer = reflection.aio.ReflectionServicer(names)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": method})
