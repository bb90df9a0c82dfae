"""Serve one request, whichever face it came through: the use case behind gRPC and REST.

What this room does: authorise, check against the limits, have it answered (`asking`) and pass on
the events; embeddings, tokens, cancelling and listing likewise; who asks; one account per request.
What it knows: every request has exactly one end: a Final, or one ApplianceError. Leaving the
iterator early is a cancellation. Denials and cancellations are audited; what was asked never is.
What it never does: know a transport, keep a text longer than its request, or retry.

    authorise -> limits -> request table -> text process -> ticket -> Accepted, events, Final
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial

from appliance.access.audit import Audit
from appliance.access.keys import Keyring, anonymous
from appliance.access.policy import Verb, authorise, usual_class
from appliance.api.account import Account, Operation
from appliance.api.asking import Asking
from appliance.api.flights import Flight, Flights
from appliance.api.limits import (
    check_embed,
    check_generate,
    check_request_id,
    check_rerank,
    check_text,
    check_timeout,
    check_tokens,
)
from appliance.api.model_names import find_any
from appliance.api.pacing import Pacing
from appliance.api.pooling import Pooling, ranked
from appliance.config import Limits
from appliance.domain import (
    ChatPrompt,
    Client,
    ClientKind,
    EmbedRequest,
    EmbedResult,
    Event,
    GenerateRequest,
    ModelKind,
    ModelStatus,
    ModelVersion,
    Priority,
    RequestId,
    RerankRequest,
    RerankResult,
    Role,
    StandbyStatus,
    TextPrompt,
    VersionState,
)
from appliance.errors import (
    ApplianceError,
    DeadlineExceeded,
    ModelNotServed,
    PermissionDenied,
    RequestCancelled,
    Unauthenticated,
)
from appliance.observe.metrics import Metrics
from appliance.runtime.router import Router
from appliance.runtime.wire import Prepared

_MS = 1000.0


class Service:
    """What both faces call. All methods belong to the event loop's thread."""

    def __init__(
        self,
        router: Router,
        audit: Audit,
        metrics: Metrics,
        limits: Limits,
        *,
        keyring: Keyring,
        clock: Callable[[], float],
        standbys: Callable[[], tuple[StandbyStatus, ...]] = tuple,
    ) -> None:
        """Serve what `router` serves. `clock` is monotonic, in milliseconds.

        `standbys` says how former versions are held.
        """
        self._standbys = standbys
        self._router = router
        self._keyring = keyring
        self._audit = audit
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._flights = Flights()

    # --- who asks ---------------------------------------------------------------------------------

    def identify(self, listener: ClientKind, authorization: str, user: str = "") -> Client:
        """Say who asks, by the key shown or else by the listener; see `access.keys`.

        Raises:
            Unauthenticated, InvalidRequest: as named.
        """
        try:
            return self._keyring.identify(listener, authorization, user)
        except Unauthenticated as error:
            self._audit.record(anonymous(listener), Verb.AUTHENTICATE, "*", error.code)
            raise

    def deadline(self, timeout_s: float | None) -> float | None:
        """Say when a request that arrives now and may take so long must have ended.

        Raises:
            InvalidRequest: that is longer than requests may take here.
        """
        if timeout_s is None:
            return None
        check_timeout(timeout_s, self._limits)
        return self._clock() + timeout_s * _MS

    # --- generation -------------------------------------------------------------------------------

    async def generate(
        self, client: Client, request: GenerateRequest
    ) -> AsyncGenerator[Event, None]:
        """Yield Accepted, then what comes, then Final. Close the iterator to cancel.

        Raises:
            ApplianceError: exactly one, instead of Final, and possibly before Accepted.
        """
        is_chat = isinstance(request.prompt, ChatPrompt)
        operation = Operation.CHAT if is_chat else Operation.TEXT
        self._authorise(client, Verb.GENERATE, request.model)
        priority = request.priority or usual_class(client)
        self._authorise(client, Verb.PRIORITISE, priority.value)
        with self._account(operation, client, request.request_id) as account:
            check_generate(request, self._limits)
            with self._flights.hold(client, request.request_id) as flight:
                events = self._events(client, request, priority, flight, account)
                async with aclosing(events):
                    async for event in events:
                        account.note(event)
                        yield event

    async def _events(
        self,
        client: Client,
        request: GenerateRequest,
        priority: Priority,
        flight: Flight,
        account: Account,
    ) -> AsyncGenerator[Event, None]:
        asking = Asking(
            self._router,
            client,
            request,
            priority=priority,
            deadline_ms=self._deadline(request.deadline_ms),
            pacing=partial(Pacing, self._limits.progress_ms, self._clock),
        )
        async with aclosing(asking.events(flight, account)) as events:
            async for event in events:
                yield event

    def let_resume(self, client: Client, request_id: RequestId) -> None:
        """Let a client read on in a stream, which must be its own: `api.resume` sees to that.

        Raises:
            InvalidRequest, PermissionDenied: as named.
        """
        self._authorise(client, Verb.RESUME, request_id)
        check_request_id(request_id)

    # --- embeddings and tokens --------------------------------------------------------------------

    async def embed(self, client: Client, request: EmbedRequest) -> EmbedResult:
        """Embed every input; blocks until all vectors are there. Cancelling the call cancels it.

        Raises:
            ApplianceError: no vector is returned.
        """
        self._authorise(client, Verb.EMBED, request.model)
        with self._account(Operation.EMBED, client, request.request_id) as account:
            check_embed(request, self._limits)
            return await self._pool(client, request, ModelKind.EMBED, account)

    async def rerank(self, client: Client, request: RerankRequest) -> RerankResult:
        """Score every document against the query; blocks and is cancelled as `embed`.

        Raises:
            ApplianceError: no score is returned.
        """
        self._authorise(client, Verb.RERANK, request.model)
        with self._account(Operation.RERANK, client, request.request_id) as account:
            check_rerank(request, self._limits)
            return ranked(request, await self._pool(client, request, ModelKind.RERANK, account))

    async def _pool(
        self,
        client: Client,
        request: EmbedRequest | RerankRequest,
        kind: ModelKind,
        account: Account,
    ) -> EmbedResult:
        """Have every input of a request evaluated, while it can be cancelled."""
        with self._flights.hold(client, request.request_id) as flight:
            try:
                async with asyncio.timeout(None) as flight.scope:
                    deadline_ms = self._deadline(request.deadline_ms)
                    pooling = Pooling(self._router, client, request, kind, deadline_ms)
                    result = await pooling.result(account)
            except TimeoutError:
                raise RequestCancelled from None
            finally:
                flight.scope = None
            account.done()
            return result

    async def tokenize(
        self, client: Client, model: str, text: str, *, add_bos: bool, parse_special: bool
    ) -> tuple[ModelVersion, Prepared]:
        """Turn text into token ids and the bytes of each.

        Raises:
            ModelNotServed, InvalidRequest, PermissionDenied: as named.
        """
        self._authorise(client, Verb.TOKENIZE, model)
        check_text("text", text, self._limits)
        version = find_any(self._router, model)
        prompt = TextPrompt(text=text)
        prepared = await self._router.prepare(
            version, prompt, add_bos=add_bos, parse_special=parse_special, with_pieces=True
        )
        return version, prepared

    async def detokenize(
        self, client: Client, model: str, token_ids: tuple[int, ...]
    ) -> tuple[ModelVersion, str]:
        """Turn token ids into text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ModelNotServed, InvalidRequest, PermissionDenied: as named.
        """
        self._authorise(client, Verb.DETOKENIZE, model)
        check_tokens("token_ids", token_ids, self._limits)
        version = find_any(self._router, model)
        return version, await self._router.detokenize(version, token_ids)

    # --- the rest ---------------------------------------------------------------------------------

    def cancel(self, client: Client, request_id: RequestId) -> bool:
        """Cancel a request of this client; does not block. False: there is none of that id.

        Raises:
            InvalidRequest, PermissionDenied: as named.
        """
        self._authorise(client, Verb.CANCEL, request_id)
        check_request_id(request_id)
        found = self._flights.cancel(client, request_id)
        self._audit.record(client, Verb.CANCEL, request_id, "ok" if found else "not_found")
        return found

    def models(self, client: Client) -> tuple[ModelStatus, ...]:
        """List every loaded version.

        Raises:
            PermissionDenied: as named.
        """
        self._authorise(client, Verb.LIST_MODELS, "*")
        return self._router.models()

    def standbys(self, client: Client) -> tuple[StandbyStatus, ...]:
        """Say how the standby of each model is held, loaded or not. Raises as `models`."""
        self._authorise(client, Verb.LIST_MODELS, "*")
        return self._standbys()

    def model(self, client: Client, name: str) -> ModelStatus:
        """Find one by its name or name@version, whether it is ready or not.

        Raises:
            ModelNotServed, PermissionDenied: as named.
        """
        self._authorise(client, Verb.LIST_MODELS, name)
        for status in self._router.models():
            is_meant = name == status.version.model and status.role is Role.ACTIVE
            if is_meant or name == status.version.label:
                return status
        raise ModelNotServed(model=name)

    def metrics_text(self, client: Client) -> str:
        """Show the metrics in Prometheus' text format.

        Raises:
            PermissionDenied: as named.
        """
        self._authorise(client, Verb.READ_METRICS, "*")
        return self._metrics.render()

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Show the role table to health probes, which are nobody's."""
        return self._router.models()

    def ready(self) -> bool:
        """Tell whether a model answers now."""
        return any(status.state is VersionState.READY for status in self._router.models())

    @property
    def in_flight_count(self) -> int:
        """Count the requests that have not ended."""
        return len(self._flights)

    # --- shared -----------------------------------------------------------------------------------

    def _authorise(self, client: Client, verb: Verb, target: str) -> None:
        try:
            authorise(client, verb, target)
        except PermissionDenied as error:
            self._audit.record(client, verb, target, error.code)
            raise

    def _deadline(self, asked_ms: float | None) -> float:
        """Take the sooner of what the client asked and what the operator allows.

        Raises:
            DeadlineExceeded: it has passed already.
        """
        now_ms = self._clock()
        limit_ms = now_ms + self._limits.request_s * _MS
        if asked_ms is not None and asked_ms <= now_ms:
            raise DeadlineExceeded(phase="queue")
        return limit_ms if asked_ms is None else min(asked_ms, limit_ms)

    @contextmanager
    def _account(
        self, operation: Operation, client: Client, request_id: RequestId
    ) -> Iterator[Account]:
        account = Account(operation, client, request_id, metrics=self._metrics, clock=self._clock)
        try:
            yield account
        except ApplianceError as error:
            account.failed(error.code)
            raise
        finally:
            account.close()
