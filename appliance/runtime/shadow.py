"""Repeat requests on a candidate while nobody waits for its answers, and throw the answers away.

What this room does: decides which requests are repeated and drops those there is no room for; asks
the candidate the way it would have been asked; counts how alike the answers are.
What it knows: a copy is of the lowest class, holds no place that a user could have, and is given up
before any user waits: while requests wait for the active version no copy begins.
What it never does: keep an answer or show it to anybody, or load.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec

from appliance.domain import (
    Constraint,
    Priority,
    Prompt,
    Sample,
    Value,
)
from appliance.errors import ApplianceError, Overloaded
from appliance.runtime import wire
from appliance.runtime.hosting import Hosting
from appliance.runtime.roles import Row, place
from appliance.runtime.served import Served
from appliance.runtime.text_process import TextProcess
from appliance.runtime.tickets import Job, Ticket

_ALL = 100.0
_SALT = "shadow"


class Copied(Value):
    """A user's request as it was asked for, before any version prepared it."""

    prompt: Prompt
    constraint: Constraint | None


class Shadow:
    """The copies under way. `run` owns their tasks."""

    def __init__(self, hosting: Hosting, text: TextProcess, *, streams_max: int) -> None:
        """Ask at most so many copies at a time."""
        self._hosting = hosting
        self._text = text
        self._streams_max = streams_max
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        """Count the copies under way."""
        return len(self._tasks)

    async def run(self) -> None:
        """Own the copies until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await asyncio.get_running_loop().create_future()  # for ever
        finally:
            self._group = None

    def offer(self, served: Served, row: Row, copied: Copied, ticket: Ticket) -> None:
        """Repeat a request that the active version was just asked, if it is one of those to repeat.

        Does not block. A copy there is no room for is counted and dropped.
        """
        share, digest, job = row.traffic.shadow_share, row.traffic.candidate, ticket.job
        if not share or digest is None or job.adapter or served.version.digest != row.active:
            return
        if place(served.version.model, _SALT, job.request_id) >= share * _ALL:
            return
        candidate = self._hosting.get(digest)
        if candidate is None or self._group is None or not candidate.answers:
            return
        if len(self._tasks) >= self._streams_max or served.book.waiting > 1:
            candidate.book.measure.drop_shadow()
            return
        task = self._group.create_task(self._repeat(candidate, copied, ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """Give up all copies: a version they are asked of goes, or is needed otherwise."""
        for task in tuple(self._tasks):
            task.cancel()

    async def _repeat(self, candidate: Served, copied: Copied, users: Ticket) -> None:
        try:
            ids = await self._answer(candidate, copied, users.job)
        except Overloaded:
            candidate.book.measure.drop_shadow()
            return
        except ApplianceError as error:
            candidate.book.measure.take(Sample(error=error.code, is_shadow=True))
            return
        users_ids = await users.over()
        if ids is not None and users_ids is not None:
            for answer, users_answer in zip(ids, users_ids, strict=True):
                candidate.book.measure.compare(answer, users_answer)

    async def _answer(
        self, candidate: Served, copied: Copied, users: Job
    ) -> tuple[tuple[int, ...], ...] | None:
        """Have the candidate answer; None: its ticket ended in an error, which was measured."""
        facts = candidate.answering()
        prepared = await self._text.prepare(
            wire.Prepare(
                ticket=0,
                key=candidate.version.digest,
                prompt=copied.prompt,
                constraint=copied.constraint,
                limit_tokens=facts.context_tokens,
                with_pieces=False,
            )
        )
        job = msgspec.structs.replace(
            users,
            prompt_ids=prepared.token_ids,
            constraint=prepared.constraint,
            priority=Priority.BATCH,
            client=None,
            cache_salt=_SALT,
            may_move=False,
            is_shadow=True,
        )
        ticket = candidate.admit(job)
        try:
            async with aclosing(ticket.events()) as events:
                async for _ in events:
                    pass
        except Overloaded:
            candidate.book.measure.drop_shadow()
        except ApplianceError:
            pass  # the ticket has told `measure`
        return await ticket.over()
