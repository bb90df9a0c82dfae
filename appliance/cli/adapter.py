"""Load, unload and list LoRA adapters of a running daemon.

What this room does: one command each, over the operator's own socket.
What it knows: the daemon opens the file itself, so a path is made absolute here.
What it never does: read a file, or change the configuration.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import msgspec
from rich.table import Table

from appliance.cli import show
from appliance.cli.client import Client, LoadedAdapter
from appliance.cli.options import address_of, address_option

_COLOURS = {"ready": "green", "loading": "yellow", "draining": "yellow", "failed": "red"}


@click.group()
def adapter() -> None:
    """Load, unload and list LoRA adapters."""


@adapter.command()
@click.argument("name")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", "-m", default="", help="The model it is for, if several are served.")
@click.option("--scale", type=float, default=1.0, help="How strongly it is applied; default 1.")
@address_option
def load(
    name: str,
    path: Path,
    model: str,
    scale: float,
    address: str | None,
    runtime_dir: Path | None,
) -> None:
    """Load the GGUF at PATH as the adapter NAME; returns when requests may name it.

    It is kept until the daemon ends; in the configuration, [[models.adapters]] brings it back.
    """
    with asyncio.Runner() as runner:
        where = address_of(address, runtime_dir)
        loaded = runner.run(_load(where, model, name, path.absolute(), scale))
    print(
        f"{loaded.model}:{loaded.name} is {loaded.state}: rank {loaded.rank}, "
        f"{show.size(loaded.size_bytes)}; loading held the model's streams up for "
        f"{loaded.load_ms:.0f} ms"
    )


@adapter.command()
@click.argument("name")
@click.option("--model", "-m", default="", help="Its model, if several have one of that name.")
@address_option
def unload(name: str, model: str, address: str | None, runtime_dir: Path | None) -> None:
    """Unload the adapter NAME; returns when the requests that name it have ended.

    It takes no new requests from the start, also if this command is stopped before.
    """
    with asyncio.Runner() as runner:
        runner.run(_unload(address_of(address, runtime_dir), model, name))
    print(f"{name} is unloaded")


@adapter.command(name="list")
@click.option("--model", "-m", default="", help="Of this model only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@address_option
def list_adapters(
    model: str,
    as_json: bool,  # noqa: FBT001 - an option of a command
    address: str | None,
    runtime_dir: Path | None,
) -> None:
    """Show the adapters that are loaded."""
    where = address_of(address, runtime_dir)
    with asyncio.Runner() as runner:
        found = runner.run(_list(where, model))
    if as_json:
        print(msgspec.json.encode({"address": where, "adapters": found}).decode())
        return
    console = show.console()
    console.print(_table(found))
    for one in found:
        if one.reason:
            console.print(f"{one.model}:{one.name}: {one.reason}", markup=False)


def _table(found: tuple[LoadedAdapter, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("ADAPTER", "MODEL", "STATE"):
        table.add_column(heading)
    for heading in ("SCALE", "RANK", "SIZE", "REQUESTS"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            show.printable(one.name),
            show.printable(one.model),
            f"[{_COLOURS.get(one.state, 'default')}]{one.state}[/]",
            f"{one.scale:g}",
            str(one.rank),
            show.size(one.size_bytes),
            str(one.requests_count),
        )
    return table


async def _load(address: str, model: str, name: str, path: Path, scale: float) -> LoadedAdapter:
    async with Client(address) as client:
        return await client.load_adapter(model, name, str(path), scale)


async def _unload(address: str, model: str, name: str) -> None:
    async with Client(address) as client:
        await client.unload_adapter(model, name)


async def _list(address: str, model: str) -> tuple[LoadedAdapter, ...]:
    async with Client(address) as client:
        return await client.adapters(model)
