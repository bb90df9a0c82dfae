"""The pure parts of downloads: stretches, chunks out of streams, timetables, what may go."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Bandwidth, Config, Downloads
from appliance.config import Server as ServerSection
from appliance.contract.chunk_map import Chunk
from appliance.contract.release import BlobRef
from appliance.errors import DiskFull
from appliance.sync.progress import Account
from appliance.sync.retention import Kept, to_drop
from appliance.sync.spans import PIECE_BYTES, Cutter, Layout, Plan, layout_of
from appliance.sync.timetable import Timetable

DIGEST = "a" * 64


def _layout(*lengths: int) -> Layout:
    offsets = [sum(lengths[:number]) for number in range(len(lengths))]
    chunks = tuple(
        Chunk(offset=offset, length=length, sha256=b"")
        for offset, length in zip(offsets, lengths, strict=True)
    )
    blob = BlobRef(sha256=DIGEST, length=sum(lengths))
    return Layout(blob=blob, chunks=chunks, is_hashed=False)


# --- what is asked for ---------------------------------------------------------------------------


def test_a_request_asks_for_missing_chunks_that_lie_together() -> None:
    plan = Plan(_layout(*[PIECE_BYTES] * 10), [0, 1, 2, 5, 6, 9])
    assert plan.claim(2 * PIECE_BYTES, 1) == [0, 1]
    assert plan.claim(8 * PIECE_BYTES, 1) == [2]
    assert plan.claim(8 * PIECE_BYTES, 1) == [5, 6]
    plan.done(5)
    plan.give_back([5, 6])
    assert plan.claim_all() == [6, 9]
    assert plan.claim_all() == []
    assert not plan.is_complete
    for number in (0, 1, 2, 6, 9):
        plan.done(number)
    assert plan.is_complete


def test_the_end_of_a_file_is_shared_among_the_connections() -> None:
    plan = Plan(_layout(*[PIECE_BYTES] * 8), list(range(8)))
    assert plan.claim(8 * PIECE_BYTES, 4) == [0, 1]
    assert plan.claim(8 * PIECE_BYTES, 4) == [2]


def test_one_chunk_larger_than_a_request_is_asked_for_all_the_same() -> None:
    assert Plan(_layout(9 * PIECE_BYTES, 1), [0, 1]).claim(PIECE_BYTES, 1) == [0]


def test_a_file_without_a_map_is_cut_into_pieces() -> None:
    layout = layout_of(BlobRef(sha256=DIGEST, length=2 * PIECE_BYTES + 1), None)
    assert [chunk.length for chunk in layout.chunks] == [PIECE_BYTES, PIECE_BYTES, 1]
    assert not layout.is_hashed


def test_two_layouts_of_one_file_are_told_apart() -> None:
    assert _layout(3, 4).digest != _layout(4, 3).digest


@given(seed=st.integers(0, 2**32), breaks=st.integers(0, 5))
def test_chunks_come_out_of_any_pieces_also_after_breaks(seed: int, breaks: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 9) for _ in range(12)]
    layout, data = _layout(*lengths), draw.randbytes(sum(lengths))
    wanted = sorted(draw.sample(range(12), 5))
    cutter = Cutter(layout.chunks, wanted, bytearray(layout.chunk_bytes_max))
    found: dict[int, bytes] = {}
    while cutter.waits_for:
        start, stop = cutter.span
        position = draw.choice([0, start])  # a server may ignore Range
        end = draw.randint(start, stop) if breaks else stop
        breaks -= 1
        while position < end:
            piece = data[position : min(end, position + draw.randint(1, 7))]
            found |= {number: bytes(chunk) for number, chunk in cutter.feed(position, piece)}
            position += len(piece)
    assert found == {
        number: data[chunk.offset : chunk.offset + chunk.length]
        for number, chunk in enumerate(layout.chunks)
        if number in wanted
    }


# --- when how much -------------------------------------------------------------------------------


def _at(*when: int, zone: str = "UTC") -> int:
    moment = datetime(*when, tzinfo=ZoneInfo(zone))  # type: ignore[misc,arg-type]
    return int(moment.astimezone(UTC).timestamp() * 1000)


OFFICE = Bandwidth(days="mon-fri", begins="08:00", ends="18:00", bytes_per_s=100)
NIGHT = Bandwidth(days="fri", begins="22:00", ends="06:00", bytes_per_s=0)
WEEKEND = Bandwidth(days="sat,sun", bytes_per_s=7)


@pytest.mark.parametrize(
    ("when", "limit"),
    [
        ((2026, 11, 23, 7, 59), None),  # a Monday
        ((2026, 11, 23, 8, 0), 100),
        ((2026, 11, 23, 17, 59), 100),
        ((2026, 11, 23, 18, 0), None),
        ((2026, 11, 27, 22, 0), 0),  # Friday night
        ((2026, 11, 28, 5, 59), 0),  # goes on into Saturday
        ((2026, 11, 28, 6, 0), 7),
        ((2026, 11, 29, 23, 59), 7),
        ((2026, 11, 30, 0, 0), None),
    ],
)
def test_the_first_span_that_applies_holds(when: tuple[int, ...], limit: int | None) -> None:
    zone = "Europe/Zurich"
    table = Timetable((OFFICE, NIGHT, WEEKEND), otherwise=None, zone=ZoneInfo(zone))
    assert table.limit_at(_at(*when, zone=zone)) == limit


def test_the_configuration_says_when_how_much() -> None:
    downloads = Downloads(bytes_per_s=50)
    server = ServerSection(time_zone="Asia/Tokyo")
    table = Timetable.of(Config(server=server, downloads=downloads, bandwidth=(OFFICE,)))
    assert table.limit_at(_at(2026, 11, 23, 0, 0)) == 100  # nine in the morning there
    assert table.limit_at(_at(2026, 11, 23, 9, 0)) == 50
    assert Timetable.of(Config()).limit_at(0) is None


def test_an_hour_that_comes_twice_is_the_same_both_times() -> None:
    span = Bandwidth(days="sun-mon", begins="02:00", ends="03:00", bytes_per_s=5)
    table = Timetable((span,), otherwise=9, zone=ZoneInfo("Europe/Zurich"))
    hours = [table.limit_at(_at(2026, 10, 25, hour, 30)) for hour in range(4)]
    assert hours == [5, 5, 9, 9]  # 02:30 summer time, 02:30 winter time, 03:30, 04:30


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ((2026, 11, 23, 9, 0), ""),
        ((2026, 11, 23, 8, 0), "until 09:00"),
        ((2026, 11, 23, 23, 0), "until tue 09:00"),
        ((2026, 11, 27, 23, 0), "until mon 09:00"),
        ((2026, 11, 28, 9, 0), "until mon 09:00"),
    ],
)
def test_a_pause_says_until_when_it_lasts(when: tuple[int, ...], said: str) -> None:
    work = Bandwidth(days="mon-fri", begins="09:00", ends="18:00", bytes_per_s=100)
    table = Timetable((work, Bandwidth(bytes_per_s=0)), otherwise=None, zone=ZoneInfo("Asia/Tokyo"))
    assert table.pause_at(_at(*when, zone="Asia/Tokyo")).endswith(said)


def test_a_pause_that_never_ends_says_so() -> None:
    table = Timetable((Bandwidth(bytes_per_s=0),), otherwise=None, zone=None)
    assert table.pause_at(0) == "the timetable never lets downloads through"


# --- what may go ---------------------------------------------------------------------------------


def _kept(version: str, age: int, *digits: str, in_use: bool = False, model: str = "m") -> Kept:
    blobs = tuple(BlobRef(sha256=digit * 64, length=100) for digit in digits)
    return Kept(model=model, version=version, age=age, in_use=in_use, blobs=blobs)


def test_the_newest_versions_of_each_model_stay() -> None:
    kept = [_kept(str(9 - age), age, str(age)) for age in range(5)]
    kept.append(_kept("1", 0, "f", model="other"))
    dropped = to_drop(kept, versions_max=3, free_bytes=1000, floor_bytes=0)
    assert [one.version for one in dropped] == ["5", "6"]


def test_what_is_in_use_stays_whatever_the_space() -> None:
    kept = [_kept("3", 0, "3", in_use=True), _kept("2", 1, "2"), _kept("1", 2, "1", in_use=True)]
    dropped = to_drop(kept, versions_max=1, free_bytes=0, floor_bytes=10**9)
    assert [one.version for one in dropped] == ["2"]


def test_no_more_goes_than_the_floor_needs_and_shared_files_count_once() -> None:
    kept = [_kept("3", 0, "a", "3"), _kept("2", 1, "a", "2"), _kept("1", 2, "a", "1")]
    dropped = to_drop(kept, versions_max=9, free_bytes=50, floor_bytes=150)
    assert [one.version for one in dropped] == ["1"]
    dropped = to_drop(kept, versions_max=9, free_bytes=50, floor_bytes=151)
    assert [one.version for one in dropped] == ["1", "2"]


# --- how far -------------------------------------------------------------------------------------


def test_progress_never_goes_back_and_says_rate_and_time_left() -> None:
    account = Account(1000)
    account.found(100)
    account.seeded(100)
    account.fetched(100, 0)
    account.fetched(200, 1000)
    seen = account.progress(1000)
    assert (seen.verified_bytes, seen.fetched_bytes, seen.seeded_bytes) == (500, 300, 100)
    assert (seen.bytes_per_s, seen.seconds_left) == (200, 2.5)
    account.found(-300)
    account.fetched(100, 1000)
    assert account.progress(1000).verified_bytes == 500
    account.again()
    stop = DiskFull(path="x", needed_bytes=1, free_bytes=0)
    stopped = account.progress(2000, stop)
    assert (stopped.verified_bytes, stopped.bytes_per_s, stopped.stopped_by) == (500, 0, stop)
