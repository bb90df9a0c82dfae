"""Hold the events that one reader has not read yet.

What this room does: a bounded queue between a ticket and its reader; neighbouring deltas of one
choice become one event, so a slow reader gets fewer, larger ones; the one end.
What it knows: the events of a request, and the ways it ends.
What it never does: decide what is too slow (it says that the bound is reached), or drop an event.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

from appliance.domain import ChoiceEnd, Delta, Final, Progress
from appliance.errors import ApplianceError

TicketEvent: TypeAlias = Progress | Delta | ChoiceEnd | Final


class Moved(Exception):
    """The end of a ticket whose request goes on elsewhere: its reader asks for another one."""


class EventQueue:
    """The events one reader has not read yet.

    Neighbouring deltas of one choice become one event, so a slow reader gets fewer, larger ones;
    the bound counts what came in, not what it was merged into.
    """

    def __init__(self, events_max: int) -> None:
        """Bound what may wait."""
        self._events_max = events_max
        self._events: deque[TicketEvent] = deque()
        self._weights: deque[int] = deque()  # how many puts each waiting event stands for
        self._waiting = 0
        self._news = asyncio.Event()
        self._error: ApplianceError | Moved | None = None
        self._ended = False

    def put(self, event: TicketEvent) -> bool:
        """Append an event; False: the bound is reached and nothing was appended."""
        if self._ended:
            return True
        last = self._events[-1] if self._events else None
        if isinstance(event, Progress) and isinstance(last, Progress):
            self._events[-1] = event
            return True
        if self._waiting >= self._events_max:
            return False
        self._waiting += 1
        if isinstance(event, Delta) and isinstance(last, Delta) and last.choice == event.choice:
            self._events[-1] = Delta(
                choice=event.choice,
                text=last.text + event.text,
                token_ids=last.token_ids + event.token_ids,
                logprobs=last.logprobs + event.logprobs,
            )
            self._weights[-1] += 1
        else:
            self._events.append(event)
            self._weights.append(1)
        self._news.set()
        return True

    def end(self, last: Final | ApplianceError | Moved) -> None:
        """Append the one end; further puts and ends are ignored.

        All but Final overtake what was not read: the reader learns of it at once.
        """
        if self._ended:
            return
        self._ended = True
        if isinstance(last, Final):
            self._events.append(last)
            self._weights.append(0)
        else:
            self._events.clear()
            self._error = last
        self._news.set()

    async def get(self) -> TicketEvent:
        """Wait for the next event.

        Raises:
            ApplianceError: the ticket ended in it.
            Moved: it goes on elsewhere.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        self._waiting -= self._weights.popleft()
        return self._events.popleft()
