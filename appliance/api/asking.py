"""Have one generation answered by whichever version answers it, also when that changes.

What this room does: finds the version, has the prompt prepared for it, takes a ticket, passes on
what comes; begins again when another version takes over before anything was answered.
What it knows: a version may change at every await, so it is looked up again where the ticket is
taken; a request that was let in once is let in again, whatever waits.
What it never does: authorise, check a limit, or begin again once a token has been passed on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count

from appliance.api.account import Account
from appliance.api.call_reading import reading_of
from appliance.api.flights import Flight
from appliance.api.limits import new_seed
from appliance.api.model_names import find, place_of
from appliance.api.naming import meant
from appliance.api.pacing import Pacing
from appliance.domain import (
    Accepted,
    Client,
    Delta,
    Event,
    GenerateRequest,
    InfillPrompt,
    ModelVersion,
    Priority,
    TextPrompt,
)
from appliance.errors import ApplianceError, InvalidRequest, RequestCancelled
from appliance.runtime.router import Copied, Job, Moved, Router, Ticket
from appliance.runtime.wire import Prepared

MOVES_MAX = 16  # then it stays where it is


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A request as one version is to be asked it."""

    version: ModelVersion
    prepared: Prepared
    opening: tuple[Delta, ...]


class Asking:
    """One request of one client, within the limits. `events` is for one reader, once."""

    def __init__(
        self,
        router: Router,
        client: Client,
        request: GenerateRequest,
        *,
        priority: Priority,
        deadline_ms: float,
        pacing: Callable[[], Pacing],
    ) -> None:
        """Take what was asked. deadline_ms is monotonic."""
        self._router = router
        self._client = client
        self._request = request
        self._priority = priority
        self._deadline_ms = deadline_ms
        self._pacing = pacing
        self._place = place_of(client, request.request_id)
        self._model, self._adapter = meant(request.model, request.adapter, router.models())
        seed = request.sampling.seed
        self._seed = new_seed() if seed is None else seed
        self._has_echoed = not request.output.echo

    async def events(self, flight: Flight, account: Account) -> AsyncGenerator[Event, None]:
        """Yield Accepted, then what comes; Accepted again if another version takes over.

        Raises:
            ApplianceError: exactly one, instead of Final.
        """
        for attempt in count():
            ready = await self._ready(account, again=attempt > 0)
            if flight.cancelled:
                raise RequestCancelled
            version, prompt_tokens = ready.version, len(ready.prepared.token_ids)
            account.prepared(prompt_tokens, self._request.output.n, self._priority)
            job = self._job(ready, may_move=attempt < MOVES_MAX and version.label != self._model)
            flight.ticket = ticket = self._router.admit(version, job, again=attempt > 0)
            copied = Copied(prompt=self._request.prompt, constraint=self._request.constraint)
            self._router.repeat(version, ticket, copied)
            yield Accepted(
                request_id=self._request.request_id,
                version=f"{version.label}:{self._adapter}" if self._adapter else version.label,
                seed=self._seed,
                prompt_tokens=prompt_tokens,
                priority=self._priority,
            )
            for delta in ready.opening:
                yield delta
            self._has_echoed = True
            try:
                async with aclosing(self._read(ready.prepared, ticket)) as events:
                    async for event in events:
                        yield event
            except Moved:
                continue
            return

    async def _ready(self, account: Account, *, again: bool) -> _Ready:
        """Prepare the request for the version that answers once that is done."""
        for attempt in count():
            version = self._version()
            account.found(version)
            try:
                ready = await self._prepare(version, again=again)
            except ApplianceError:
                if attempt >= MOVES_MAX or self._version() == version:
                    raise
                continue
            if attempt >= MOVES_MAX or self._version() == version:
                return ready
        raise AssertionError

    async def _prepare(self, version: ModelVersion, *, again: bool) -> _Ready:
        request = self._request
        prepared = await self._router.prepare(
            version, request.prompt, constraint=request.constraint, again=again
        )
        if not prepared.token_ids:
            raise InvalidRequest(field="prompt", reason="is empty")
        opening = () if self._has_echoed else await self._echo(version, prepared)
        return _Ready(version=version, prepared=prepared, opening=opening)

    def _version(self) -> ModelVersion:
        """Find the version that answers now. Raises as `find`."""
        return find(self._router, self._model, place=self._place, adapter=self._adapter)

    async def _read(self, prepared: Prepared, ticket: Ticket) -> AsyncGenerator[Event, None]:
        """Yield a ticket's events as the client is to see them. Raises as `Ticket.events`."""
        reading = reading_of(self._request, prepared.tool_syntax)
        pacing = self._pacing()
        async with aclosing(ticket.events()) as events:
            async for news in events:
                if not pacing.passes(news):
                    continue
                if reading is None:
                    yield news
                else:
                    for event in reading.turn(news):
                        yield event

    def _job(self, ready: _Ready, *, may_move: bool) -> Job:
        request = self._request
        return Job(
            request_id=request.request_id,
            prompt_ids=ready.prepared.token_ids,
            seed=self._seed,
            n=request.output.n,
            sampling=request.sampling,
            stop=request.stop,
            top_logprobs=request.output.top_logprobs,
            constraint=ready.prepared.constraint,
            deadline_ms=self._deadline_ms,
            client=self._client,
            priority=self._priority,
            adapter=self._adapter,
            cache_salt=request.cache_salt,
            may_move=may_move,
        )

    async def _echo(self, version: ModelVersion, prepared: Prepared) -> tuple[Delta, ...]:
        """Make the deltas that repeat the prompt in front of each choice."""
        request = self._request
        if isinstance(request.prompt, TextPrompt):
            text = request.prompt.text
        elif isinstance(request.prompt, InfillPrompt):
            text = request.prompt.prefix
        else:
            text = await self._router.detokenize(version, prepared.token_ids)
        return tuple(Delta(choice=choice, text=text) for choice in range(request.output.n))
