"""Know what is on a disk when the power goes, from what a program did to its files.

What this room does: reads the records of `shim.c`; plays them on a model of a disk; writes down
what the disk would hold after a power cut, in three ways.
What it knows: data are there for certain after an fsync of the file, names after one of the
directory. Without, each may be there, or not, or in part:

| loss | data that were not synced | names that were not synced |
|---|---|---|
| `all` | are gone | are as they were |
| `data` | are gone | are there: files can be empty |
| `some` | some writes are there, the last of them torn | the first few changes are there |

What it never does: look at what the files mean.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

_HEAD = struct.Struct("<IQQII")
_SECTOR = 512
LOSSES = ("all", "data", "some")
(
    _CREATE,
    _WRITE,
    _TRUNCATE,
    _SYNC,
    _RENAME,
    _UNLINK,
    _MKDIR,
    _SYMLINK,
    _LINK,
    _EXTEND,
    _SYNC_DIR,
) = range(1, 12)


@dataclass(slots=True)
class Record:
    """One thing that was done. `number`: an offset or a length."""

    kind: int
    inode: int
    number: int
    first: bytes
    second: bytes


@dataclass(slots=True)
class File:
    """A file: what is there for certain, and what was done since."""

    durable: bytes = b""
    pending: list[Record] = field(default_factory=list)

    def apply(self, records: list[Record]) -> bytes:
        """Tell the content after these."""
        data = bytearray(self.durable)
        for one in records:
            if one.kind == _WRITE:
                data.extend(bytes(max(0, one.number - len(data))))
                data[one.number : one.number + len(one.first)] = one.first
            elif one.kind == _TRUNCATE:
                data.extend(bytes(max(0, one.number - len(data))))
                del data[one.number :]
            else:
                data.extend(bytes(max(0, one.number - len(data))))
        return bytes(data)

    def sync(self) -> None:
        """Make all of it certain."""
        self.durable, self.pending = self.apply(self.pending), []

    def after(self, loss: str, draw: random.Random) -> bytes:
        """Tell the content after a power cut."""
        if loss != "some" or not self.pending:
            return self.durable
        kept = [one for one in self.pending if draw.random() < 0.5]  # noqa: PLR2004 - a coin
        if kept and kept[-1].kind == _WRITE:
            last = kept[-1]
            torn = draw.randrange(0, len(last.first) + 1, _SECTOR)
            kept[-1] = Record(_WRITE, last.inode, last.number, last.first[:torn], b"")
        return self.apply(kept)


Names: TypeAlias = "dict[str, File | Directory | bytes]"  # bytes: where a link leads


@dataclass(slots=True)
class Directory:
    """A directory: its names now, those that are there for certain, and each step between."""

    now: Names = field(default_factory=dict)
    steps: list[Names] = field(default_factory=lambda: [{}])

    def change(self) -> None:
        """Note that the names have changed."""
        self.steps.append(dict(self.now))

    def sync(self) -> None:
        """Make the names certain."""
        self.steps = [dict(self.now)]

    def after(self, loss: str, draw: random.Random) -> Names:
        """Tell the names after a power cut."""
        if loss == "some":
            return draw.choice(self.steps)
        return self.now if loss == "data" else self.steps[0]


class Disk:
    """A directory and all below it, as a program changes it."""

    def __init__(self, below: Path) -> None:
        """Begin with what is there, all of it certain."""
        self._below = str(below.resolve())
        self._inodes: dict[int, File] = {}
        self._root = self._read(Path(self._below))

    def play(self, one: Record) -> None:
        """Let something be done."""
        if one.kind in (_WRITE, _TRUNCATE, _EXTEND):
            self._inodes[one.inode].pending.append(one)
        elif one.kind == _SYNC:
            self._inodes[one.inode].sync()
        elif one.kind == _SYNC_DIR:
            self._directory(self._parts(one.first)).sync()
        else:
            self._rename_or_make(one)

    def write(self, to: Path, loss: str, seed: int) -> None:
        """Write down what the disk holds after a power cut now."""
        _write(self._root, to, loss, random.Random(seed))

    def fingerprint(self, loss: str, seed: int) -> str:
        """Tell disks apart without writing them."""
        digest = hashlib.sha256()
        for line in _lines(self._root, "", loss, random.Random(seed)):
            digest.update(line)
        return digest.hexdigest()

    def _rename_or_make(self, one: Record) -> None:
        parent, name = self._place(one.first)
        if one.kind == _CREATE:
            parent.now[name] = self._inodes[one.inode] = File()
        elif one.kind == _MKDIR:
            parent.now[name] = Directory()
        elif one.kind == _SYMLINK:
            parent.now[name] = one.second
        elif one.kind == _UNLINK:
            del parent.now[name]
        else:
            other, new = self._place(one.second)
            other.now[new] = parent.now[name]
            if one.kind == _RENAME:
                del parent.now[name]
            if other is not parent:
                other.change()
        parent.change()

    def _read(self, path: Path) -> Directory:
        found = Directory()
        for entry in path.iterdir():
            if entry.is_symlink():
                found.now[entry.name] = str(entry.readlink()).encode()
            elif entry.is_dir():
                found.now[entry.name] = self._read(entry)
            else:
                file = File(durable=entry.read_bytes())
                found.now[entry.name] = self._inodes[entry.stat().st_ino] = file
        found.sync()
        return found

    def _parts(self, path: bytes) -> list[str]:
        return path.decode().removeprefix(self._below).strip("/").split("/")

    def _place(self, path: bytes) -> tuple[Directory, str]:
        *above, name = self._parts(path)
        return self._directory(above), name

    def _directory(self, parts: list[str]) -> Directory:
        found: Directory = self._root
        for part in parts:
            if part:
                below = found.now[part]
                assert isinstance(below, Directory), parts
                found = below
        return found


def read(log: Path) -> Iterator[Record]:
    """Read what a program did."""
    data, at = log.read_bytes(), 0
    while at < len(data):
        kind, inode, number, first, second = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield Record(
            kind,
            inode,
            number,
            data[at : at + first],
            data[at + first : at + first + second],
        )
        at += first + second


def _write(directory: Directory, to: Path, loss: str, draw: random.Random) -> None:
    to.mkdir()
    for name, node in directory.after(loss, draw).items():
        if isinstance(node, Directory):
            _write(node, to / name, loss, draw)
        elif isinstance(node, File):
            (to / name).write_bytes(node.after(loss, draw))
        else:
            (to / name).symlink_to(node.decode())


def _lines(directory: Directory, place: str, loss: str, draw: random.Random) -> Iterator[bytes]:
    for name, node in directory.after(loss, draw).items():
        yield f"{place}/{name}\n".encode()
        if isinstance(node, Directory):
            yield from _lines(node, f"{place}/{name}", loss, draw)
        elif isinstance(node, File):
            yield hashlib.sha256(node.after(loss, draw)).digest()
        else:
            yield node
