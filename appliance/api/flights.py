"""Keep the table of requests between their arrival and their end.

What this room does: one entry per request, found by its id; cancelling what an entry holds.
What it knows: a request may wait in an await, hold a ticket, or both.
What it never does: decide who may cancel (`generate` does), or end a request that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.domain import Client, RequestId
from appliance.errors import InvalidRequest
from appliance.runtime.router import Ticket


@dataclass(slots=True, eq=False)
class Flight:
    """A request between its arrival and its end."""

    client: Client
    ticket: Ticket | None = None
    scope: asyncio.Timeout | None = None  # of an await that a cancellation must interrupt
    cancelled: bool = False

    def cancel(self) -> None:
        """End the request; idempotent, does not block."""
        self.cancelled = True
        if self.ticket is not None:
            self.ticket.cancel()
        if self.scope is not None and not self.scope.expired():
            self.scope.reschedule(asyncio.get_running_loop().time())


class Flights:
    """Every request that has not ended."""

    def __init__(self) -> None:
        """Begin with none."""
        self._flights: dict[RequestId, Flight] = {}

    def __len__(self) -> int:
        """Count them."""
        return len(self._flights)

    @contextmanager
    def hold(self, client: Client, request_id: RequestId) -> Iterator[Flight]:
        """Keep a request in the table; whatever happens, its ticket ends with it.

        Raises:
            InvalidRequest: a request of that id is in flight.
        """
        if request_id in self._flights:
            raise InvalidRequest(field="request_id", reason="is that of a request in flight")
        flight = self._flights[request_id] = Flight(client)
        try:
            yield flight
        finally:
            del self._flights[request_id]
            flight.cancel()

    def cancel(self, client: Client, request_id: RequestId) -> bool:
        """Cancel a request of this client; False: it has none of that id. Does not block."""
        flight = self._flights.get(request_id)
        if flight is None or not client.owns(flight.client):
            return False
        flight.cancel()
        return True
