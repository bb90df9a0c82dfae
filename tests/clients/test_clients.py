"""The official OpenAI and Triton clients work unchanged, and buf agrees with the protos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.rest_calls import call
from tests.integration.stack import Stack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLIENT_TIMEOUT_S = 120.0

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]


def _run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=CLIENT_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_openai_for_python_2(stack: Stack, openai_2: Path) -> None:
    script = HERE / "openai_python.py"
    command: list[str | Path] = [sys.executable, "-P", script, f"{stack.rest_url}/v1"]
    assert _run(command, ROOT, PYTHONPATH=str(openai_2)).startswith("openai 2.")
    stack.wait_idle()


def test_openai_for_node(stack: Stack, npm_modules: Path) -> None:
    assert npm_modules.is_dir()
    assert _run(["node", "openai_node.mjs", f"{stack.rest_url}/v1"], HERE)
    stack.wait_idle()


def test_triton_for_python(stack: Stack, triton: Path) -> None:
    texts = ["The capital of France is", "Once upon a time, 你好"]
    script = HERE / "triton_python.py"
    command: list[str | Path] = [sys.executable, "-P", script, stack.grpc_tcp, "demo", *texts]
    told = json.loads(_run(command, ROOT, PYTHONPATH=str(triton)))
    body = {"model": "demo", "prompt": texts, "temperature": 0, "max_tokens": 24}
    answer = call(stack.rest_address, "POST", "/v1/completions", body).json
    assert told["answers"] == [choice["text"] for choice in answer["choices"]]
    assert told["reasons"] == [choice["finish_reason"] for choice in answer["choices"]]
    assert [tensor["name"] for tensor in told["metadata"]["inputs"]] == ["text_input"]
    for refusal, reason in zip(
        told["refusals"],
        ("temperature: must be", "did you mean 'max_tokens'?", "stream: is not served"),
        strict=True,
    ):
        assert refusal.startswith("StatusCode.INVALID_ARGUMENT")
        assert reason in refusal
    stack.wait_idle()


def test_buf_finds_nothing_to_say_about_the_protos(npm_modules: Path) -> None:
    _run([npm_modules / "buf", "lint"], ROOT)


def test_no_proto_breaks_the_clients_of_the_baseline(npm_modules: Path) -> None:
    baseline = "appliance/api/proto/baseline.binpb"
    _run([npm_modules / "buf", "breaking", "--against", baseline], ROOT)


def test_buf_curl_calls_by_reflection(stack: Stack, npm_modules: Path) -> None:
    command: list[str | Path] = [npm_modules / "buf", "curl", "--http2-prior-knowledge"]
    command += ["--protocol", "grpc", "--data"]
    url = f"http://{stack.grpc_tcp}/appliance.v1.InferenceService"
    text = _run([*command, '{"model":"demo","text":"Hello"}', f"{url}/Tokenize"], ROOT)
    assert '"tokenIds"' in text
    chat = '{"input":{"model":"demo","messages":[{"role":"ROLE_USER","content":"Hello!"}]}}'
    assert '"final"' in _run([*command, chat, f"{url}/ChatStream"], ROOT)
