"""A source gives a whole small file in time, or says why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import Refresh
from appliance.errors import ConfigError, HubUnreachable, Untrusted
from appliance.sync.fetcher import DirectoryMetadata, HttpMetadata, tls_context
from tests.integration.loopback_hub import (
    Answer,
    LoopbackHub,
    cut,
    drip,
    drip_head,
    endless,
    redirect,
    serving,
    silent,
    status,
)
from tests.integration.loopback_tls import Papers, issue, server_context

HASTY = Refresh(deadline_s=1.0, stall_s=0.3, bytes_per_s_min=10_000)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with serving({"metadata/a.json": b"whole", "elsewhere": b"moved"}) as running:
        yield running


def read(hub: LoopbackHub, path: str = "metadata/a.json", bytes_max: int = 5) -> bytes | None:
    with HttpMetadata(hub.url, HASTY, tls=None).opened() as reader:
        return reader.read(path, bytes_max)


def test_a_file_comes_whole_and_one_that_is_not_there_is_an_answer(hub: LoopbackHub) -> None:
    assert read(hub) == b"whole"
    assert read(hub, "metadata/b.json") is None
    hub.answers["metadata/a.json"] = status(403)
    assert read(hub) is None


def test_one_connection_serves_all_reads_of_an_opening(hub: LoopbackHub) -> None:
    with HttpMetadata(hub.url, HASTY, tls=None).opened() as reader:
        assert [reader.read("metadata/a.json", 5) for _ in range(3)] == [b"whole"] * 3


def test_longer_than_asked_is_refused_before_it_is_read(hub: LoopbackHub) -> None:
    with pytest.raises(Untrusted, match="at most 4"):
        read(hub, bytes_max=4)
    hub.answers["metadata/a.json"] = endless
    with pytest.raises(Untrusted, match="at most 5"):
        read(hub)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(500), "answered 500"),
        (status(304), "answered 304"),
        (redirect, "answered 302"),
        (cut(b"whole"), "at metadata/a.json"),
        (drip, "less than 10000 bytes/s"),
        (drip_head, "within 1 s"),
    ],
    ids=["500", "304", "redirect", "cut", "drip", "drip_head"],
)
def test_what_is_no_whole_answer_in_time_has_a_reason(
    hub: LoopbackHub, answer: Answer, reason: str
) -> None:
    hub.answers["metadata/a.json"] = answer
    with pytest.raises(HubUnreachable, match=reason):
        read(hub, bytes_max=1000)


def test_silence_has_a_reason(hub: LoopbackHub) -> None:
    hub.answers["metadata/a.json"] = silent
    with pytest.raises(HubUnreachable, match=r"nothing for 0\.3 s"):
        read(hub)


def test_nobody_there_has_a_reason() -> None:
    with (
        HttpMetadata("http://127.0.0.1:1", HASTY, tls=None).opened() as reader,
        pytest.raises(HubUnreachable, match="Cannot connect"),
    ):
        reader.read("metadata/a.json", 5)


def test_the_clear_is_used_only_where_no_tls_is_given(tmp_path: Path) -> None:
    papers = issue(tmp_path, "ca")
    with pytest.raises(ConfigError, match="https"):
        HttpMetadata("http://hub", HASTY, tls=tls_context(papers.ca, None, None))
    with pytest.raises(ConfigError, match="http://"):
        HttpMetadata("https://hub", HASTY, tls=None)
    with pytest.raises(ConfigError, match="nothing"):
        tls_context(tmp_path / "nothing.pem", None, None)
    with pytest.raises(ConfigError):
        tls_context(papers.ca, papers.ca, papers.key)


def test_both_ends_show_certificates_of_the_hubs_ca(tmp_path: Path) -> None:
    ours, theirs = issue(tmp_path, "ours"), issue(tmp_path, "theirs")
    with serving({"metadata/a.json": b"whole"}, tls=server_context(ours)) as hub:

        def read_with(ca: Path, papers: Papers | None) -> bytes | None:
            context = tls_context(
                ca, papers.certificate if papers else None, papers.key if papers else None
            )
            with HttpMetadata(hub.url, HASTY, tls=context).opened() as reader:
                return reader.read("metadata/a.json", 5)

        assert read_with(ours.ca, ours) == b"whole"
        for ca, papers in ((theirs.ca, ours), (ours.ca, theirs), (ours.ca, None)):
            with pytest.raises(HubUnreachable):
                read_with(ca, papers)


def test_a_proxy_is_asked_where_one_is_configured(hub: LoopbackHub) -> None:
    hub.files["http://hub.example/metadata/a.json"] = b"by proxy"
    source = HttpMetadata("http://hub.example", HASTY, tls=None, proxy=hub.url)
    with source.opened() as reader:
        assert reader.read("metadata/a.json", 10) == b"by proxy"


def test_the_environment_names_no_proxy(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert read(hub) == b"whole"


def test_a_directory_gives_files_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_bytes(b"secret")
    stick = tmp_path / "stick"
    (stick / "metadata").mkdir(parents=True)
    (stick / "metadata" / "a.json").write_bytes(b"whole")
    (stick / "metadata" / "link.json").symlink_to(outside)
    (stick / "metadata" / "folder.json").mkdir()
    (stick / "targets").symlink_to(tmp_path)
    os.mkfifo(stick / "metadata" / "pipe.json")
    with DirectoryMetadata(stick).opened() as reader:
        assert reader.read("metadata/a.json", 5) == b"whole"
        assert reader.read("metadata/b.json", 5) is None
        for trick in (
            "../outside.json",
            "/etc/passwd",
            "metadata//a.json",
            "",
            "metadata/./a.json",
        ):
            assert reader.read(trick, 100) is None
        with pytest.raises(Untrusted, match="at most 4"):
            reader.read("metadata/a.json", 4)
        for name in ("link", "folder", "pipe"):
            with pytest.raises(HubUnreachable):
                reader.read(f"metadata/{name}.json", 100)
        assert reader.read("targets/outside.json", 100) is None
    with (
        pytest.raises(HubUnreachable, match="No such file"),
        DirectoryMetadata(tmp_path / "gone").opened(),
    ):
        pass
