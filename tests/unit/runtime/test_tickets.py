"""What a reader gets from a ticket, and what a worker is asked again after a loss."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from appliance.domain import (
    ChoiceEnd,
    Client,
    ClientKind,
    Delta,
    Final,
    FinishReason,
    Priority,
    Progress,
    RequestId,
)
from appliance.errors import ApplianceError, ClientTooSlow, RequestCancelled, WorkerLost
from appliance.runtime import wire
from appliance.runtime.event_queue import Moved, TicketEvent
from appliance.runtime.tickets import AnyTicket, EmbedJob, EmbedTicket, Job, Ticket


class Owner:
    """Makes tickets, and counts how they end."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[int, bool]] = []
        self._now_ms = itertools.count(100, 10)

    def ticket(self, n: int = 1, events_max: int = 64) -> Ticket:
        job = Job(request_id=RequestId("r"), prompt_ids=(1, 2, 3), seed=5, n=n)
        return Ticket(
            9,
            job,
            events_max=events_max,
            now_ms=90.0,
            clock=lambda: float(next(self._now_ms)),
            forget=self.forget,
        )

    def forget(self, ticket: AnyTicket, drop: bool) -> None:  # noqa: FBT001 - a callback
        self.forgotten.append((ticket.id, drop))


def _news(text: str, *ids: int, choice: int = 0, finish: FinishReason | None = None) -> wire.News:
    return wire.News(ticket=9, choice=choice, token_ids=ids, text=text, finish=finish)


def _read(ticket: Ticket) -> list[TicketEvent]:
    async def run() -> list[TicketEvent]:
        return [event async for event in ticket.events()]

    return asyncio.run(run())


def test_a_slow_reader_gets_fewer_larger_deltas_and_one_final() -> None:
    owner = Owner()
    ticket = owner.ticket()
    ticket.start()
    ticket.progress(wire.PrefillNews(ticket=9, done=1, total=3))
    ticket.progress(wire.PrefillNews(ticket=9, done=3, total=3, cached=2))
    ticket.advance(_news("a", 7))
    ticket.advance(_news("b", 8))
    ticket.advance(_news("", finish=FinishReason.STOP))
    progress, delta, end, final = _read(ticket)
    assert progress == Progress(prompt_tokens_done=3, prompt_tokens_total=3, cached_tokens=2)
    assert delta == Delta(choice=0, text="ab", token_ids=(7, 8))
    assert end == ChoiceEnd(choice=0, finish_reason=FinishReason.STOP)
    assert isinstance(final, Final)
    assert final.usage.completion_tokens == 2
    assert final.usage.cached_tokens == 2
    ticket.progress(wire.PrefillNews(ticket=9, done=3, total=3, cached=3))  # of a replay
    assert (final.timings.queue_ms, final.timings.first_token_ms) == (10.0, 20.0)
    assert owner.forgotten == [(9, False)]


def test_the_bound_counts_what_came_not_what_it_was_merged_into() -> None:
    owner = Owner()
    ticket = owner.ticket(events_max=4)
    for token in range(5):
        ticket.advance(_news("x", token))
    with pytest.raises(ClientTooSlow):
        _read(ticket)
    assert owner.forgotten == [(9, True)]


def test_a_ticket_ends_once() -> None:
    owner = Owner()
    ticket = owner.ticket()
    ticket.cancel()
    ticket.cancel()
    ticket.fail(ClientTooSlow(limit_events=1))
    with pytest.raises(RequestCancelled):
        _read(ticket)
    assert owner.forgotten == [(9, True)]


def test_a_worker_is_told_who_asks_with_which_share_and_class() -> None:
    client = Client(id="billing", kind=ClientKind.API_KEY, weight=2.0, user="ann")
    job = Job(
        request_id=RequestId("r"),
        prompt_ids=(1,),
        seed=5,
        client=client,
        priority=Priority.BATCH,
        cache_salt="s",
    )
    owner = Owner()
    ticket = Ticket(9, job, events_max=9, now_ms=0.0, clock=lambda: 0.0, forget=owner.forget)
    asked = ticket.submission()
    assert (asked.client, asked.weight, asked.priority) == ("billing", 2.0, Priority.BATCH)
    assert asked.cache_key == "billing\ns"
    assert owner.ticket().submission().weight == 1.0


def test_a_replay_asks_from_where_the_last_worker_ended() -> None:
    ticket = Owner().ticket(n=2)
    assert ticket.submission().accepted_ids == ()
    ticket.advance(_news("a", 7, choice=0))
    ticket.advance(_news("b", 8, choice=1, finish=FinishReason.LENGTH))
    again = ticket.submission()
    assert again.accepted_ids == ((7,), (8,))
    assert again.ended == (1,)
    assert (again.prompt_ids, again.seed, again.n) == ((1, 2, 3), 5, 2)


def test_an_embedding_ends_once_and_its_reader_gets_vectors_or_the_error() -> None:
    async def run() -> None:
        owner = Owner()
        job = EmbedJob(request_id=RequestId("r"), inputs=((1, 2), (3,)))
        done = EmbedTicket(1, job, "m@1", owner.forget)
        done.finish(wire.Embedded(ticket=1, size=1, vectors=(b"\0\0\0\0", b"\0\0\0\0")))
        done.cancel()
        result = await done.result()
        assert (result.version, result.prompt_tokens, len(result.vectors)) == ("m@1", 3, 2)
        failed = EmbedTicket(2, job, "m@1", owner.forget)
        failed.fail(RequestCancelled(), drop=False)
        with pytest.raises(ApplianceError):
            await failed.result()
        assert owner.forgotten == [(1, False), (2, False)]

    asyncio.run(run())


def test_a_ticket_with_no_answer_yet_moves_if_its_job_allows_it() -> None:
    async def run() -> None:
        owner = Owner()
        stays = owner.ticket()
        assert not stays.move()
        job = Job(request_id=RequestId("r"), prompt_ids=(1,), seed=5, may_move=True)
        for answered in (False, True):
            ticket = Ticket(
                9, job, events_max=9, now_ms=0.0, clock=lambda: 0.0, forget=owner.forget
            )
            if answered:
                ticket.advance(_news("a", 7))
            assert ticket.move() is not answered
            if not answered:
                assert not ticket.move()
                with pytest.raises(Moved):
                    async for _ in ticket.events():
                        pass
                assert await ticket.over() is None
                assert ticket.measured() is None
        assert owner.forgotten == [(9, True)]

    asyncio.run(run())


def test_a_ticket_that_has_ended_says_how_it_went() -> None:
    async def run() -> None:
        owner = Owner()
        ticket = owner.ticket()
        assert ticket.measured() is None
        for _ in range(60):
            ticket.advance(_news(" ", 7))
        ticket.advance(_news("", finish=FinishReason.LENGTH))
        sample = ticket.measured()
        assert sample is not None
        assert sample.is_empty
        assert sample.is_looping
        assert (sample.error, sample.prompt_tokens, sample.completion_tokens) == ("", 3, 60)
        assert sample.first_token_ms is not None
        assert sample.first_token_ms > 0
        assert sample.token_gap_ms == 10.0
        assert await ticket.over() == ((7,) * 60,)
        failed = owner.ticket()
        failed.fail(WorkerLost(cause="x", tokens_sent=0))
        sample = failed.measured()
        assert sample is not None
        assert sample.error == "WORKER_LOST"
        cancelled = owner.ticket()
        cancelled.cancel()
        assert cancelled.measured() is None

    asyncio.run(run())
