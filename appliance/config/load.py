"""Read the configuration once, and refuse what is wrong in it.

What this room does: reading TOML into the tree, naming the nearest known key for an unknown one,
the relations between limits, and the effective values for `config check`.
What it knows: the tree's own bounds are checked while it is built; what two values must hold
together is checked here.
What it never does: look at the environment, resolve a name, open a model, or change while running.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from appliance.config.section import Section
from appliance.config.tree import REPEATED, SECTIONS, Config, Engine, Model
from appliance.errors import ConfigError

CONFIG_BYTES_MAX = 1024 * 1024
UNIX_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, less its closing zero
PORT_MAX = 65_535
RESERVED_NAMES = ("local", "loopback", "system")
_NEEDS_FLASH = "{} needs flash attention, and engine.flash_attention is off"


def load(path: Path | None, overrides: Mapping[str, object] | None = None) -> Config:
    """Read and check the configuration; blocks for one small file.

    Args:
        path: the TOML file; None: the defaults alone.
        overrides: values by dotted key ("engine.threads"), stronger than the file. "models" takes
            a list of tables and replaces the file's.

    Raises:
        ConfigError: the first thing that is wrong, with its dotted key.
    """
    tree = _read(path) if path is not None else {}
    for key, value in (overrides or {}).items():
        _override(tree, key, value)
    _refuse_unknown(tree)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise _translated(error, tree) from error
    for key, reason in _contradictions(config):
        raise ConfigError(key=key, reason=reason)
    return config


def parse_override(text: str) -> tuple[str, object]:
    """Cut "engine.threads=2" into its dotted key and its TOML value; a bare word is a string.

    Raises:
        ConfigError: there is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(key=text, reason="write it as KEY=VALUE")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    return key.strip(), parsed["value"]


def effective(config: Config) -> str:
    """Write every value in use as TOML that `load` reads back to an equal tree."""
    lines: list[str] = []
    for name in Config.__struct_fields__:
        rows = getattr(config, name) if name in REPEATED else (getattr(config, name),)
        lines += [section_text(name, row) for row in rows]
    return "\n".join(lines)


def section_text(name: str, section: Section) -> str:
    """Write one table as TOML, and the tables that stand in it."""
    heading = f"[[{name}]]" if name in REPEATED else f"[{name}]"
    inside = [
        section_text(f"{name}.{field}", row)
        for field in section.__struct_fields__
        if f"{name}.{field}" in REPEATED
        for row in getattr(section, field)
    ]
    return "\n".join([heading, *_assignments(name, section), "", *inside])


def toml_value(value: object) -> str:
    """Write one value of the tree as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _assignments(name: str, section: Section) -> Iterator[str]:
    for field in section.__struct_fields__:
        if f"{name}.{field}" in REPEATED:
            continue
        yield f"{field} = {toml_value(getattr(section, field))}"


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(key=str(path), reason=error.strerror or "can't be read") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(key=str(path), reason=f"is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(key=str(path), reason="is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(key=str(path), reason=str(error)) from error


def _override(tree: dict[str, Any], key: str, value: object) -> None:
    section, dot, name = key.partition(".")
    if not dot:
        tree[section] = value
        return
    table = tree.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(key=key, reason=f"'{section}' is not a table")
    table[name] = value


def _refuse_unknown(tree: dict[str, Any]) -> None:
    for name, table in tree.items():
        if name not in Config.__struct_fields__:
            raise ConfigError(key=name, reason=_unknown(name, ""))
        _refuse_unknown_in(name, table)


def _refuse_unknown_in(name: str, table: object) -> None:
    for row in table if isinstance(table, list) else [table]:
        known = SECTIONS[name].__struct_fields__
        for field, value in row.items() if isinstance(row, dict) else ():
            if field not in known:
                raise ConfigError(key=f"{name}.{field}", reason=_unknown(field, name))
            if f"{name}.{field}" in SECTIONS:
                _refuse_unknown_in(f"{name}.{field}", value)


def _unknown(word: str, section: str) -> str:
    """Name the nearest known key: of the same table first, then of any."""
    tables = {name: name for name in SECTIONS}
    here = (
        {field: f"{section}.{field}" for field in SECTIONS[section].__struct_fields__}
        if section
        else tables
    )
    everywhere = tables | {
        field: f"{name}.{field}"
        for name, struct in reversed(SECTIONS.items())  # the first table that has it counts
        for field in struct.__struct_fields__
    }
    for candidates in (here, everywhere):
        near = difflib.get_close_matches(word, candidates, n=1)
        if near:
            return f"is not a key; did you mean '{candidates[near[0]]}'?"
    return f"is not a key; known are {', '.join(sorted(here.values()))}"


def _translated(error: msgspec.ValidationError, tree: dict[str, Any]) -> ConfigError:
    """Turn "Expected `int` >= 1 - at `$.engine.batch_tokens`" into key, reason and value."""
    text, _, place = str(error).partition(" - at `$")
    key = place.rstrip("`").lstrip(".")
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", key):
        value = value[int(part)] if isinstance(value, list) else value.get(part)
    reason = text[:1].lower() + text[1:].replace("`", "")
    missing = text.startswith("Object missing")
    return ConfigError(key=key or "file", reason=reason if missing else f"{reason}, not {value!r}")


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) for each pair of values that can't both hold."""
    yield from _address_contradictions(config)
    yield from _engine_contradictions(config.engine)
    yield from _draft_contradictions(config)
    for model in config.models:
        yield from _model_contradictions(model, config.engine)
    yield from _adapter_contradictions(config)
    limits, context = config.limits, config.engine.context_tokens
    for model in config.models:
        context = max(context, model.context_tokens)
    if limits.queue_prompt_tokens < context:
        yield (
            "limits.queue_prompt_tokens",
            f"is below the longest context ({context}): such a prompt could never wait",
        )
    for key, value in (
        ("grpc.message_bytes_max", config.grpc.message_bytes_max),
        ("rest.body_bytes_max", config.rest.body_bytes_max),
    ):
        if limits.prompt_bytes > value:
            yield "limits.prompt_bytes", f"is above {key} ({value}): it could never arrive"
    names = [model.name for model in config.models if model.name]
    for name in names:
        if names.count(name) > 1:
            yield "models.name", f"'{name}' is given to {names.count(name)} files"
    yield from _access_contradictions(config)
    yield from _site_contradictions(config)


def _site_contradictions(config: Config) -> Iterator[tuple[str, str]]:
    if config.link.retry_s_min > config.link.retry_s_max:
        yield "link.retry_s_min", f"is above link.retry_s_max ({config.link.retry_s_max})"
    if config.downloads.backoff_ms > config.downloads.backoff_ms_max:
        limit = config.downloads.backoff_ms_max
        yield "downloads.backoff_ms", f"is above downloads.backoff_ms_max ({limit:g})"
    try:
        ZoneInfo(config.server.time_zone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        yield "server.time_zone", f"'{config.server.time_zone}' is not known on this machine"


def _access_contradictions(config: Config) -> Iterator[tuple[str, str]]:
    if config.access.require_key and not config.clients:
        yield "access.require_key", "is true and no client has a key: nobody could come in"
    for field in ("name", "key_sha256"):
        values = [getattr(client, field) for client in config.clients]
        for value in values:
            if values.count(value) > 1:
                yield f"clients.{field}", f"'{value}' is given to {values.count(value)} clients"
    for client in config.clients:
        if client.name in RESERVED_NAMES:
            yield "clients.name", f"'{client.name}' is what clients without a key are called"


def _engine_contradictions(engine: Engine) -> Iterator[tuple[str, str]]:
    for low, high in (
        ("step_ms_while_streaming", "step_ms_max"),
        ("restart_backoff_ms", "restart_backoff_ms_max"),
        ("sequences_max", "batch_tokens"),
        ("output_reserve_tokens", "context_tokens"),
    ):
        if getattr(engine, low) > getattr(engine, high):
            yield f"engine.{low}", f"is above engine.{high} ({getattr(engine, high)})"
    if engine.cells_total:
        for low in ("batch_tokens", "context_tokens"):
            if getattr(engine, low) > engine.cells_total:
                yield f"engine.{low}", f"is above engine.cells_total ({engine.cells_total})"
    if engine.flash_attention == "off" and engine.cache_type_v.startswith("q"):
        yield "engine.cache_type_v", _NEEDS_FLASH.format(engine.cache_type_v)


def _draft_contradictions(config: Config) -> Iterator[tuple[str, str]]:
    scheduling = config.scheduling
    if scheduling.draft_ngram_min > scheduling.draft_ngram_max:
        high = scheduling.draft_ngram_max
        yield "scheduling.draft_ngram_min", f"is above scheduling.draft_ngram_max ({high})"
    for model in config.models:
        if model.draft and scheduling.draft == "off":
            yield "models.draft", "guesses nothing while scheduling.draft is off"
        if model.draft and model.embedding:
            yield "models.draft", "is for generating models"


def _adapter_contradictions(config: Config) -> Iterator[tuple[str, str]]:
    limit = config.limits.adapters
    for model in config.models:
        if len(model.adapters) > limit:
            yield (
                "models.adapters",
                f"has {len(model.adapters)} entries; limits.adapters is {limit}",
            )
        if model.adapters and model.embedding:
            yield "models.adapters", "are for generating models"
        names = [adapter.name for adapter in model.adapters]
        for name in names:
            if names.count(name) > 1:
                yield "models.adapters.name", f"'{name}' is given to {names.count(name)} files"
            if name in (other.name for other in config.models):
                yield "models.adapters.name", f"'{name}' is the name of a model"


def _model_contradictions(model: Model, engine: Engine) -> Iterator[tuple[str, str]]:
    """Hold what one model has of its own against what it has in common with the others."""
    for key in ("cache_type_k", "cache_type_v", "cache_layout"):
        if model.embedding and getattr(model, key):
            yield f"models.{key}", "is for generating models: an embedding keeps no cache"
    if engine.flash_attention == "off" and model.cache_type_v.startswith("q"):
        yield "models.cache_type_v", _NEEDS_FLASH.format(model.cache_type_v)
    if model.sequences_max > engine.batch_tokens:
        yield "models.sequences_max", f"is above engine.batch_tokens ({engine.batch_tokens})"
    cells, key = model.cells_total, "models.cells_total"
    if not cells:
        cells, key = engine.cells_total, "engine.cells_total"
    if cells and model.context_tokens > cells:
        yield "models.context_tokens", f"is above {key} ({cells})"
    if model.cells_total:
        if engine.batch_tokens > model.cells_total:
            yield key, f"is below engine.batch_tokens ({engine.batch_tokens})"
        if not model.context_tokens and engine.context_tokens > model.cells_total:
            yield key, f"is below engine.context_tokens ({engine.context_tokens})"


def _address_contradictions(config: Config) -> Iterator[tuple[str, str]]:
    for key, address in (("grpc.tcp", config.grpc.tcp), ("rest.tcp", config.rest.tcp)):
        if address and not is_loopback(address):
            yield key, f"must be HOST:PORT on a loopback address, not {address!r}"
    if config.grpc.tcp and config.grpc.tcp == config.rest.tcp:
        yield "grpc.tcp", f"is the address of rest.tcp too ({config.rest.tcp})"
    socket = Path(config.server.runtime_dir) / config.grpc.unix_path
    if len(str(socket).encode()) > UNIX_PATH_BYTES_MAX:
        yield "grpc.unix_path", f"'{socket}' is longer than {UNIX_PATH_BYTES_MAX} bytes"
    if config.rest.tcp and not config.rest.allowed_hosts:
        yield "rest.allowed_hosts", "is empty: every request would be refused"


def is_loopback(address: str) -> bool:
    """Tell whether "HOST:PORT" ("[::1]:PORT" for IPv6) is a loopback address with a port 1-65535.

    Port 0 (any free port) counts too. Names are not resolved: only "localhost" is known.
    """
    host, colon, port = address.rpartition(":")
    if not colon or re.fullmatch(r"[0-9]{1,5}", port) is None or int(port) > PORT_MAX:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
