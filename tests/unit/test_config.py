"""Reading the configuration: what is accepted, and what each refusal says."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from appliance.config import (
    REPEATED,
    SECTIONS,
    Access,
    Adapter,
    Client,
    Config,
    Engine,
    Limits,
    Model,
    describe,
    effective,
    is_loopback,
    load,
    parse_override,
)
from appliance.config.load import CONFIG_BYTES_MAX
from appliance.errors import ConfigError
from tools import config_reference

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "appliance.toml"


def refused(path: Path | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return error.value.message


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(text)
    return path


def _client(name: str, digit: str) -> dict[str, str]:
    return {"name": name, "key_sha256": digit * 64}


def test_no_file_means_the_defaults() -> None:
    assert load(None) == Config()


def test_the_shipped_file_holds_every_key_with_its_default() -> None:
    assert load(SHIPPED) == Config()
    tree = tomllib.loads(SHIPPED.read_text())
    for name, section in SECTIONS.items():
        if name not in REPEATED:
            assert set(tree[name]) == set(section.__struct_fields__)


def test_the_shipped_file_and_the_page_are_what_the_tree_says() -> None:
    assert SHIPPED.read_text() == config_reference.commented_file()
    assert config_reference.PAGE.read_text() == config_reference.page()


def test_the_examples_in_the_shipped_file_are_valid(tmp_path: Path) -> None:
    lines = SHIPPED.read_text().splitlines()
    begin = lines.index("# [[clients]]")
    shown = [line for line in lines[begin:] if " = " in line or line.startswith("# [[")]
    text = "\n".join(line.removeprefix("# ") for line in shown)
    config = load(written(tmp_path, text))
    adapters = (Adapter(name="an-adapter", path="adapter.gguf"),)
    assert config.models == (Model(path="model.gguf", adapters=adapters),)
    assert config.clients == (Client(name="an-application", key_sha256="0" * 64),)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_is_described_and_every_number_is_bounded(name: str) -> None:
    section = SECTIONS[name]
    for field, kind in get_type_hints(section).items():
        meta = describe(section, field)
        assert meta.description
        assert meta.description.endswith(".")
        if kind in {int, float}:
            assert meta.ge is not None or meta.gt is not None
            assert meta.le is not None


def _bounds() -> Iterator[tuple[str, float]]:
    for name, section in SECTIONS.items():
        if name in REPEATED:
            continue
        for field, kind in get_type_hints(section).items():
            if kind not in {int, float}:
                continue
            meta = describe(section, field)
            assert meta.le is not None
            yield f"{name}.{field}", meta.le + 1
            low = meta.ge if meta.ge is not None else meta.gt
            assert low is not None
            yield f"{name}.{field}", low - 1
            if kind is float:
                yield from ((f"{name}.{field}", float(odd)) for odd in ("nan", "inf", "-inf"))


@pytest.mark.parametrize(("key", "value"), list(_bounds()))
def test_a_number_out_of_its_bounds_is_refused_with_its_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, {key: value})
    assert error.value.key == key


def test_effective_values_read_back_to_the_same_tree(tmp_path: Path) -> None:
    config = Config(
        engine=Engine(threads=3, stall_factor=2.5),
        limits=Limits(messages=7),
        access=Access(require_key=True),
        clients=(Client(name="a", key_sha256="1" * 64, weight=2.5, priority_max="batch"),),
        models=(
            Model(path="d", adapters=(Adapter(name="b", path="b"), Adapter(name="c", path="c"))),
            Model(path='a "b"\\\u4e2d\x7f.gguf', name="a"),
            Model(path="c", embedding=True),
        ),
    )
    assert load(written(tmp_path, effective(config))) == config


def test_overrides_are_stronger_than_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[engine]\nthreads = 2\nbatch_tokens = 64\n")
    config = load(path, {"engine.threads": 5, "models": [{"path": "x"}]})
    assert (config.engine.threads, config.engine.batch_tokens) == (5, 64)
    assert config.models == (Model(path="x"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engine.threads=2", ("engine.threads", 2)),
        ("rest.tcp=127.0.0.1:1", ("rest.tcp", "127.0.0.1:1")),
        ('rest.allowed_origins=["a"]', ("rest.allowed_origins", ["a"])),
        ("grpc.reflection=false", ("grpc.reflection", False)),
        ("grpc.tcp=", ("grpc.tcp", "")),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_word(text: str, expected: object) -> None:
    assert parse_override(text) == expected


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_override("engine.threads")


def test_an_unknown_key_names_the_nearest_one() -> None:
    assert refused(engine__thread=1) == (
        "engine.thread: is not a key; did you mean 'engine.threads'?"
    )
    assert refused(engin__threads=1) == "engin: is not a key; did you mean 'engine'?"
    assert refused(grpc__state_dir="x") == (
        "grpc.state_dir: is not a key; did you mean 'server.state_dir'?"
    )
    assert refused(models=[{"path": "a", "nam": "b"}]) == (
        "models.nam: is not a key; did you mean 'models.name'?"
    )
    assert "known are server.adapter_dir, server.drain_s" in refused(server__zzz=1)


def test_a_wrong_type_names_key_and_value() -> None:
    assert refused(engine__threads="two") == "engine.threads: expected int, got str, not 'two'"
    assert refused(engine__threads=2.5) == "engine.threads: expected int, got float, not 2.5"
    assert refused(grpc__reflection=1) == "grpc.reflection: expected bool, got int, not 1"
    assert refused(rest__allowed_hosts="a").startswith("rest.allowed_hosts: expected array")
    assert refused(server=3).startswith("server: expected object")
    assert refused(models={"path": "a"}).startswith("models: expected array")
    assert refused(models=[{}]) == "models[0]: object missing required field path"
    assert refused(models=[{"path": "a"}, {"path": 1}]).startswith("models[1].path: expected str")
    assert refused(server__log_level="loud").startswith("server.log_level: invalid enum value")
    assert refused(engine__cache_type_k="q3_0").startswith("engine.cache_type_k: invalid enum")


def test_an_override_into_something_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "engine = 3\n")
    assert refused(path, engine__threads=1) == "engine.threads: 'engine' is not a table"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[engine\n", "Expected ']'"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"#" * (CONFIG_BYTES_MAX + 1), "is larger than"),
        (b"a = 1\na = 2\n", "Cannot overwrite a value"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.toml") == f"{tmp_path}/none.toml: No such file or directory"
    assert refused(tmp_path) == f"{tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"engine.step_ms_max": 100.0}, "engine.step_ms_while_streaming"),
        ({"engine.restart_backoff_ms_max": 1.0}, "engine.restart_backoff_ms"),
        ({"engine.batch_tokens": 32}, "engine.sequences_max"),
        ({"engine.output_reserve_tokens": 9000}, "engine.output_reserve_tokens"),
        ({"engine.cells_total": 256}, "engine.batch_tokens"),
        ({"engine.cells_total": 1024}, "engine.context_tokens"),
        ({"engine.cache_type_v": "q8_0", "engine.flash_attention": "off"}, "engine.cache_type_v"),
        (
            {
                "models": [{"path": "a", "cache_type_v": "q4_0"}],
                "engine.flash_attention": "off",
            },
            "models.cache_type_v",
        ),
        (
            {"models": [{"path": "a", "embedding": True, "cache_type_k": "q8_0"}]},
            "models.cache_type_k",
        ),
        (
            {"models": [{"path": "a", "embedding": True, "cache_layout": "unified"}]},
            "models.cache_layout",
        ),
        (
            {
                "models": [{"path": "a", "sequences_max": 256}],
                "engine.batch_tokens": 128,
                "engine.sequences_max": 64,
            },
            "models.sequences_max",
        ),
        ({"models": [{"path": "a", "draft": "b", "embedding": True}]}, "models.draft"),
        ({"models": [{"path": "a", "draft": "b"}], "scheduling.draft": "off"}, "models.draft"),
        ({"models": [{"path": "a", "cells_total": 4096}]}, "models.cells_total"),
        (
            {"models": [{"path": "a", "cells_total": 256, "context_tokens": 64}]},
            "models.cells_total",
        ),
        (
            {"models": [{"path": "a", "cells_total": 1024, "context_tokens": 2048}]},
            "models.context_tokens",
        ),
        (
            {"models": [{"path": "a", "context_tokens": 10_000}], "engine.cells_total": 8192},
            "models.context_tokens",
        ),
        ({"limits.queue_prompt_tokens": 1024}, "limits.queue_prompt_tokens"),
        ({"models": [{"path": "a", "context_tokens": 300_000}]}, "limits.queue_prompt_tokens"),
        ({"grpc.message_bytes_max": 65_536}, "limits.prompt_bytes"),
        ({"rest.body_bytes_max": 65_536}, "limits.prompt_bytes"),
        ({"models": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, "models.name"),
        ({"access.require_key": True}, "access.require_key"),
        ({"clients": [_client("a", "1"), _client("a", "2")]}, "clients.name"),
        ({"clients": [_client("a", "1"), _client("b", "1")]}, "clients.key_sha256"),
        ({"clients": [_client("loopback", "1")]}, "clients.name"),
        ({"clients": [_client("a/b", "1")]}, "clients[0].name"),
        ({"clients": [_client("a", "G")]}, "clients[0].key_sha256"),
        ({"grpc.tcp": "127.0.0.1:8321"}, "grpc.tcp"),
        ({"rest.tcp": "0.0.0.0:8321"}, "rest.tcp"),
        ({"grpc.tcp": "192.168.1.4:8322"}, "grpc.tcp"),
        ({"rest.allowed_hosts": []}, "rest.allowed_hosts"),
        ({"server.runtime_dir": "/" + "x" * 107}, "grpc.unix_path"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    overrides: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, overrides)
    assert error.value.key == key


def test_an_unknown_key_of_an_adapter_is_named_with_the_nearest_one() -> None:
    models = [{"path": "x", "adapters": [{"name": "a", "path": "b", "scael": 2}]}]
    with pytest.raises(ConfigError, match=r"models.adapters.scael.*'models.adapters.scale'"):
        load(None, {"models": models})


@pytest.mark.parametrize(
    ("fields", "key", "reason"),
    [
        ({"adapters": [("a", "x"), ("a", "y")]}, "models.adapters.name", "given to 2 files"),
        ({"adapters": [("m", "x")]}, "models.adapters.name", "'m' is the name of a model"),
        ({"adapters": [("a", "x")], "embedding": True}, "models.adapters", "generating models"),
        (
            {"adapters": [(f"a{number}", "x") for number in range(17)]},
            "models.adapters",
            "has 17 entries; limits.adapters is 16",
        ),
    ],
)
def test_adapters_that_can_not_be_loaded_together_are_refused(
    fields: dict[str, Any], key: str, reason: str
) -> None:
    adapters = [{"name": name, "path": path} for name, path in fields["adapters"]]
    model = fields | {"name": "m", "path": "x", "adapters": adapters}
    with pytest.raises(ConfigError, match=reason) as error:
        load(None, {"models": [model]})
    assert error.value.key == key


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", True),
        ("127.8.9.1:0", True),
        ("[::1]:80", True),
        ("localhost:80", True),
        ("127.0.0.1", False),
        ("127.0.0.1:", False),
        ("127.0.0.1:65536", False),
        ("127.0.0.1:-1", False),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        ("example.com:80", False),
        (":80", False),
    ],
)
def test_only_loopback_addresses_with_a_port_are_loopback(address: str, *, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_what_downloads_are_told_must_fit_together() -> None:
    said = refused(downloads__backoff_ms=70_000.0)
    assert said == "downloads.backoff_ms: is above downloads.backoff_ms_max (60000)"
    assert "is not known on this machine" in refused(server__time_zone="Mars/Olympus")
    assert "server.time_zone" in refused(server__time_zone="/etc/passwd")


@pytest.mark.parametrize("days", ["", "monday", "mon-", "mon,,tue", "mon tue"])
def test_days_are_written_one_way(days: str) -> None:
    assert "bandwidth" in refused(bandwidth=[{"bytes_per_s": 1, "days": days}])
