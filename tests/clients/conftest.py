"""Install the clients of other worlds once, and run one appliance for all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stack import Stack

HERE = Path(__file__).resolve().parent
INSTALL_TIMEOUT_S = 170.0
_INSTALL = ("-m", "pip", "install", "--quiet", "--target")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run router, use case and both faces on the demo model."""
    running = Stack(tmp_path_factory.mktemp("stack"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def npm_modules() -> Path:
    """Install what package.json names beside it; return the directory of its programs."""
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund"],
        cwd=HERE,
        check=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    return HERE / "node_modules" / ".bin"


@pytest.fixture(scope="session")
def openai_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the last 2.x of the Python client into a directory of its own."""
    target = tmp_path_factory.mktemp("openai-2")
    subprocess.run(
        [sys.executable, *_INSTALL, target, "openai<3"],
        check=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    return target


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install NVIDIA's Python client, with the grpcio and numpy it wants, into one directory."""
    target = tmp_path_factory.mktemp("triton")
    subprocess.run(
        [sys.executable, *_INSTALL, target, "tritonclient[grpc]"],
        check=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    return target
