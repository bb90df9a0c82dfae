"""The whole appliance, once for all tests of this directory that need both faces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.config import Engine, Limits, Rest
from tests.integration.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run router, use case and both faces on the demo model."""
    running = Stack(tmp_path_factory.mktemp("stack"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def strict_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a second appliance with short timeouts, few connections, and room for one to wait."""
    rest = Rest(
        tcp="127.0.0.1:0",
        connections_max=8,
        head_timeout_s=1.0,
        body_timeout_s=1.0,
        write_timeout_s=1.0,
        allowed_origins=("http://app.example:3000",),
    )
    running = Stack(
        tmp_path_factory.mktemp("strict"),
        engine=Engine(context_tokens=1024, sequences_max=16, threads=1),
        limits=Limits(queue_requests=1),
        rest=rest,
    )
    running.start()
    yield running
    running.stop()
