"""Nothing listens beyond this machine, and no live socket is taken over."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from appliance.api.listen import claim_unix_path, loopback_address, shown
from appliance.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("127.9.9.9:1", ("127.9.9.9", 1)),
    ],
)
def test_loopback_is_read(value: str, address: tuple[str, int]) -> None:
    assert loopback_address("k", value) == address
    assert loopback_address("k", shown(*address)) == address


@pytest.mark.parametrize(
    "value", ["", "80", "0.0.0.0:80", "[::]:80", "example.org:80", "127.0.0.1:65536", "127.0.0.1:x"]
)
def test_everything_else_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        loopback_address("k", value)


def test_a_socket_nobody_answers_on_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    claim_unix_path("k", path)
    assert not path.exists()


def test_a_socket_somebody_answers_on_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(1)
        with pytest.raises(ConfigError, match="answers"):
            claim_unix_path("k", path)
    assert path.exists()


def test_another_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        claim_unix_path("k", path)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="107"):
        claim_unix_path("k", tmp_path / ("x" * 120))
