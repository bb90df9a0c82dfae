"""Show what a daemon serves now.

What this room does: one row per loaded version, or the same as JSON.
What it knows: what `ModelService` tells.
What it never does: judge, or change anything.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import msgspec
from rich.table import Table

from appliance.cli import show
from appliance.cli.client import Client, HeldStandby, ServedModel
from appliance.cli.options import address_of, address_option

_COLOURS = {"ready": "green", "loading": "yellow", "restarting": "yellow", "failed": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@address_option
def status(
    as_json: bool,  # noqa: FBT001 - an option of a command
    address: str | None,
    runtime_dir: Path | None,
) -> None:
    """Show models, their state, load and workers. Exits with 75 if no daemon answers."""
    where = address_of(address, runtime_dir)
    models, standbys = asyncio.run(_read(where))
    if as_json:
        shown = {"address": where, "models": models, "standbys": standbys}
        print(msgspec.json.encode(shown).decode())
        return
    console = show.console()
    console.print(_table(models))
    for model in models:
        if model.reason:
            console.print(f"{model.label}: {model.reason}", markup=False)
    for standby in standbys:
        console.print(_line(standby), markup=False)


async def _read(address: str) -> tuple[tuple[ServedModel, ...], tuple[HeldStandby, ...]]:
    async with Client(address) as client:
        return await client.models(), await client.standbys()


def _line(standby: HeldStandby) -> str:
    """Say in one line how a standby is held."""
    parts = [show.LEVELS[standby.level], f"{standby.resident_ratio:.0%} of its file in memory"]
    if standby.rollback_ms is not None:
        parts.append(f"the way back took {standby.rollback_ms:.0f} ms")
    if standby.reason:
        parts.append(standby.reason)
    return f"{show.printable(standby.label)}: stands by {', '.join(parts)}"


def _table(models: tuple[ServedModel, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("MODEL", "KIND", "STATE", "ROLE"):
        table.add_column(heading)
    for heading in ("RUN", "WAIT", "KV", "CONTEXT", "SIZE", "PID", "RESTARTS"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        state = model.state
        if state == "loading":
            state += f" {model.loading_ratio:.0%}"
        colour = _COLOURS.get(model.state, "default")
        table.add_row(
            show.printable(model.label),
            model.kind,
            f"[{colour}]{state}[/]",
            f"{model.role} ({model.origin})",
            str(model.running_count),
            str(model.waiting_count),
            f"{model.kv_cells_used / model.kv_cells_total:.0%}" if model.kv_cells_total else "-",
            str(model.facts.context_tokens) if model.facts else "-",
            show.size(model.facts.size_bytes) if model.facts else "-",
            str(model.worker_pid or "-"),
            str(model.worker_restarts),
        )
    return table
