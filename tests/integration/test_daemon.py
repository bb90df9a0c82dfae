"""How the daemon starts, stops, and refuses to start: real processes, real signals, real files."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.daemons import DEMO, RunningDaemon, command, environment, program
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

WORKERS_GONE_S = 1.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path) as running:
        yield running.ready()


class Talking:
    """A `generate` in a process of its own, known to have begun its answer."""

    def __init__(self, daemon: RunningDaemon, tokens: int) -> None:
        options = ("--max-tokens", tokens, "--ignore-eos", "--temperature", "1", "--seed", "1")
        arguments = command("generate", "--address", daemon.address, *options, "--stats", "Hello")
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        assert self.process.stdout is not None
        assert self.process.stdout.read(1) != b""

    def end(self) -> tuple[int, str]:
        """Read its answer to the end; returns the exit code and what it said."""
        _, error = self.process.communicate(timeout=60)
        return self.process.returncode, error.decode()


Talk = Callable[[RunningDaemon, int], Talking]


@pytest.fixture
def talk() -> Iterator[Talk]:
    """Start `Talking`; whatever happens in the test, it is gone afterwards."""
    started: list[Talking] = []

    def start(daemon: RunningDaemon, tokens: int) -> Talking:
        started.append(Talking(daemon, tokens))
        return started[-1]

    yield start
    for talking in started:
        if talking.process.poll() is None:
            talking.process.kill()
            talking.process.communicate()


def test_sigterm_lets_a_running_answer_end_and_exits_with_0(
    daemon: RunningDaemon, talk: Talk
) -> None:
    talking = talk(daemon, 300)
    daemon.process.send_signal(signal.SIGTERM)
    code, said = talking.end()
    assert code == 0, said
    assert "+ 300 tokens" in said
    assert daemon.wait() == 0
    assert daemon.logged("drained")["whole"] is True
    assert daemon.logged("stopped")
    assert not daemon.runtime_dir.joinpath("grpc.sock").exists()


def test_while_draining_a_new_request_is_refused_as_worth_a_retry(
    daemon: RunningDaemon, talk: Talk
) -> None:
    talking = talk(daemon, 2000)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.logged("signal")
    refused = program("generate", "--address", daemon.address, "x")
    assert refused.returncode == 75
    assert "DRAINING" in refused.stderr
    daemon.process.send_signal(signal.SIGINT)
    talking.end()


def test_a_second_signal_stops_at_once(daemon: RunningDaemon, talk: Talk) -> None:
    talking = talk(daemon, 8000)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.logged("signal")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert daemon.logged("drained")["whole"] is False
    code, said = talking.end()
    assert code in (70, 75)
    assert "appliance: " in said


def test_draining_is_bounded(tmp_path: Path, talk: Talk) -> None:
    with RunningDaemon(tmp_path, "--set", "server.drain_s=0.2") as daemon:
        talking = talk(daemon.ready(), 8000)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.logged("drained")["whole"] is False
        talking.end()


def test_sigterm_while_loading_stops_with_0(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.logged("listening")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_when_the_daemon_is_killed_its_processes_end_within_a_second(
    daemon: RunningDaemon, talk: Talk
) -> None:
    talking = talk(daemon, 8000)
    ends = [os.pidfd_open(child.pid) for child in daemon.children()]
    assert len(ends) in (2, 3)  # worker, text process, and the spare worker once it is there
    daemon.process.kill()
    limit_s = time.monotonic() + WORKERS_GONE_S
    for end in ends:  # readable once the process has ended, reaped or not
        assert select.select([end], [], [], max(0.0, limit_s - time.monotonic()))[0]
        os.close(end)
    assert talking.end()[0] == 75


def test_after_a_kill_the_next_start_serves_again(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as first:
        first.ready().process.kill()
    with RunningDaemon(tmp_path) as second:
        second.ready()
        assert program("status", "--address", second.address).returncode == 0


def test_a_second_daemon_on_the_same_directories_is_refused(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    refused = serve(tmp_path)
    assert refused.returncode == 75
    assert "is in use by another appliance" in last_line(refused)
    assert program("status", "--address", daemon.address).returncode == 0


def test_an_address_in_use_is_named_with_its_key(daemon: RunningDaemon, tmp_path: Path) -> None:
    refused = serve(tmp_path / "other", "--rest", daemon.rest_address)
    assert refused.returncode == 78
    assert last_line(refused).startswith("appliance: rest.tcp: can't listen on")


# --- what can't be served ------------------------------------------------------------------------


def serve(place: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Run `serve` to its end: it is to refuse."""
    directories = ("--state-dir", place / "state", "--runtime-dir", place / "run")
    return program("serve", "--rest", "127.0.0.1:0", *directories, *options)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]


def truncated(path: Path) -> None:
    path.write_bytes(DEMO.read_bytes()[: DEMO.stat().st_size // 2])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(DEMO.read_bytes()[:1000])


def not_a_gguf(path: Path) -> None:
    path.write_text("The quick brown fox jumps over the lazy dog.\n" * 100)


def too_big(path: Path) -> None:
    """Write a whole GGUF of one tensor of 4 TiB, as a sparse file."""
    elements = 2**40
    key, value, name = b"general.architecture", b"llama", b"token_embd.weight"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, elements, 0, 0)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // 32) * 32 + 4 * elements)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (None, "does not exist"),
        (Path.mkdir, "is a directory"),
        (truncated, "truncated"),
        (cut_in_the_header, "cut off"),
        (not_a_gguf, "not a GGUF"),
        (too_big, "too big"),
    ],
)
def test_a_file_that_cant_be_served_is_one_line_and_78(
    tmp_path: Path, make: object, reason: str
) -> None:
    path = tmp_path / "odd.gguf"
    if callable(make):
        make(path)
    done = serve(tmp_path, "--model", path)
    assert done.returncode == 78
    (line,) = [line for line in done.stderr.splitlines() if "odd.gguf" in line]
    assert line == last_line(done)
    assert line.startswith(f"appliance: {path}: ")
    assert reason in line
    assert "Traceback" not in done.stderr


def test_what_only_the_engine_can_refuse_is_one_line_and_78_too(tmp_path: Path) -> None:
    data = bytearray(DEMO.read_bytes())
    start = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    data[start : start + 4] = struct.pack("<I", 63)  # layers the file does not have
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    done = serve(tmp_path, "--model", path)
    assert done.returncode == 78
    (line,) = [line for line in done.stderr.splitlines() if "odd.gguf" in line]
    assert line == last_line(done)
    assert "Traceback" not in done.stderr


def test_a_generating_model_is_refused_as_an_embedding_model(tmp_path: Path) -> None:
    done = serve(tmp_path, "--embedding-model", DEMO)
    assert done.returncode == 78
    assert "no embedding model" in last_line(done)


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    done = serve(tmp_path, "--model", f"a={DEMO}", "--model", f"b={DEMO}")
    assert done.returncode == 78
    assert "name them apart" in last_line(done)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[engine]\nthread = 2\n", "did you mean 'engine.threads'?"),
        ("[engine]\nthreads = 'two'\n", "engine.threads"),
        ("[engine\n", "appliance.toml"),
        ("[rest]\ntcp = '0.0.0.0:80'\n", "loopback"),
    ],
)
def test_a_configuration_that_is_wrong_is_one_line_and_78(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "appliance.toml"
    path.write_text(text)
    for verb in (("serve",), ("config", "check")):
        done = program(*verb, "--config", path)
        assert done.returncode == 78
        (line,) = done.stderr.splitlines()
        assert said in line


def with_draft(place: Path, draft: Path) -> Path:
    path = place / "appliance.toml"
    path.write_text(f"[[models]]\npath = '{DEMO}'\nname = 'demo'\ndraft = '{draft}'\n")
    return path


def test_a_draft_model_is_signed_and_guesses_beside_its_model(tmp_path: Path) -> None:
    draft = tmp_path / "draft.gguf"
    draft.write_bytes(DEMO.with_name("demo-2.f16.gguf").read_bytes())
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    with RunningDaemon(tmp_path, "--config", with_draft(tmp_path, draft)) as daemon:
        daemon.ready()
        (worker,) = [one for one in daemon.children() if "worker" in one.cmdline() and maps(one)]
        assert {str(DEMO), str(draft)} <= maps(worker)
        done = program("generate", "--address", daemon.address, "--max-tokens", 40, "Hello")
        assert (done.returncode, done.stdout != "") == (0, True)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
    with sqlite3.connect(tmp_path / "state" / "state.db") as database:
        rows = database.execute("SELECT digest, signature FROM local_versions").fetchall()
    assert {row[0] for row in rows} >= {f"sha256:{digest}"}
    assert all(signature for _, signature in rows)


def maps(process: psutil.Process) -> set[str]:
    return {one.path for one in process.memory_maps() if one.path.endswith(".gguf")}


def test_a_draft_model_of_another_vocabulary_is_refused_by_the_names_of_both(
    tmp_path: Path,
) -> None:
    draft = tmp_path / "draft.gguf"
    write_llama(draft, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    done = serve(tmp_path, "--config", with_draft(tmp_path, draft))
    assert done.returncode == 78
    assert str(draft) in last_line(done)
    assert f"it can't be the draft model of {DEMO}" in last_line(done)


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    done = serve(tmp_path)
    assert done.returncode == 78
    assert "others than this user may write there" in last_line(done)


# --- systemd -------------------------------------------------------------------------------------


def test_systemd_is_told_of_readiness_progress_life_and_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.settimeout(30)
        inbox.bind(str(tmp_path / "notify"))
        with RunningDaemon(
            tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000"
        ) as daemon:
            seen = receive(inbox, "STATUS=serving")
            daemon.process.send_signal(signal.SIGTERM)
            seen |= receive(inbox, "STOPPING=1")
            assert daemon.wait() == 0
    assert {"READY=1", "WATCHDOG=1", "STOPPING=1"} <= seen


def receive(inbox: socket.socket, until: str) -> set[str]:
    """Collect assignments until one begins with `until`."""
    seen: set[str] = set()
    while not any(line.startswith(until) for line in seen):
        seen |= set(inbox.recv(4096).decode().splitlines())
    return seen


# --- what a start leaves behind ------------------------------------------------------------------


def test_a_known_file_is_not_hashed_again_and_keeps_its_version(tmp_path: Path) -> None:
    digests = []
    for _ in range(2):
        with RunningDaemon(tmp_path, "--model", f"mine={DEMO}") as daemon:
            line = daemon.ready().logged("model_ready")
            digests.append((line["model"], line["digest"]))
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.wait() == 0
    assert digests[0] == digests[1]
    assert digests[0][0] == "mine@2"
    assert (line["memory_kind"], line["cache_layout"]) == ("cuttable", "unified")
    assert "of a context" in line["cache_layout_reason"]


def test_the_log_is_one_json_object_a_line_and_never_holds_a_prompt(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, "--set", "server.log_level=debug") as daemon:
        secret = "rumpelstiltskin 4711"
        address = daemon.ready().address
        assert program("chat", "--address", address, secret).returncode == 0
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        lines = daemon.waited(lambda lines: lines)
    assert [line for line in lines if line["event"] == "text"] == []
    assert "rumpelstiltskin" not in json.dumps(lines)
    (request,) = [line for line in lines if line["event"] == "request"]
    assert request["operation"] == "chat"
