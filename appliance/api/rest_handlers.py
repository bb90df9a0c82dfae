"""Answer the routes of the REST face: translate, call the use case, translate back.

What this room does: one handler per route, streaming or not.
What it knows: `generate.Service`, `openai`, `openai_chunks`; several prompts of one completion run
side by side and are answered as one.
What it never does: decide anything about a request, or hold it after its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from functools import partial

from aiohttp import web
from msgspec.structs import replace

from appliance.api.generate import Service
from appliance.api.infill_json import InfillChunks, infill_answer, read_infill
from appliance.api.naming import meant
from appliance.api.openai import Asked, read_chat, read_completion, read_embeddings
from appliance.api.openai_answers import (
    Head,
    adapter_object,
    chat_completion,
    embedding_list,
    encode,
    model_list,
    model_object,
    text_completion,
)
from appliance.api.openai_chunks import ChatChunks, TextChunks, Whole, add_usage
from appliance.api.rerank_json import rank_list, read_rerank
from appliance.api.rest_errors import body_of, bug_body
from appliance.api.rest_guard import REQUEST_ID, Guard
from appliance.api.rest_stream import EventStream, json_response
from appliance.api.resume import Frames, Put, Streams, place_of
from appliance.api.together import all_of
from appliance.config import Rest
from appliance.domain import (
    Client,
    ClientKind,
    Event,
    GenerateRequest,
    JsonObject,
    Progress,
    RequestId,
)
from appliance.errors import ApplianceError, ClientTooSlow, InvalidRequest, ModelNotServed
from appliance.observe.metrics import CONTENT_TYPE

_IGNORED = "x-appliance-ignored"
_MS = 1000
_SHOWN_CHARS = 64
_RERANK_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")  # Jina's; Cohere's; llama-server's

Sink = Callable[[int, Event], Awaitable[None]]
Turn = Callable[[int, Event], list[JsonObject]]


class Handlers:
    """Every route. `utc_ms` dates the answers."""

    def __init__(
        self,
        service: Service,
        streams: Streams,
        guard: Guard,
        settings: Rest,
        utc_ms: Callable[[], int],
    ) -> None:
        """Answer from `service`."""
        self._service = service
        self._streams = streams
        self._guard = guard
        self._settings = settings
        self._utc_ms = utc_ms

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        expect = self._guard.expect
        return [
            web.post("/v1/chat/completions", self.chat, expect_handler=expect),
            web.post("/v1/completions", self.completions, expect_handler=expect),
            web.post("/infill", self.infill, expect_handler=expect),
            web.post("/v1/embeddings", self.embeddings, expect_handler=expect),
            *(web.post(path, self.rerank, expect_handler=expect) for path in _RERANK_PATHS),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.model),
            web.get("/v1/streams/{request_id}", self.resume),
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
        ]

    # --- generation -------------------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        request_id = request[REQUEST_ID]
        asked = read_chat(await self._body(request), request_id)
        output = asked.requests[0].output
        logprobs = output.top_logprobs is not None
        client = self._client(request, asked.user)
        head = self._head(f"chatcmpl-{request_id}", asked)
        if not asked.stream:
            whole = (await self._collect(client, asked))[0]
            head = whole.head(head)
            answer = chat_completion(head, whole.parts, whole.usage, logprobs=logprobs)
            return json_response(answer, headers=_ignored(asked.ignored))
        chunks = ChatChunks(
            head,
            output.n,
            logprobs=logprobs,
            usage=asked.include_usage,
            progress=asked.include_progress,
        )
        return await self._stream(request, client, asked, lambda _, event: chunks.turn(event), list)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        request_id = request[REQUEST_ID]
        asked = read_completion(await self._body(request), request_id)
        output = asked.requests[0].output
        logprobs = output.top_logprobs is not None
        client = self._client(request, asked.user)
        head = self._head(f"cmpl-{request_id}", asked)
        if not asked.stream:
            wholes = await self._collect(client, asked)
            head = wholes[0].head(head)
            usage = wholes[0].usage
            for whole in wholes[1:]:
                usage = add_usage(usage, whole.usage)
            parts = [part for whole in wholes for part in whole.parts]
            answer = text_completion(head, parts, usage, logprobs=logprobs)
            return json_response(answer, headers=_ignored(asked.ignored))
        chunks = TextChunks(
            head,
            output.n,
            logprobs=logprobs,
            usage=asked.include_usage,
            progress=asked.include_progress,
        )
        return await self._stream(request, client, asked, chunks.turn, chunks.last)

    async def infill(self, request: web.Request) -> web.StreamResponse:
        """POST /infill, as llama-server answers it: a stream has no [DONE]."""
        asked = read_infill(await self._body(request), request[REQUEST_ID])
        client = self._client(request, asked.user)
        if not asked.stream:
            whole = (await self._collect(client, asked))[0]
            return json_response(infill_answer(whole), headers=_ignored(asked.ignored))
        chunks = InfillChunks()
        return await self._stream(request, client, asked, chunks.turn, chunks.last, done=False)

    async def _collect(self, client: Client, asked: Asked) -> list[Whole]:
        wholes = [Whole(one.output.n) for one in asked.requests]

        async def take(index: int, event: Event) -> None:
            wholes[index].take(event)

        await self._run(client, asked, take)
        return wholes

    async def _stream(
        self,
        request: web.Request,
        client: Client,
        asked: Asked,
        turn: Turn,
        last: Callable[[], list[JsonObject]],
        *,
        done: bool = True,
    ) -> web.StreamResponse:
        """Stream the chunks. A resumable stream has no comments: see `_keep`."""
        stream = self._event_stream(request, request[REQUEST_ID], _ignored(asked.ignored))

        async def take(index: int, event: Event) -> None:
            if isinstance(event, Progress) and not asked.include_progress:
                done, total = event.prompt_tokens_done, event.prompt_tokens_total
                if done < total:
                    await stream.remark(f"progress {done}/{total}")
            await stream.send(turn(index, event))

        async def tell() -> None:
            await self._run(client, asked, take)
            await stream.send(last())
            await stream.end(done=done)

        if not asked.resumable:
            return await self._told(stream, tell())
        work = partial(self._keep, client, asked, turn, last)
        frames = self._streams.open(client, request[REQUEST_ID], work)
        return await self._told(stream, _read(frames, stream))

    async def resume(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/streams/{request_id}."""
        query = dict(request.query)
        client = self._client(request, query.pop("user", ""))
        from_seq = place_of(query.pop("from_seq", None), request.headers.get("Last-Event-ID"))
        for name in query:
            raise InvalidRequest(field=name[:_SHOWN_CHARS], reason="is not a known parameter")
        request_id = RequestId(request.match_info["request_id"])
        self._service.let_resume(client, request_id)
        stream = self._event_stream(request, request_id, {})
        frames = self._streams.resume(client, request_id, from_seq)
        return await self._told(stream, _read(frames, stream))

    async def _keep(
        self,
        client: Client,
        asked: Asked,
        turn: Turn,
        last: Callable[[], list[JsonObject]],
        put: Put,
    ) -> None:
        """Run the requests of a resumable stream, and keep the chunks.

        Not the comments: OpenAI's own client takes a block that has no data for an event once it
        has seen an id.
        """

        async def take(index: int, event: Event) -> None:
            for chunk in turn(index, event):
                put(encode(chunk))

        await self._run(client, asked, take)
        for chunk in last():
            put(encode(chunk))

    def _event_stream(
        self, request: web.Request, request_id: RequestId, headers: Mapping[str, str]
    ) -> EventStream:
        return EventStream(
            request,
            {"X-Request-Id": request_id, **self._guard.cors(request), **headers},
            self._settings.write_timeout_s,
        )

    async def _told(
        self, stream: EventStream, telling: Coroutine[None, None, None]
    ) -> web.StreamResponse:
        """Answer with what `telling` writes; an error after the first event is the last one."""
        try:
            await telling
        except ClientTooSlow:
            if not stream.opened:
                raise
        except ApplianceError as error:
            if not stream.opened:
                raise
            await stream.fail(body_of(error))
        except Exception:
            if stream.opened:
                await stream.fail(bug_body())
            raise
        return stream.response

    async def _run(self, client: Client, asked: Asked, take: Sink) -> None:
        """Feed `take` with every request's events; the first error ends all of them."""
        deadline_ms = self._service.deadline(asked.timeout_s)
        requests = [replace(one, deadline_ms=deadline_ms) for one in asked.requests]
        await all_of(
            self._feed(client, index, request, take) for index, request in enumerate(requests)
        )

    async def _feed(self, client: Client, index: int, request: GenerateRequest, take: Sink) -> None:
        async with aclosing(self._service.generate(client, request)) as events:
            async for event in events:
                await take(index, event)

    # --- the rest ---------------------------------------------------------------------------------

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings."""
        asked = read_embeddings(await self._body(request), request[REQUEST_ID])
        client = self._client(request, asked.user)
        deadline_ms = self._service.deadline(asked.timeout_s)
        result = await self._service.embed(client, replace(asked.request, deadline_ms=deadline_ms))
        if asked.dimensions is not None and asked.dimensions != result.size:
            reason = f"must be {result.size}, the model's own, if it is given"
            raise InvalidRequest(field="dimensions", reason=reason)
        answer = embedding_list(result, as_base64=asked.base64)
        return json_response(answer)

    async def rerank(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/rerank."""
        asked = read_rerank(await self._body(request), request[REQUEST_ID])
        client = self._client(request, asked.user)
        deadline_ms = self._service.deadline(asked.timeout_s)
        result = await self._service.rerank(client, replace(asked.request, deadline_ms=deadline_ms))
        return json_response(rank_list(asked, result))

    async def models(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/models."""
        return json_response(model_list(self._service.models(self._client(request))))

    async def model(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/models/{id}, of a model or an adapter."""
        name = request.match_info["name"]
        client = self._client(request)
        model, adapter = meant(name, "", self._service.models(client))
        status = self._service.model(client, model)
        if not adapter:
            return json_response(model_object(status, name))
        for found in status.adapters:
            if found.adapter.name == adapter:
                return json_response(adapter_object(found, name))
        raise ModelNotServed(model=name)

    async def healthz(self, _request: web.Request) -> web.StreamResponse:
        """GET /healthz: this process answers."""
        return json_response({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.StreamResponse:
        """GET /readyz: a model answers."""
        if self._service.ready():
            return json_response({"status": "ready"})
        return json_response({"status": "not ready"}, status=503)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """GET /metrics."""
        text = self._service.metrics_text(self._client(request))
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _body(self, request: web.Request) -> bytes:
        """Read the body of a client that may come in: a wrong key is refused before."""
        self._client(request)
        return await self._guard.body(request)

    def _client(self, request: web.Request, user: str = "") -> Client:
        authorization = request.headers.get("Authorization", "")
        return self._service.identify(ClientKind.LOOPBACK, authorization, user)

    def _head(self, answer_id: str, asked: Asked) -> Head:
        return Head(id=answer_id, created=self._utc_ms() // _MS, says_tier=asked.says_tier)


async def _read(frames: Frames, stream: EventStream) -> None:
    async with aclosing(frames):
        async for seq, data in frames:
            await stream.send_numbered(seq, data)
    await stream.end()


def _ignored(names: tuple[str, ...]) -> dict[str, str]:
    return {_IGNORED: ", ".join(names)} if names else {}
