"""The program that makes `.venv`: its reading of locks, and what it tells."""

from __future__ import annotations

import pwd
import re
import sys
import zipfile
from pathlib import Path

import pytest

from tools import bootstrap

LOCK = "a==1 \\\n    --hash=sha256:00\nb-c==2.0 ; python_version < '4' \\\n    --hash=sha256:01\n"


def test_a_lock_is_cut_into_entries_with_their_digests(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text(LOCK)
    found = dict(bootstrap.entries(path))
    assert list(found) == ["a", "b-c"]
    assert "".join(found.values()) == LOCK


def test_the_shipped_lock_is_cut_without_a_rest() -> None:
    path = bootstrap.ROOT / "requirements.lock"
    found = list(bootstrap.entries(path))
    assert "".join(text for _, text in found) == path.read_text()
    assert bootstrap.ENGINE in dict(found)


def test_a_command_that_fails_shows_the_end_of_its_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = "print('first'); print('last'); raise SystemExit(3)"
    with pytest.raises(bootstrap.BootstrapError, match="compiling failed"):
        bootstrap.run([sys.executable, "-c", code], "compiling")
    assert capsys.readouterr().err == "first\nlast\n\n"


def test_long_work_tells_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "REPORT_EVERY_S", 0.0)
    show = bootstrap.progress("compiling")
    show("starting\n")
    show("[12/48] Building CXX object a.o\n")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"    compiling: \d+ s", lines[0])
    assert re.fullmatch(r"    compiling: 25 %, \d+ s", lines[1])


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.main(["--fast"]) == 64
    assert "--fast" in capsys.readouterr().out


def test_the_engine_is_named_by_everything_that_decides_its_content(tmp_path: Path) -> None:
    build = tmp_path / "build.lock"
    build.write_text("cmake==1")
    first = bootstrap.engine_key("engine==1", build)
    assert re.fullmatch(r"[0-9a-f]{32}", first)
    assert bootstrap.engine_key("engine==1", build) == first
    assert bootstrap.engine_key("engine==2", build) != first
    build.write_text("cmake==2")
    assert bootstrap.engine_key("engine==1", build) != first


@pytest.mark.parametrize("home", ["", None, "/proc/nowhere"])
def test_the_cache_is_not_needed_wherever_home_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", _nobody)
    wheel = tmp_path / "engine.whl"
    wheel.write_bytes(b"")
    cached = bootstrap.cache_directory()
    assert cached is None or home == "/proc/nowhere"
    assert bootstrap.keep(wheel, cached) == wheel


def _nobody(_uid: int) -> pwd.struct_passwd:
    raise KeyError


def test_a_damaged_wheel_in_the_cache_is_not_taken(tmp_path: Path) -> None:
    assert bootstrap.cached_wheel(None) is None
    assert bootstrap.cached_wheel(tmp_path / "none") is None
    wheel = tmp_path / "engine.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a", "content")
    assert bootstrap.cached_wheel(tmp_path) == wheel
    kept = bootstrap.keep(wheel, tmp_path / "other")
    assert bootstrap.cached_wheel(kept.parent) == kept
    whole = wheel.read_bytes()
    wheel.write_bytes(whole.replace(b"content", b"CONTENT"))
    assert bootstrap.cached_wheel(tmp_path) is None
    wheel.write_bytes(whole[:-10])
    assert bootstrap.cached_wheel(tmp_path) is None
