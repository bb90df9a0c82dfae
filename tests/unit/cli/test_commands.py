"""The commands that need no daemon."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from appliance import config
from appliance.cli import exits, places
from appliance.cli.main import VERBS, main
from appliance.errors import concrete_classes

Out = pytest.CaptureFixture[str]


def test_help_lists_every_verb_that_is_for_people(capsys: Out) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb, (_, _, meaning) in VERBS.items():
        assert (verb in shown) == bool(meaning), verb


def test_every_verb_explains_itself(capsys: Out) -> None:
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: appliance {verb}")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["nothing"], "appliance"),
        (["status", "more"], "appliance status"),
        (["chat", "--nothing"], "appliance chat"),
        (["chat", "--seed"], "appliance"),
        (["chat", "--seed", "x"], "appliance chat"),
        (["config", "nothing"], "appliance config"),
    ],
)
def test_wrong_usage_is_one_line_and_64(capsys: Out, arguments: list[str], command: str) -> None:
    assert main(arguments) == exits.USAGE
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.splitlines()) == 1
    assert out.err.startswith("appliance: ")
    assert out.err.endswith(f"; see '{command} --help'\n")


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_a_group_alone_shows_its_help_and_is_wrong_usage(capsys: Out, arguments: list[str]) -> None:
    assert main(arguments) == exits.USAGE
    assert capsys.readouterr().err.startswith("Usage: appliance")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_own_script(capsys: Out, shell: str) -> None:
    assert main(["completion", shell]) == 0
    assert "_APPLIANCE_COMPLETE" in capsys.readouterr().out


def test_the_shell_is_told_the_verbs_that_fit() -> None:
    environment = os.environ | {
        "_APPLIANCE_COMPLETE": "bash_complete",
        "COMP_WORDS": "appliance st",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "appliance"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.split() == ["plain,status"]


def test_config_check_prints_values_that_load_back_to_the_same(
    capsys: Out, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert main(["config", "check", "--set", "engine.threads=3"]) == 0
    path = tmp_path_factory.mktemp("config") / "appliance.toml"
    path.write_text(capsys.readouterr().out)
    assert config.load(path) == config.load(None, {"engine.threads": 3})


def test_config_check_names_the_nearest_key(capsys: Out) -> None:
    assert main(["config", "check", "--set", "engine.thread=3"]) == exits.CONFIG
    assert "did you mean 'engine.threads'?" in capsys.readouterr().err


def test_doctor_tells_every_finding_as_json(capsys: Out) -> None:
    code = main(["doctor", "--json"])
    shown = json.loads(capsys.readouterr().out)
    levels = {finding["name"]: finding["level"] for finding in shown["findings"]}
    assert code == (0 if shown["ok"] else exits.CONFIG)
    assert set(levels) >= {"engine", "memory", "files", "clock", "sqlite", "disk", "gpu", "cpu"}
    assert set(levels.values()) <= {"ok", "warn", "fail"}
    assert (levels["engine"], levels["sqlite"], levels["packages"]) == ("ok", "ok", "ok")
    for finding in shown["findings"]:
        assert bool(finding["remedy"]) == (finding["level"] != "ok"), finding


def test_doctor_shows_a_person_one_line_or_more_for_each(capsys: Out) -> None:
    main(["doctor"])
    assert "sqlite" in capsys.readouterr().out


def test_every_error_has_an_exit_code_of_sysexits() -> None:
    known = {exits.USAGE, exits.DATA, exits.SOFTWARE, exits.RETRY, exits.NOT_ALLOWED, exits.CONFIG}
    for cls in concrete_classes():
        assert exits.exit_code_of(cls.code) in known
        assert (exits.exit_code_of(cls.code) == exits.RETRY) == cls.retryable
    assert exits.exit_code_of("NEVER_HEARD_OF") == exits.SOFTWARE


def test_a_user_has_directories_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert places.state_dir() == tmp_path / "state" / "appliance"
    assert places.runtime_dir() == tmp_path / "run" / "appliance"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.state_dir() == places.SYSTEM_STATE_DIR
    assert places.runtime_dir() == places.SYSTEM_RUNTIME_DIR


def test_a_new_key_is_shown_once_with_the_lines_that_let_it_in(capsys: Out) -> None:
    assert main(["key", "new", "billing", "--weight", "2", "--priority-max", "batch"]) == 0
    out = capsys.readouterr()
    secret = out.out.strip()
    lines = out.err[out.err.index("[[clients]]") :]
    assert secret not in out.err
    (table,) = tomllib.loads(lines)["clients"]
    assert table == {
        "name": "billing",
        "key_sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "weight": 2.0,
        "priority_max": "batch",
    }
    assert main(["key", "new", "billing"]) == 0
    assert capsys.readouterr().out.strip() != secret


@pytest.mark.parametrize(
    "arguments", [["a b"], ["loopback"], ["a", "--weight", "0"], ["a", "--priority-max", "x"]]
)
def test_a_client_that_cannot_be_configured_gets_no_key(capsys: Out, arguments: list[str]) -> None:
    assert main(["key", "new", *arguments]) == exits.USAGE
    assert capsys.readouterr().out == ""
