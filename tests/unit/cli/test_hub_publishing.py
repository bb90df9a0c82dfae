"""The hub's verbs, from an empty directory to a stick: what they do, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.cli import exits
from appliance.cli.main import main
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

Out = pytest.CaptureFixture[str]
PASSPHRASE = "correct horse battery"


class Desk:
    """A hub's directory, an offline directory of keys, and somebody who types."""

    def __init__(self, directory: Path, out: Out) -> None:
        self.directory = directory
        self.keys = directory / "offline"
        self.state = directory / "hub"
        self._out = out
        (directory / "passphrase").write_text(f"{PASSPHRASE}\n")

    def run(self, *words: str | Path, code: int = 0) -> str:
        verb = [str(word) for word in words]
        if verb[:2] not in (["key", "new"], ["key", "show"], ["key", "hardware"]):
            verb += ["--set", f"hub.state_dir={self.state}"]
        assert main(["hub", *verb]) == code, self._out.readouterr().err
        shown = self._out.readouterr()
        return shown.err if code else shown.out

    def json(self, *words: str | Path) -> Any:  # noqa: ANN401 - what a command printed
        return json.loads(self.run(*words, "--json"))

    def opened(self, owner: str) -> tuple[str | Path, ...]:
        path = self.directory / "passphrase"
        return ("--key", self.keys / f"{owner}.key", "--passphrase-file", path)

    def passphrase(self) -> tuple[str | Path, ...]:
        return ("--passphrase-file", self.directory / "passphrase")


@pytest.fixture
def desk(tmp_path: Path, capsys: Out) -> Desk:
    return Desk(tmp_path, capsys)


@pytest.fixture
def founded(desk: Desk) -> Desk:
    desk.run("init", "--keys", desk.keys, *desk.passphrase())
    desk.run("key", "new", "acme", "--keys", desk.keys, *desk.passphrase())
    done = desk.json("key", "publisher", "acme", "--model", "demo",
                     "--public", desk.keys / "acme.pub", "--yes",
                     *desk.opened("targets"))  # fmt: skip
    assert [one["role"] for one in done["pending"]] == ["publisher-acme"]
    assert desk.json("sign", "--yes", *desk.opened("acme"))["put_out"]["publisher-acme"] == 1
    return desk


def model(path: Path, template: str = "{{ 1 }}") -> Path:
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0, chat_template=template)
    return path


def test_from_nothing_to_a_stick(founded: Desk, tmp_path: Path) -> None:
    health = tmp_path / "health.toml"
    health.write_text('[[prompts]]\nprompt = "2+2?"\ncontains = "4"\n')
    strategy = tmp_path / "strategy.json"
    strategy.write_text('{"shadow_share": 0.5, "probation": {"samples_min": 5}}')
    weights = ("--weights", model(tmp_path / "one.gguf"), "--health", health)
    shown = founded.run("publish", "demo", "1", *weights)
    for word in (
        "demo@1, number 1, signed by publisher-acme",
        "llama",
        "Q8_0",
        "1 prompts, 100% must pass",
        "shadow 20%, 10 %, 50 %, probation 300 s",
    ):
        assert word in shown
    assert not (founded.state / "repository" / "blobs").exists()
    done = founded.json("publish", "demo", "1", *weights, "--strategy", strategy, "--yes",
                        *founded.opened("acme"))  # fmt: skip
    assert done["release"]["strategy"]["probation"] == {"samples_min": 5}
    assert done["put_out"]["publisher-acme"] == 2
    assert "shops: demo@1\nput out: director 2" in founded.run("assign", "shops", "demo", "1")
    assert founded.run("halt", "shops").startswith("shops: stopped\nput out: director 3")
    assert founded.json("halt", "shops", "--resume")["assignment"]["sequence"] == 3
    stick = founded.json("export", "--cohort", "shops", "--to", tmp_path / "stick.tar")
    assert stick["sequence"] == 3
    assert "left out" in founded.run("export", "--cohort", "shops", "--to", tmp_path / "two.tar",
                                     "--since", "1")  # fmt: skip
    shown = founded.run("revoke", "demo", "1", "--reason", "bad", "--yes", *founded.opened("acme"))
    assert "signed models/demo/standing.json" in shown
    assert "is withdrawn: bad" in founded.run("assign", "shops", "demo", "1", code=exits.USAGE)
    assert founded.run("assign", "shops", "demo", "--none").startswith("put out: director 5")
    assert founded.run("sign") == "nothing waits, nothing is due\n"


def test_owners_found_a_repository_one_after_the_other(desk: Desk) -> None:
    publics: list[str | Path] = []
    for owner in ("ann", "ben", "cy"):
        made = desk.json("key", "new", owner, "--keys", desk.keys, *desk.passphrase())
        publics += ["--root", made["public"]]
    ann = desk.keys / "ann.pub"
    assert "ed25519 of ann" in desk.run("key", "show", ann)
    done = desk.json("init", *publics, "--root-threshold", "2", "--targets", ann)
    assert {one["role"]: one["missing_count"] for one in done["pending"]} == {
        "director": 0, "root": 2, "targets": 1
    }  # fmt: skip
    assert "root 1 waits for 1 more of: ben:" in desk.run("sign", "--yes", *desk.opened("ann"))
    assert "none of these keys" in desk.run("sign", "targets", *desk.opened("cy"), code=exits.USAGE)
    assert desk.run("sign", "--yes", *desk.opened("cy")).startswith("put out: director 1, root 1")
    rotated = desk.run("key", "rotate", "root", "--public", ann, "--yes", *desk.opened("ann"))
    assert "root 2 waits for 1 more of: ben:" in rotated
    assert desk.run("sign", "root", "--cancel") == "nothing waits, nothing is due\n"


def test_a_publishers_copy_signs_without_online_keys(founded: Desk, tmp_path: Path) -> None:
    shown = founded.run("publish", "demo", "1", "--weights", model(tmp_path / "one.gguf"),
                        "--yes", *founded.opened("acme"),
                        "--repository", founded.state / "repository")  # fmt: skip
    assert "publisher-acme 2 is signed; 'appliance hub sign' on the hub puts it out" in shown
    assert founded.run("sign").startswith("put out: publisher-acme 2, snapshot 4")


def test_what_is_refused_is_one_line(founded: Desk, tmp_path: Path) -> None:
    weights = ("--weights", model(tmp_path / "one.gguf"))
    typo = tmp_path / "health.toml"
    typo.write_text('[[prompts]]\nprompt = "x"\ncontain = "4"\n')
    bad = tmp_path / "bad.toml"
    bad.write_text("= 1")
    strange = tmp_path / "strange.json"
    strange.write_text('{"shadow_share": "much"}')
    empty = tmp_path / "empty"
    empty.write_text("\n")
    cases: tuple[tuple[tuple[str | Path, ...], str], ...] = (
        (("publish", "demo", "1", *weights, "--health", typo), "did you mean 'contains'?"),
        (("publish", "demo", "1", *weights, "--health", bad), "Invalid"),
        (("publish", "demo", "1", *weights, "--strategy", strange), "Expected `float`"),
        (("publish", "demo", "1", *weights, *founded.opened("acme")), "say --yes"),
        (("publish", "none", "1", *weights), "no publisher may sign for it"),
        (("publish", "demo", "../1", *weights), "version"),
        (("publish", "demo", "1", *weights, "--yes", "--key", founded.keys / "acme.key"),
         "no terminal to ask; give --passphrase-file"),
        (("publish", "demo", "1", *weights, "--yes", "--key", founded.keys / "acme.key",
          "--passphrase-file", empty), "first line is empty"),
        (("publish", "demo", "1", *weights, "--yes", *founded.opened("root")), "none of these"),
        (("assign", "shops", "demo", "1"), "readers can't see such a version yet"),
        (("halt", "shops"), "nothing is assigned to it"),
        (("assign", "shops", "demo"), "give a VERSION or --none"),
        (("revoke", "demo", "1", "--reason", "x", "--yes"), "there is no such version"),
        (("revoke", "demo", "1", "--reason", "x"), "say --yes"),
        (("export", "--cohort", "shops", "--to", tmp_path / "x"), "nothing is assigned to it"),
        (("sign", "--cancel"), "need a ROLE"),
        (("sign", "--renew"), "need a ROLE"),
        (("sign", "targets", *founded.opened("root")), "no version of it is being signed"),
        (("key", "drop", "none"), "delegates to no such role"),
        (("key", "rotate", "none", "--public", founded.keys / "acme.pub"), "no such role"),
        (("init", "--keys", tmp_path / "more", "--no-passphrase"), "a repository already"),
        (("init", "--keys", tmp_path / "x", "--no-passphrase", *founded.passphrase()), "not both"),
    )  # fmt: skip
    for words, reason in cases:
        line = founded.run(*words, code=exits.USAGE)
        assert line.startswith("appliance: ")
        assert line.count("\n") == 1
        assert reason in line


def test_a_publisher_leaves(founded: Desk) -> None:
    done = founded.json("key", "drop", "acme", "--yes", *founded.opened("targets"))
    assert done["put_out"]["targets"] == 3
    assert done["pending"] == []


def test_an_offline_role_is_renewed(founded: Desk) -> None:
    renew = ("sign", "root", "--renew", *founded.opened("root"))
    assert "nothing was signed; say --yes" in founded.run(*renew, code=exits.USAGE)
    shown = founded.run(*renew, "--yes")
    assert shown.startswith("put out: root 2")


def test_a_key_in_hardware_is_named_by_its_address(desk: Desk, tmp_path: Path) -> None:
    pem = tmp_path / "token.pem"
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    made = desk.json("key", "hardware", "ann", "--uri", "hsm:2?label=root", "--pem", pem,
                     "--keys", desk.keys)  # fmt: skip
    assert (made["uri"], made["key"]["scheme"]) == ("hsm:2?label=root", "ecdsa-sha2-nistp256")
    done = desk.json("init", "--root", made["public"], "--targets", made["public"])
    assert {one["missing_count"] for one in done["pending"]} == {0, 1}
    refused = desk.run("sign", "root", "--key", made["public"], code=exits.USAGE)
    assert "hsm:2?label=root" in refused
