"""What is kept of a resumable stream, for whom, how long, and within which bounds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from appliance.api.held_stream import FRAME_BYTES, STREAM_BYTES
from appliance.api.resume import Frames, Put, Streams, place_of
from appliance.config import Limits
from appliance.domain import Client, ClientKind, RequestId
from appliance.errors import (
    ApplianceError,
    ClientTooSlow,
    DecodeFailed,
    Draining,
    InvalidRequest,
    RequestCancelled,
    StreamGone,
    StreamNotHeld,
    StreamTaken,
)
from appliance.observe.metrics import Metrics

ANN = Client(id="ann", kind=ClientKind.API_KEY)
BOB = Client(id="bob", kind=ClientKind.API_KEY)
ID = RequestId("r")
TEST_S = 10.0


class Source:
    """A request that yields what the test feeds it, until it is told its end."""

    def __init__(self) -> None:
        self.put: Put
        self.begun = asyncio.Event()
        self.gone = asyncio.Event()
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work(self, put: Put) -> None:
        self.put = put
        self.begun.set()
        try:
            await self.end
        finally:
            self.gone.set()


class House:
    """Streams that run, and their metrics."""

    def __init__(self, **limits: float) -> None:
        self.metrics = Metrics(version="test", series_max=64)
        self.streams = Streams(Limits(**{"resume_s": 60.0, **limits}), self.metrics)  # type: ignore[arg-type]

    async def left(self, *frames: bytes, request_id: RequestId = ID) -> Source:
        """Begin a stream of Ann's, read its first event and leave; the rest comes after that."""
        source = Source()
        async with aclosing(self.streams.open(ANN, request_id, source.work)) as reading:
            first = asyncio.ensure_future(anext(reading))
            await source.begun.wait()
            source.put(frames[0])
            await first
        for frame in frames[1:]:
            source.put(frame)
        return source

    def resume(self, from_seq: int = 0, client: Client = ANN, request_id: RequestId = ID) -> Frames:
        return self.streams.resume(client, request_id, from_seq)

    def dropped(self, bound: str) -> float:
        return self.metrics.value("appliance_stream_events_dropped_total", bound=bound)

    def resumes(self, code: str) -> float:
        return self.metrics.value("appliance_stream_resumes_total", code=code)


@asynccontextmanager
async def _running(**limits: float) -> AsyncIterator[House]:
    house = House(**limits)
    async with asyncio.timeout(TEST_S), asyncio.TaskGroup() as group:
        group.create_task(house.streams.run())
        await asyncio.sleep(0)
        try:
            yield house
        finally:
            house.streams.close()


def _in_a_house(test: Callable[[House], Awaitable[None]], **limits: float) -> None:
    async def main() -> None:
        async with _running(**limits) as house:
            await test(house)

    asyncio.run(main())


async def _all(frames: AsyncGenerator[tuple[int, bytes], None]) -> list[tuple[int, bytes]]:
    return [frame async for frame in frames]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_cut_where_the_parts_make_the_whole(seed: int) -> None:
    chance = random.Random(seed)
    whole = [(seq, bytes([chance.randrange(256)]) * chance.randrange(4)) for seq in range(60)]

    async def test(house: House) -> None:
        async def work(put: Put) -> None:
            for _, frame in whole:
                put(frame)
                if chance.random() < 0.5:
                    await asyncio.sleep(0)

        got: list[tuple[int, bytes]] = []
        reading = house.streams.open(ANN, ID, work)
        while len(got) < len(whole):
            cut = len(got) + chance.randrange(1, 20)
            async with aclosing(reading):
                async for frame in reading:
                    got.append(frame)
                    if len(got) == cut:
                        break
            reading = house.resume(len(got))
        assert got == whole
        assert await _all(reading) == []
        again = chance.randrange(len(whole))
        assert await _all(house.resume(again)) == whole[again:]

    _in_a_house(test)


def test_a_reader_who_comes_later_waits_for_news_and_for_the_end() -> None:
    async def test(house: House) -> None:
        source = await house.left(b"a")
        reading = house.resume(1)
        second = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        source.put(b"b")
        assert await second == (1, b"b")
        source.end.set_exception(DecodeFailed(reason="x"))
        for _ in range(2):
            with pytest.raises(DecodeFailed):
                await anext(reading)
            reading = house.resume(2)

    _in_a_house(test)


def test_a_second_reader_sends_the_first_away() -> None:
    async def test(house: House) -> None:
        source = await house.left(b"a")
        first, second = house.resume(1), house.resume(0)
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)
        assert await anext(second) == (0, b"a")
        with pytest.raises(StreamTaken):
            await waiting
        source.put(b"b")
        assert await anext(second) == (1, b"b")
        await second.aclose()

    _in_a_house(test)


def test_another_client_finds_nothing_and_an_id_is_held_once() -> None:
    async def test(house: House) -> None:
        source = await house.left(b"a")
        for client, request_id in ((BOB, ID), (ANN, RequestId("other"))):
            with pytest.raises(StreamNotHeld):
                await anext(house.resume(0, client, request_id))
        with pytest.raises(InvalidRequest, match="request_id: is that of a stream"):
            await anext(house.streams.open(BOB, ID, source.work))
        assert house.resumes("STREAM_NOT_HELD") == 2
        assert not source.gone.is_set()

    _in_a_house(test)


def test_an_event_that_went_is_named_with_what_is_still_there() -> None:
    async def test(house: House) -> None:
        source = await house.left(b"0", b"1", b"2", b"3", b"4")
        assert house.dropped("resume_events") == 2
        with pytest.raises(StreamGone) as gone:
            await anext(house.resume(1))
        assert gone.value.fields == {"from_seq": 1, "first_seq": 2, "last_seq": 4}
        assert house.resumes("STREAM_GONE") == 1
        for odd in (-1, 6):
            with pytest.raises(
                InvalidRequest, match=f"from_seq: is {odd}, and the next event is 5"
            ):
                await anext(house.resume(odd))
        source.end.set_result(None)
        assert await _all(house.resume(2)) == [(2, b"2"), (3, b"3"), (4, b"4")]

    _in_a_house(test, resume_events=3)


def test_a_reader_slower_than_the_ring_is_told_so() -> None:
    async def test(house: House) -> None:
        source = await house.left(b"0")
        reading = house.resume(0)
        await anext(reading)
        for frame in (b"1", b"2", b"3", b"4"):
            source.put(frame)
        with pytest.raises(ClientTooSlow):
            await anext(reading)

    _in_a_house(test, resume_events=3)


def test_who_does_not_come_back_in_time_is_cancelled() -> None:
    async def test(house: House) -> None:
        source = await house.left(b"a")
        await source.gone.wait()
        assert source.end.cancelled()
        assert len(house.streams) == 0
        with pytest.raises(StreamNotHeld):
            await anext(house.resume(1))

    _in_a_house(test, resume_s=0.05)


def test_a_stream_that_failed_before_its_first_event_is_not_kept() -> None:
    async def test(house: House) -> None:
        async def work(_put: Put) -> None:
            raise InvalidRequest(field="x", reason="y")

        with pytest.raises(InvalidRequest, match="x: y"):
            await anext(house.streams.open(ANN, ID, work))
        assert len(house.streams) == 0

    _in_a_house(test)


def test_a_bug_below_is_the_readers_error_and_ends_nothing_else() -> None:
    async def test(house: House) -> None:
        other = await house.left(b"a", request_id=RequestId("other"))

        async def work(_put: Put) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await anext(house.streams.open(ANN, ID, work))
        assert not other.gone.is_set()

    _in_a_house(test)


def test_all_together_stay_within_their_memory_and_ended_ones_go_first() -> None:
    limit = 65_536

    async def test(house: House) -> None:
        ended = await house.left(b"x" * 1000, request_id=RequestId("ended"))
        ended.end.set_result(None)
        await ended.gone.wait()
        sources = {
            name: await house.left(b"x" * 1000, request_id=RequestId(name)) for name in "abcd"
        }
        chance = random.Random(5)
        for _ in range(400):
            sources[chance.choice("aab")].put(b"x" * chance.randrange(2000))
            text = house.metrics.render()
            line = next(
                part for part in text.splitlines() if part.startswith("appliance_streams_held_b")
            )
            assert float(line.split()[-1]) <= limit
        with pytest.raises(StreamNotHeld):
            await anext(house.resume(0, request_id=RequestId("ended")))
        for name in "cd":  # the small ones kept what they had
            assert await anext(house.resume(0, request_id=RequestId(name))) == (0, b"x" * 1000)
        with pytest.raises(StreamGone):
            await anext(house.resume(0, request_id=RequestId("a")))
        assert house.dropped("resume_bytes") > 100

    _in_a_house(test, resume_bytes=limit)


def test_closing_cancels_what_runs_and_tells_its_reader() -> None:
    async def main() -> None:
        async with _running() as house:
            source = await house.left(b"a")
            reading = house.resume(1)
            waiting = asyncio.ensure_future(anext(reading))
            await asyncio.sleep(0)
            house.streams.close()
            with pytest.raises(RequestCancelled):
                await waiting
            assert source.gone.is_set()
            with pytest.raises(Draining):
                await anext(house.streams.open(ANN, ID, source.work))

    asyncio.run(main())


def test_what_is_counted_is_what_is_kept() -> None:
    async def test(house: House) -> None:
        await house.left(b"abc", b"de")
        page = house.metrics.render()
        assert f"appliance_streams_held_bytes {STREAM_BYTES + 2 * FRAME_BYTES + 5}" in page
        assert "appliance_streams_held 1\n" in page

    _in_a_house(test)


@pytest.mark.parametrize(
    ("from_seq", "last_event_id", "place"),
    [(None, None, 0), ("7", None, 7), (None, "7", 8), ("8", "7", 8)],
)
def test_the_place_to_go_on_from(
    from_seq: str | None, last_event_id: str | None, place: int
) -> None:
    assert place_of(from_seq, last_event_id) == place


@pytest.mark.parametrize(
    ("from_seq", "last_event_id", "field"),
    [
        ("x", None, "from_seq"),
        ("-1", None, "from_seq"),
        ("1" * 30, None, "from_seq"),
        ("", None, "from_seq"),
        (None, "a", "last-event-id"),
        ("7", "7", "from_seq"),
    ],
)
def test_a_place_that_is_none_is_refused(
    from_seq: str | None, last_event_id: str | None, field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        place_of(from_seq, last_event_id)
    assert refused.value.field == field
    assert isinstance(refused.value, ApplianceError)
