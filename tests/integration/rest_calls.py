"""Call the REST face from tests: whole requests by http.client, broken ones by raw sockets."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CALL_TIMEOUT_S = 60.0
READ_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever JSON holds
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which must have OpenAI's four members."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[Any]:
        """The events of a stream that must end with [DONE]."""
        blocks = self.body.decode().split("\n\n")
        lines = [block for block in blocks if block and not block.startswith(":")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def call(
    address: tuple[str, int],
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request; a body that is not bytes goes as JSON."""
    connection = http.client.HTTPConnection(*address, timeout=CALL_TIMEOUT_S)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if data is not None else {}
    try:
        connection.request(method, path, data, {**given, **(headers or {})})
        response = connection.getresponse()
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=response.read(),
        )
    finally:
        connection.close()


def chat_body(text: str = "Hello!", **options: object) -> dict[str, object]:
    """Make a greedy chat of one user turn."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
        **options,
    }


def text_body(prompt: object = "One two three", **options: object) -> dict[str, object]:
    """Make a greedy completion."""
    return {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 24, **options}


def raw(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes as they are, and read until the server closes, in bounded time."""
    with socket.create_connection(address, CALL_TIMEOUT_S) as connection:
        connection.sendall(data)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    received = bytearray()
    try:
        while data := connection.recv(READ_BYTES):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)
