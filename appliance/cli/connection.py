"""Hold one connection to a daemon, and say in one way what went wrong with a call.

What this room does: the channel that the commands' clients share; our own error out of a status.
What it knows: where a status keeps our code; without one, the connection is at fault.
What it never does: know a service, print, or retry.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from appliance.cli.exits import RETRY, CommandFailed, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

ANSWER_BYTES_MAX = 256 * 1024 * 1024
CALL_TIMEOUT_S = 30.0
ERROR_DOMAIN = "appliance"


class CallFailed(CommandFailed):
    """A call was refused or broke; `code` is the appliance's own, or the status's name."""

    def __init__(self, code: str, sentence: str, exit_code: int) -> None:
        super().__init__(f"{sentence} ({code})", exit_code)
        self.code = code


class Connection:
    """One connection to a daemon; an async context manager."""

    def __init__(self, address: str) -> None:
        """Prepare a connection to "unix:PATH" or "HOST:PORT"; nothing is sent yet."""
        self._address = address
        self._channel = grpc.aio.insecure_channel(
            address,
            options=(
                ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
                ("grpc.enable_http_proxy", 0),
                ("grpc.default_authority", "localhost"),
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _failure(error, self._address) from error


def _failure(error: grpc.aio.AioRpcError, address: str) -> CallFailed:
    """Read our own code from the details of a status; without one the connection is at fault."""
    sentence = error.details() or "no reason was given"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # as good as a Call
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            return CallFailed(info.reason, sentence, exit_code_of(info.reason))
    name = error.code().name
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        text = f"no appliance answers at {address}; is 'appliance serve' running?"
        return CallFailed(name, text, RETRY)
    return CallFailed(name, sentence, exit_code_of(name))
