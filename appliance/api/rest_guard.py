"""Let in what may come in, and see that everything that goes out is an answer.

What this room does: the Host allow-list and the rule against foreign Origins (DNS rebinding, web
pages of elsewhere); CORS for configured origins; reading a body within its bounds; turning every
error into OpenAI's error object.
What it knows: `config.Rest`, `rest_errors`.
What it never does: look into a body, or log one: what a broken request held is not shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web

from appliance.api.bugs import log_bug
from appliance.api.limits import new_request_id
from appliance.api.rest_errors import body_of, bug_body, headers_of, http_refusal, status_of
from appliance.api.rest_stream import deliver, json_response
from appliance.config import Rest
from appliance.domain import RequestId
from appliance.errors import ApplianceError, BodyTooLarge, HostNotAllowed, InvalidRequest

REQUEST_ID = web.RequestKey("request_id", RequestId)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_METHODS = "GET, POST, OPTIONS"
_PREFLIGHT_S = "600"
_SHOWN_CHARS = 128
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed", 417: "expectation_failed"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """The one middleware."""

    def __init__(self, settings: Rest) -> None:
        """Guard by these lists and bounds."""
        self._settings = settings
        self._hosts = frozenset(_bare(host) for host in settings.allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in settings.allowed_origins)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request, whatever happens to it; a cancellation goes through."""
        request_id = request[REQUEST_ID] = new_request_id()
        response = await self._answer(request, handler)
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
            response.headers.update(self.cors(request))
            await deliver(request, response, self._settings.write_timeout_s)
        return response

    async def expect(self, request: web.Request) -> web.StreamResponse | None:
        """Tell a client that waits with its body to go on; refuse any other expectation."""
        if request.version < HttpVersion11:
            return None
        if request.headers["Expect"].lower() != "100-continue":
            return _refuse(request, web.HTTPExpectationFailed())
        async with asyncio.timeout(self._settings.write_timeout_s):
            await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # as aiohttp's own: the answer has not begun
        return None

    def cors(self, request: web.Request) -> dict[str, str]:
        """Write the headers that let a configured origin read the answer."""
        origin = request.headers.get("Origin", "")
        if origin.lower() not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "x-appliance-ignored, x-request-id",
            "Vary": "Origin",
        }

    async def body(self, request: web.Request) -> bytes:
        """Read a JSON body.

        Raises:
            InvalidRequest: it is of another type, compressed, broken off or too slow.
            BodyTooLarge: it is larger than the limit.
        """
        if request.content_type != "application/json":
            raise InvalidRequest(field="content-type", reason="must be application/json")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise InvalidRequest(field="content-encoding", reason="compressed bodies are not read")
        limit = self._settings.body_bytes_max
        if request.content_length is not None and request.content_length > limit:
            raise BodyTooLarge(limit_bytes=limit)
        timeout_s = self._settings.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise BodyTooLarge(limit_bytes=limit) from None
        except web.RequestPayloadError:
            raise InvalidRequest(field="body", reason="is not well-formed HTTP") from None
        except TimeoutError:
            reason = f"did not arrive within {timeout_s:g} s"
            raise InvalidRequest(field="body", reason=reason) from None

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check_host(request)
            self._check_origin(request)
            if request.method == "OPTIONS":
                return self._preflight(request)
            return await handler(request)
        except ApplianceError as error:
            return json_response(body_of(error), status=status_of(error), headers=headers_of(error))
        except web.HTTPException as refusal:
            return _refuse(request, refusal)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the transport's catch-all
            log_bug("rest", error)
            return json_response(bug_body(), status=500)

    def _check_host(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        if _bare(_host_name(host)) not in self._hosts:
            raise HostNotAllowed(header="Host", value=_shown(host))

    def _check_origin(self, request: web.Request) -> None:
        """Let through no origin (not a browser), our own, and configured ones."""
        origin = request.headers.get("Origin")
        if origin is None or origin.lower() in self._origins:
            return
        own = f"http://{request.headers.get('Host', '')}"
        if origin.lower() != own.lower():
            raise HostNotAllowed(header="Origin", value=_shown(origin))

    def _preflight(self, request: web.Request) -> web.StreamResponse:
        if not self.cors(request):
            raise web.HTTPMethodNotAllowed("OPTIONS", ("GET", "POST"))
        asked = request.headers.get("Access-Control-Request-Headers", "")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": asked,
                "Access-Control-Max-Age": _PREFLIGHT_S,
            },
        )


def _shown(header: str) -> str:
    """Cut a header's value; bytes in it that were not text are written as escapes."""
    return header[:_SHOWN_CHARS].encode(errors="backslashreplace").decode()


def _host_name(host: str) -> str:
    """Take the port off a Host header."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bare(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]")


def _refuse(request: web.Request, refusal: web.HTTPException) -> web.StreamResponse:
    code = _HTTP_CODES.get(refusal.status, "http_error")
    message = f"{refusal.reason}: {request.method} {request.path[:_SHOWN_CHARS]}"
    headers = {"Allow": refusal.headers["Allow"]} if "Allow" in refusal.headers else {}
    return json_response(http_refusal(message, code), status=refusal.status, headers=headers)
