"""What is in memory of a file, as the kernel says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.runtime.pages import MappedFile, lockable_bytes

BYTES = 5 * 1024 * 1024 + 17


def a_file(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(os.urandom(BYTES))
    return path


def forget(path: Path) -> None:
    """Have the kernel give up the file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_what_has_left_memory_is_seen_and_brought_back(tmp_path: Path) -> None:
    path = a_file(tmp_path)
    with MappedFile(path) as mapped:
        assert mapped.resident_ratio() == 1.0
        assert mapped.touch() == 0
        forget(path)
        gone = mapped.resident_ratio()
        assert gone < 1.0
        assert mapped.touch() > 0
        assert mapped.resident_ratio() == 1.0


def test_what_is_locked_stays_in_memory(tmp_path: Path) -> None:
    path = a_file(tmp_path)
    assert lockable_bytes() >= BYTES, "this machine must let tests lock 6 MiB"
    with MappedFile(path) as mapped:
        assert not mapped.lock(BYTES - 1)
        assert mapped.locked_bytes == 0
        assert mapped.lock(lockable_bytes())
        assert mapped.locked_bytes == BYTES
        forget(path)
        assert mapped.resident_ratio() == 1.0
        mapped.unlock()
        assert mapped.locked_bytes == 0


def test_an_empty_file_is_all_there_and_a_missing_one_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with MappedFile(tmp_path / "empty") as mapped:
        assert mapped.resident_ratio() == 1.0
        assert mapped.touch() == 0
    mapped.close()
    with pytest.raises(FileNotFoundError):
        MappedFile(tmp_path / "missing")
