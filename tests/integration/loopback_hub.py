"""A real HTTP server on loopback that serves a repository, and misbehaves where a test wants it."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

Answer: TypeAlias = Callable[[BaseHTTPRequestHandler], None]


class LoopbackHub(ThreadingHTTPServer):
    """Serve `files`, but at `answers` what those do. `asked`: each path, in order."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "https" if tls else "http"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.files = files
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up: that is what tests make them do."""


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.removeprefix("/")
        self.server.asked.append(path)
        if path in self.server.answers:
            self.close_connection = True
            self.server.answers[path](self)
            return
        data = self.server.files.get(path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # its name there
        """Keep the test's output clean."""


@contextlib.contextmanager
def serving(files: dict[str, bytes], tls: ssl.SSLContext | None = None) -> Iterator[LoopbackHub]:
    hub = LoopbackHub(files, tls)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        hub.shutdown()
        thread.join()
        hub.server_close()


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Send for as long as somebody reads."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" " * 65536)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte now and then, for as long as somebody reads."""
    handler.send_response(200)
    handler.end_headers()
    trickle(handler, b" ")


def drip_head(handler: BaseHTTPRequestHandler) -> None:
    """Never come to the end of the headers."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    trickle(handler, b"x")


def silent(handler: BaseHTTPRequestHandler) -> None:
    """Never answer."""
    assert isinstance(handler.server, LoopbackHub)
    handler.server.ended.wait()


def trickle(handler: BaseHTTPRequestHandler, byte: bytes) -> None:
    assert isinstance(handler.server, LoopbackHub)
    with contextlib.suppress(OSError):
        while not handler.server.ended.wait(0.05):
            handler.wfile.write(byte)
            handler.wfile.flush()


def status(code: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def redirect(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def cut(data: bytes) -> Answer:
    """Announce a whole file and hang up in the middle."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])

    return answer
