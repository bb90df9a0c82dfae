"""What the REST face lets in, and how long it waits: hosts, origins, slow and many connections."""

from __future__ import annotations

import json
import socket

import pytest

from tests.integration.rest_calls import call, chat_body, raw, read_all
from tests.integration.stack import Stack

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org:80", "", "a b"])
def test_a_foreign_host_is_refused(stack: Stack, host: str) -> None:
    answer = call(stack.rest_address, "GET", "/v1/models", headers={"Host": host})
    assert (answer.status, answer.error["code"]) == (403, "HOST_NOT_ALLOWED")


def test_a_request_without_a_host_is_refused(stack: Stack) -> None:
    answer = raw(stack.rest_address, b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 403")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8321", "127.0.0.1:1", "[::1]:8321"])
def test_allowed_hosts_are_served_on_any_port(stack: Stack, host: str) -> None:
    answer = call(stack.rest_address, "GET", "/healthz", headers={"Host": host})
    assert answer.status == 200


def test_a_foreign_origin_is_refused_and_gets_no_cors(stack: Stack) -> None:
    for method in ("GET", "OPTIONS"):
        answer = call(
            stack.rest_address, method, "/v1/models", headers={"Origin": "http://example.org"}
        )
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
    null = call(stack.rest_address, "GET", "/v1/models", headers={"Origin": "null"})
    assert null.status == 403


@pytest.mark.parametrize("header", [b"Host: \xff", b"Host: localhost\r\nOrigin: \xff"])
def test_a_host_or_origin_that_is_not_text_is_refused(stack: Stack, header: bytes) -> None:
    head = b"GET /healthz HTTP/1.1\r\n" + header + b"\r\nConnection: close\r\n\r\n"
    answer = raw(stack.rest_address, head)
    assert answer.startswith(b"HTTP/1.1 403"), answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "HOST_NOT_ALLOWED"


def _head(body: bytes, *more: str) -> bytes:
    lines = (
        f"POST {CHAT} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *more,
    )
    return "\r\n".join((*lines, "", "")).encode()


def test_an_expectation_we_do_not_know_is_refused_in_openais_words(stack: Stack) -> None:
    answer = raw(stack.rest_address, _head(b"", "Expect: a-miracle", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 417"), answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "expectation_failed"


def test_a_client_that_waits_with_its_body_is_told_to_go_on(stack: Stack) -> None:
    body = json.dumps(chat_body(max_tokens=2)).encode()
    with socket.create_connection(stack.rest_address) as connection:
        connection.sendall(_head(body, "Expect: 100-continue", "Connection: close"))
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_the_own_origin_is_let_in(stack: Stack) -> None:
    host, port = stack.rest_address
    headers = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}"}
    answer = call(stack.rest_address, "GET", "/v1/models", headers=headers)
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_slow_heads_half_bodies_and_slow_readers_end(strict_stack: Stack) -> None:
    address = strict_stack.rest_address
    assert raw(address, b"GET /healthz HTTP/1.1\r\nHost: loc") == b""
    assert raw(address, b"") == b""
    half = raw(address, _head(bytes(500)) + b"{")
    assert half.startswith(b"HTTP/1.1 400")
    assert b"did not arrive" in half
    assert call(address, "GET", "/healthz").status == 200


def test_a_reader_that_does_not_read_is_cut_off(strict_stack: Stack) -> None:
    address = strict_stack.rest_address
    body = json.dumps(
        chat_body(
            max_tokens=900, ignore_eos=True, stream=True, n=16, logprobs=True, top_logprobs=20
        )
    ).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address)
        connection.sendall(_head(body) + body)
        assert connection.recv(64)
        strict_stack.wait_idle()
        assert b"[DONE]" not in read_all(connection)
    assert call(address, "GET", "/healthz").status == 200


def test_connections_are_bounded(strict_stack: Stack) -> None:
    address = strict_stack.rest_address
    limit = strict_stack.rest_settings.connections_max
    held = [socket.create_connection(address) for _ in range(limit)]
    try:
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        refused = call(address, "GET", "/healthz")
        assert refused.status == 503
        assert refused.error["code"] == "too_many_connections"
    finally:
        for connection in held:
            connection.close()
    # The server sees the ends one by one; each that it has seen makes room.
    answers = (call(address, "GET", "/healthz").status for _ in range(1000))
    assert 200 in answers


def test_a_configured_origin_gets_cors_and_a_preflight(strict_stack: Stack) -> None:
    origin = strict_stack.rest_settings.allowed_origins[0]
    headers = {"Origin": origin, "Access-Control-Request-Headers": "content-type"}
    preflight = call(strict_stack.rest_address, "OPTIONS", CHAT, headers=headers)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-headers"] == "content-type"
    answer = call(strict_stack.rest_address, "GET", "/v1/models", headers={"Origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
