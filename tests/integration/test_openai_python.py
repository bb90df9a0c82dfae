"""The official OpenAI client for Python that is installed here (3.x) works unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.integration.stack import Stack

SCRIPT = Path(__file__).resolve().parents[1] / "clients" / "openai_python.py"
CLIENT_TIMEOUT_S = 120.0


def test_openai_for_python(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, f"{stack.rest_url}/v1"],
        capture_output=True,
        text=True,
        timeout=CLIENT_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.removeprefix("openai ").split(".")[0]) >= 3
    stack.wait_idle()
