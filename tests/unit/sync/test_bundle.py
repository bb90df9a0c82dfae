"""A bundle from a stick: nothing in it is followed, unpacked, or read beyond its bounds."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import DocumentRefused, HubUnreachable, Untrusted
from appliance.sync import bundle
from appliance.sync.bundle import open_bundle

BLOB = "blobs/sha256/ab/" + "ab" * 32


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for field, value in fields.items():
        setattr(made, field, value)
    return made, data


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_tar_is_read_where_it_lies(tmp_path: Path) -> None:
    made = packed(
        tmp_path / "a.tar",
        member("./metadata", type=tarfile.DIRTYPE),
        member("./metadata/1.root.json", b"root"),
        member(f"./{BLOB}", b"weights"),
    )
    opened = open_bundle(made)
    with opened.opened() as reader:
        assert reader.read("metadata/1.root.json", 4) == b"root"
        assert reader.read("metadata/2.root.json", 4) is None
        with pytest.raises(Untrusted, match="at most 3"):
            reader.read("metadata/1.root.json", 3)
    place = opened.blob("ab" * 32)
    assert place is not None
    with made.open("rb") as file:
        assert os.pread(file.fileno(), place.length, place.offset) == b"weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


@pytest.mark.parametrize(
    "trick",
    [
        member("../metadata/a.json"),
        member("/metadata/a.json"),
        member("metadata/../../a.json"),
        member("metadata/a.txt"),
        member("somewhere/a.json"),
        member("targets"),
        member("blobs/sha256/ab/short"),
        member("metadata/a\udcff.json"),
        member("metadata/" + "a" * 300 + ".json"),
        member("metadata/a.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("metadata/a.json", type=tarfile.LNKTYPE, linkname="metadata/b.json"),
        member("metadata/a.json", type=tarfile.CHRTYPE),
        member("metadata/a.json", type=tarfile.BLKTYPE),
        member("metadata/a.json", type=tarfile.FIFOTYPE),
        member("metadata/a.json", type=tarfile.CONTTYPE),
        member("..", type=tarfile.DIRTYPE),
        member("metadata/../..", type=tarfile.DIRTYPE),
    ],
    ids=lambda one: ascii(one[0].name)[:30] + str(one[0].type),
)
def test_path_tricks_links_and_devices_in_a_tar(
    tmp_path: Path, trick: tuple[tarfile.TarInfo, bytes]
) -> None:
    made = packed(tmp_path / "a.tar", trick)
    with pytest.raises(DocumentRefused, match="is no file of metadata, targets or blobs") as caught:
        open_bundle(made)
    assert str(caught.value).isascii()


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    made = packed(tmp_path / "a.tar", member("metadata/a.json"), member("./metadata/a.json"))
    with pytest.raises(DocumentRefused, match="is there twice"):
        open_bundle(made)


def test_more_members_than_a_bundle_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MEMBERS_MAX", 2)
    members = [member(f"metadata/{number}.root.json") for number in range(3)]
    with pytest.raises(DocumentRefused, match="beyond 2 members"):
        open_bundle(packed(tmp_path / "a.tar", *members))


def huge_header(path: Path) -> None:
    """Announce a long name of many megabytes, as a sparse file could hold."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 1 << 33)


def cut_short(path: Path) -> None:
    packed(path, member("metadata/a.json", b"x" * 100_000))
    os.truncate(path, 1024)


def compressed(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member("metadata/a.json")[0])


@pytest.mark.parametrize(
    "make",
    [
        huge_header,
        cut_short,
        compressed,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(4096)),
        lambda path: path.write_bytes(b"\0" * 10),
    ],
    ids=["huge header", "cut short", "compressed", "empty", "noise", "ten zeros"],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "a.tar")
    with pytest.raises(DocumentRefused):
        open_bundle(tmp_path / "a.tar")


def test_nothing_there_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(HubUnreachable, match="No such file"):
        open_bundle(tmp_path / "a.tar")


def test_a_blob_of_a_directory_is_a_file_and_no_link(tmp_path: Path) -> None:
    (tmp_path / BLOB).parent.mkdir(parents=True)
    (tmp_path / BLOB).symlink_to("/etc/passwd")
    opened = open_bundle(tmp_path)
    assert opened.blob("ab" * 32) is None
    (tmp_path / BLOB).unlink()
    (tmp_path / BLOB).write_bytes(b"weights")
    place = opened.blob("ab" * 32)
    assert place is not None
    assert (place.offset, place.length) == (0, 7)
    with pytest.raises(DocumentRefused, match="sha256"):
        opened.blob("../../etc/passwd")
