"""The commands against a real daemon on the demo model."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from appliance.api.proto import inference_pb2 as pb
from appliance.cli.main import main
from tests.integration.daemons import RunningDaemon, environment, program

PROMPT = "What is 12 + 30?"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running.ready()


@pytest.fixture
def run(daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a client command in this process against the daemon; returns code, stdout, stderr."""

    def command(verb: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([verb, "--address", daemon.address, *arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return command


def test_status_tells_models_states_load_and_workers(daemon: RunningDaemon, run: Run) -> None:
    code, out, _ = run("status", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["address"] == daemon.address
    (model,) = shown["models"]
    assert (model["state"], model["role"], model["origin"]) == ("ready", "active", "local")
    assert model["version"] == "2"
    assert model["worker_pid"] in {child.pid for child in daemon.children()}
    assert model["kv_cells_used"] == 0 < model["facts"]["context_tokens"]
    assert model["facts"]["memory_kind"] == "cuttable"
    assert model["facts"]["cache_layout"] == "unified"
    assert model["facts"]["cache_layout_reason"]


def test_status_shows_a_person_one_row_for_each_model(run: Run) -> None:
    _, out, _ = run("status")
    heading, row = out.splitlines()
    assert heading.startswith("MODEL")
    assert "@2" in row
    assert "active (local)" in row


def test_a_daemon_is_found_by_its_runtime_directory(
    daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json", "--runtime-dir", str(daemon.runtime_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["models"]


def test_the_cli_gives_the_tokens_that_grpc_and_rest_give(daemon: RunningDaemon, run: Run) -> None:
    options = ("--temperature", "0.8", "--seed", "7", "--max-tokens", "24", "--ignore-eos")
    _, out, _ = run("generate", "--json", *options, PROMPT)
    (choice,) = json.loads(out)["choices"]
    with grpc.insecure_channel(daemon.address) as channel:
        call = channel.unary_unary(
            "/appliance.v1.InferenceService/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        request = pb.GenerateRequest(
            input=pb.GenerateInput(
                text=PROMPT,
                sampling=pb.SamplingOptions(temperature=0.8, seed=7),
                stop=pb.StopOptions(max_tokens=24, ignore_eos=True),
            )
        )
        answer = call(request, timeout=60)
    assert list(answer.choices[0].token_ids) == choice["token_ids"]
    body = {
        "model": answer.version.partition("@")[0],
        "prompt": PROMPT,
        "temperature": 0.8,
        "seed": 7,
        "max_tokens": 24,
        "ignore_eos": True,
    }
    posted = urllib.request.Request(
        f"http://{daemon.rest_address}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(posted, timeout=60) as response:  # noqa: S310 - likewise
        completion = json.load(response)
    assert completion["choices"][0]["text"] == choice["text"]


def test_generate_streams_the_answer_to_standard_output(run: Run) -> None:
    options = ("generate", "--temperature", "0", "--max-tokens", "8", "--ignore-eos")
    code, out, err = run(*options, "--stats", PROMPT)
    _, as_json, _ = run(*options, "--json", PROMPT)
    assert code == 0
    assert out == json.loads(as_json)["choices"][0]["text"] + "\n"
    assert "first token after" in err
    assert "tokens/s" in err


def test_generate_gives_several_answers(run: Run) -> None:
    _, out, _ = run("generate", "--n", "2", "--max-tokens", "4", PROMPT)
    assert out.startswith("--- 0\n")
    assert "\n--- 1\n" in out


def test_generate_holds_the_output_to_a_constraint(run: Run) -> None:
    _, out, _ = run("generate", "--choice", "yes", "--choice", "no", "Is it?")
    assert out.strip() in ("yes", "no")
    _, out, _ = run("generate", "--regex", "[0-9]{3}", "A number: ")
    assert out.strip().isdecimal()


def test_chat_answers_one_message_and_tells_seed_usage_and_reason(run: Run) -> None:
    code, out, _ = run(
        "chat", "--json", "--temperature", "0", "--system", "Answer shortly.", PROMPT
    )
    shown = json.loads(out)
    assert code == 0
    assert shown["choices"][0]["finish_reason"] in ("stop", "length")
    assert shown["usage"]["completion_tokens"] == len(shown["choices"][0]["token_ids"])
    assert shown["request_id"]


def test_chat_reads_one_message_from_a_pipe(daemon: RunningDaemon) -> None:
    options = ("chat", "--address", daemon.address, "--temperature", "0")
    piped = program(*options, stdin=PROMPT + "\n")
    given = program(*options, PROMPT)
    assert (piped.returncode, given.returncode) == (0, 0)
    assert piped.stdout == given.stdout


def test_embedding_on_a_generating_model_is_a_typed_refusal(run: Run) -> None:
    code, out, err = run("embed", "text")
    assert code == 64
    assert out == ""
    assert err.startswith("appliance: model: must name a model")
    assert "INVALID_REQUEST" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("generate", "-m", "nope", "x"), 64, "MODEL_NOT_SERVED"),
        (("generate", ""), 64, "INVALID_REQUEST"),
        (("generate", "--temperature", "-1", "x"), 64, "temperature"),
        (("generate", "--temperature", "nan", "x"), 64, "temperature"),
        (("generate", "--temperature", "warm", "x"), 64, "temperature"),
        (("generate", "--max-tokens", "-1", "x"), 64, "max_tokens"),
        (("generate", "--seed", "-1", "x"), 64, "seed"),
        (("generate", "--json-object", "--regex", "a", "x"), 64, "constraint"),
        (("generate", "--regex", "(", "x"), 64, "SCHEMA_UNSUPPORTED"),
        (("generate", "x " * 20_000), 65, "CONTEXT_TOO_LONG"),
        (("chat", "--no-such-option"), 64, "no-such-option"),
    ],
)
def test_a_wrong_request_is_one_line_and_a_sysexits_code(
    run: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = run(*arguments)
    assert found == code, err
    assert out == ""
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["status", "generate", "chat", "embed"])
def test_without_a_daemon_a_command_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    text = () if verb == "status" else ("x",)
    assert main([verb, "--address", f"unix:{tmp_path}/none.sock", *text]) == 75
    out = capsys.readouterr()
    assert out.out.strip() == ""
    assert len(out.err.splitlines()) == 1
    assert "is 'appliance serve' running?" in out.err


def test_the_daemon_has_no_engine_in_its_memory_and_its_worker_has(daemon: RunningDaemon) -> None:
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text(encoding="utf-8")
    assert "libllama" not in maps
    assert "libggml" not in maps
    children = [
        Path(f"/proc/{child.pid}/maps").read_text(encoding="utf-8") for child in daemon.children()
    ]
    assert any("libllama" in text for text in children)


def test_importing_the_daemon_brings_neither_engine_nor_hub() -> None:
    found = program_modules("appliance.daemon", "appliance.cli.serve", "appliance.cli.doctor")
    assert "appliance.api.grpc_server" in found
    bad = ("llama_cpp.", "appliance.hub.", "appliance.runtime.llama.", "appliance.runtime.worker.")
    assert [name for name in found if f"{name}.".startswith(bad)] == []


def program_modules(*names: str) -> list[str]:
    """Import modules in a fresh interpreter and list all that came with them."""
    code = f"import json, sys, {', '.join(names)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env=environment(),
        timeout=60,
    )
    found: list[str] = json.loads(done.stdout)
    return found
