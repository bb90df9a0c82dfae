"""Servers that lie, break, stall and drip: the file arrives, or the reason is named."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import msgspec
import pytest

from appliance.clock import monotonic_ms
from appliance.contract.names import blob_path
from appliance.errors import BlobCorrupt, HubUnreachable, SyncError
from tests.unit.sync.hostile import (
    CHUNK,
    QUICK,
    Answer,
    Asked,
    Server,
    a_file,
    fetching,
    head,
    honest,
)

Parts = Sequence[bytes | float]
DATA = random.Random(1).randbytes(20 * CHUNK + 77)


def _length(count: int) -> str:
    return f"Content-Length: {count}"


def _ranged(asked: Asked, content_range: str, *more: str) -> Parts:
    return head(206, f"Content-Range: {content_range}", _length(len(asked.part)), *more), asked.part


def _first(count: int, wrong: Answer) -> Answer:
    """Answer wrongly `count` times, then well."""
    return lambda asked: wrong(asked) if asked.number < count else honest(asked)


def _whole(asked: Asked) -> Parts:
    return head(200, _length(len(asked.whole))), asked.whole


def _whole_without_length(asked: Asked) -> Parts:
    return head(200), asked.whole


def _whole_in_http_chunks(asked: Asked) -> Parts:
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(cut), cut)
        for cut in (asked.whole[at : at + 9999] for at in range(0, len(asked.whole), 9999))
    )
    return head(200, "Transfer-Encoding: chunked"), chunks, b"0\r\n\r\n"


def _early(asked: Asked) -> Parts:
    start = max(0, asked.start - 1)
    whole = f"bytes {start}-{asked.stop - 2}/{len(asked.whole)}"
    return _ranged(asked, whole if asked.start else "bytes 1-9/9")


def _late(asked: Asked) -> Parts:
    return _ranged(asked, f"bytes {asked.start + 1}-{asked.stop - 1}/{len(asked.whole)}")


def _other_total(asked: Asked) -> Parts:
    return _ranged(asked, f"bytes {asked.start}-{asked.stop - 1}/{len(asked.whole) + 1}")


def _unknown_total(asked: Asked) -> Parts:
    return _ranged(asked, f"bytes {asked.start}-{asked.stop - 1}/*")


def _no_range(asked: Asked) -> Parts:
    return head(206, _length(len(asked.part))), asked.part


def _two_ranges(asked: Asked) -> Parts:
    return _ranged(asked, asked.range, f"Content-Range: {asked.range}")


def _garbled_range(asked: Asked) -> Parts:
    return _ranged(asked, "bytes ²-10/*&%")


def _other_unit(asked: Asked) -> Parts:
    return _ranged(asked, asked.range.replace("bytes", "items"))


def _negative_range(asked: Asked) -> Parts:
    return _ranged(asked, f"bytes -1-{asked.stop - 1}/{len(asked.whole)}")


def _huge_range(asked: Asked) -> Parts:
    return _ranged(asked, f"bytes 0-{'9' * 400}/{'9' * 400}")


def _multipart(asked: Asked) -> Parts:
    return head(206, "Content-Type: multipart/byteranges; boundary=x"), b"--x\r\n\r\n" + asked.part


def _short_length(asked: Asked) -> Parts:
    return head(206, f"Content-Range: {asked.range}", _length(len(asked.part) - 1)), asked.part


def _long_length(asked: Asked) -> Parts:
    return head(206, f"Content-Range: {asked.range}", _length(len(asked.part) + 9)), asked.part


def _garbled_length(asked: Asked) -> Parts:
    return head(206, f"Content-Range: {asked.range}", "Content-Length: many"), asked.part


def _cut_short(asked: Asked) -> Parts:
    return honest(asked)[0], asked.part[: 10_000 + asked.number]


def _cut_short_without_length(asked: Asked) -> Parts:
    return head(206, f"Content-Range: {asked.range}"), asked.part[:30_000]


def _more_than_asked(asked: Asked) -> Parts:
    return head(206, f"Content-Range: {asked.range}"), asked.part + b"x" * 100_000


def _other_whole_length(asked: Asked) -> Parts:
    return head(200, _length(len(asked.whole) - 5)), asked.whole[:-5]


def _compressed(asked: Asked) -> Parts:
    packed = gzip.compress(asked.part)
    lines = (f"Content-Range: {asked.range}", _length(len(packed)), "Content-Encoding: gzip")
    return head(206, *lines), packed


def _status(code: int, *lines: str) -> Answer:
    return lambda _: [head(code, *lines, _length(0))]


def _busy_until_a_date(_: Asked) -> Parts:
    return [head(503, f"Retry-After: {format_datetime(datetime.now(UTC), usegmt=True)}")]


def _stalls(asked: Asked) -> Parts:
    return honest(asked)[0], asked.part[:20_000], 0.6, asked.part[20_000:]


def _stalls_at_once(asked: Asked) -> Parts:
    return 0.6, *honest(asked)


def _drips_headers(_: Asked) -> Parts:
    return [part for byte in head(206)[:20] for part in (bytes([byte]), 0.05)]


def _another_tag(asked: Asked) -> Parts:
    return _ranged(asked, asked.range, f'ETag: "{asked.number}"')


def _closes(_: Asked) -> Parts:
    return []


def _no_http(_: Asked) -> Parts:
    return [b"220 mail.example.test ESMTP\r\n"]


def _endless_header(_: Asked) -> Parts:
    return [b"HTTP/1.1 206 OK\r\nX: " + b"x" * 1_000_000]


def _wrong_bytes(asked: Asked) -> Parts:
    return honest(asked)[0], bytes(len(asked.part))


def _moved_here(asked: Asked) -> Parts:
    return [head(307, f"Location: /{asked.path}?again", _length(0))]


GOES_ON_AFTER: dict[str, Answer] = {
    "honest": honest,
    "early range start": _first(3, _early),
    "late range start": _first(3, _late),
    "another total": _first(3, _other_total),
    "unknown total": _first(3, _unknown_total),
    "no Content-Range": _first(3, _no_range),
    "two of them": _first(3, _two_ranges),
    "a garbled one": _first(3, _garbled_range),
    "another unit": _first(3, _other_unit),
    "a negative one": _first(3, _negative_range),
    "a huge one": _first(3, _huge_range),
    "several parts": _first(3, _multipart),
    "Content-Length too short": _first(3, _short_length),
    "Content-Length too long": _first(3, _long_length),
    "Content-Length garbled": _first(3, _garbled_length),
    "cut short every time": _cut_short,
    "cut short without a length": _cut_short_without_length,
    "more than asked": _more_than_asked,
    "Range ignored": _whole,
    "Range ignored, no length": _whole_without_length,
    "Range ignored, in HTTP chunks": _whole_in_http_chunks,
    "Range ignored at first": _first(2, _whole),
    "Range ignored, another length": _first(3, _other_whole_length),
    "compressed": _first(3, _compressed),
    "416": _first(3, _status(416)),
    "500": _first(3, _status(500)),
    "503 and when to come back": _first(3, _status(503, "Retry-After: 0")),
    "429 and nonsense": _first(3, _status(429, "Retry-After: soon")),
    "503 until a date": _first(3, _busy_until_a_date),
    "stalls in the middle": _first(2, _stalls),
    "stalls at once": _first(2, _stalls_at_once),
    "drips its headers": _first(2, _drips_headers),
    "another entity tag each time": _another_tag,
    "down 3 times": _first(3, _closes),
    "down 20 times": _first(20, _closes),
    "no HTTP": _first(3, _no_http),
    "an endless header": _first(3, _endless_header),
    "wrong bytes once": _first(1, _wrong_bytes),
}
REFUSED_FOR: dict[str, tuple[Answer, type[SyncError], str]] = {
    "416 for ever": (_status(416), HubUnreachable, "shorter file"),
    "404 for ever": (_status(404), HubUnreachable, "404"),
    "down": (_closes, HubUnreachable, "isconnected"),
    "lying lengths": (_long_length, HubUnreachable, "announces"),
    "compressed": (_compressed, HubUnreachable, "encoded"),
    "redirects in a circle": (_moved_here, HubUnreachable, "more than 3 redirects"),
    "to another port": (
        _status(302, "Location: http://127.0.0.1:9/x"),
        HubUnreachable,
        "another origin",
    ),
    "to another scheme": (_status(302, "Location: file:///x"), HubUnreachable, "no address"),
    "to nowhere": (_status(302), HubUnreachable, "another origin"),
    "to nonsense": (_status(302, "Location: http://[:x"), HubUnreachable, "redirect"),
    "wrong bytes": (_wrong_bytes, BlobCorrupt, "no source has the right bytes"),
}


@pytest.mark.parametrize("case", GOES_ON_AFTER)
@pytest.mark.parametrize("has_map", [True, False], ids=["chunk map", "no map"])
def test_the_file_arrives_although(case: str, tmp_path: Path, *, has_map: bool) -> None:
    wanted, files = a_file(DATA)
    wanted = wanted if has_map else msgspec.structs.replace(wanted, chunk_map=None)
    server = Server(files, GOES_ON_AFTER[case])

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([wanted])
            path = store.path_of(wanted.blob.sha256)
            assert path.read_bytes() == DATA
            assert path.stat().st_mode & 0o777 == 0o444
            assert list((tmp_path / "staging").iterdir()) == []

    asyncio.run(run())


@pytest.mark.parametrize("case", REFUSED_FOR)
def test_the_reason_is_named_and_an_honest_server_helps(case: str, tmp_path: Path) -> None:
    answer, error, reason = REFUSED_FOR[case]
    wanted, files = a_file(DATA)
    path = blob_path(wanted.blob.sha256)
    server = Server(files, lambda asked: answer(asked) if asked.path == path else honest(asked))

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            with pytest.raises(error, match=reason):
                await fetcher.fetch_now([wanted])
            assert not store.has(wanted.blob)
            server.answer = honest
            await fetcher.fetch_now([wanted])
            assert store.path_of(wanted.blob.sha256).read_bytes() == DATA

    asyncio.run(run())


def test_a_redirect_within_the_server_is_followed(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    moved = {f"cache/{path}": data for path, data in files.items()}
    server = Server(files | moved)

    def answer(asked: Asked) -> Parts:
        if asked.path.startswith("cache/"):
            return honest(asked)
        return [head(302, f"Location: /cache/{asked.path}", _length(0))]

    server.answer = answer

    async def run() -> None:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            await fetcher.fetch_now([wanted])
            assert store.has(wanted.blob)

    asyncio.run(run())


def test_a_source_that_drips_is_left_for_another_and_its_bytes_are_kept(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    path = blob_path(wanted.blob.sha256)

    def drip(asked: Asked) -> Parts:
        if asked.path != path:
            return honest(asked)
        cuts = [asked.part[at : at + 2000] for at in range(0, len(asked.part), 2000)]
        return [honest(asked)[0], *(part for cut in cuts for part in (cut, 0.03))]

    slow, quick = Server(files, drip), Server(files)
    settings = msgspec.structs.replace(QUICK, bytes_per_s_min=10**6, rate_window_s=0.3)

    async def run() -> None:
        async with (
            slow.running(),
            quick.running(),
            fetching(tmp_path, slow, quick, settings=settings) as (fetcher, store),
        ):
            await fetcher.fetch_now([wanted])
            assert store.has(wanted.blob)

    asyncio.run(run())
    assert 0 < quick.sent_bytes < len(DATA)  # what came in drops was not asked for again


def test_a_mirror_with_wrong_bytes_is_asked_twice_and_no_more(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    path = blob_path(wanted.blob.sha256)
    liar = Server(files, lambda asked: (_wrong_bytes if asked.path == path else honest)(asked))
    hub = Server(files)

    async def run() -> None:
        async with liar.running(), hub.running(), fetching(tmp_path, liar, hub) as (fetcher, store):
            await fetcher.fetch_now([wanted])
            assert store.has(wanted.blob)

    asyncio.run(run())
    assert sum(one.path == path for one in liar.asked) <= QUICK.connections + 1


def test_an_idle_connection_takes_over_half_of_what_a_slow_one_waits_for(tmp_path: Path) -> None:
    wanted, files = a_file(DATA)
    path = blob_path(wanted.blob.sha256)

    def answer(asked: Asked) -> Parts:
        if asked.path != path or asked.start:
            return honest(asked)
        cuts = [asked.part[at : at + 1500] for at in range(0, len(asked.part), 1500)]
        return [honest(asked)[0], *(part for cut in cuts for part in (cut, 0.1))]

    server = Server(files, answer)
    alone_s = QUICK.request_bytes / 1500 * 0.1

    async def run() -> float:
        async with server.running(), fetching(tmp_path, server) as (fetcher, store):
            began = monotonic_ms()
            await fetcher.fetch_now([wanted])
            assert store.has(wanted.blob)
            return (monotonic_ms() - began) / 1000

    assert asyncio.run(run()) < alone_s * 0.8
