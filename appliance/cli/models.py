"""Show the versions of each model: which serve, which stand by, and what the hub says of them.

What this room does: one row for each version that is here; what is assigned, wished, tried and
refused, with what to do about it; the same as JSON.
What it knows: what `ModelService` and `DeploymentService` tell.
What it never does: judge, or change anything.
"""

from __future__ import annotations

import asyncio

import click
import msgspec
from rich.table import Table
from rich.text import Text

from appliance.cli import show, show_versions
from appliance.cli.client import Client, HeldStandby, ServedModel
from appliance.cli.connection import CallFailed
from appliance.cli.options import daemon_options
from appliance.cli.versions_client import Overview, VersionsClient
from appliance.clock import utc_ms
from appliance.errors import PermissionDenied


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What is here, and how that stands with the hub; None: only operators are told."""

    versions: tuple[ServedModel, ...]
    standbys: tuple[HeldStandby, ...]
    overview: Overview | None


@click.command()
@daemon_options
def models(*, where: str, as_json: bool) -> None:
    """Show each version here, its role, and what the hub assigns, with the reason if it is refused.

    Exits with 75 if no daemon answers.
    """
    seen = asyncio.run(read(where))
    if as_json:
        show.print_json(seen)
        return
    console = show.console()
    console.print(_table(seen))
    if seen.overview is None:
        return
    for outlook in seen.overview.models:
        for line in show_versions.outlook_lines(outlook):
            console.print(line, markup=False, soft_wrap=True)
    for line in show_versions.sync_lines(seen.overview.sync, utc_ms()):
        console.print(line, markup=False, soft_wrap=True)


async def read(address: str) -> Seen:
    """Ask a daemon. Raises CallFailed."""
    async with Client(address) as client, VersionsClient(address) as versions:
        return Seen(
            versions=await client.models(),
            standbys=await client.standbys(),
            overview=await _overview(versions),
        )


async def _overview(versions: VersionsClient) -> Overview | None:
    try:
        return await versions.overview()
    except CallFailed as failure:
        if failure.code == PermissionDenied.code:
            return None
        raise


def _table(seen: Seen) -> Table:
    """Lay out a row for each version that is loaded, or stands by without being so."""
    table = Table(box=None, pad_edge=False)
    for heading in ("VERSION", "ROLE", "STATE", "FROM", "HELD"):
        table.add_column(heading, no_wrap=True)
    table.add_column("WAY BACK", justify="right", no_wrap=True)
    held = {standby.label: standby for standby in seen.standbys}
    for one in seen.versions:
        standby = held.pop(one.label, None)
        _row(table, one.label, one.role, one.state, one.origin, standby)
    for label, standby in held.items():
        _row(table, label, "standby", "not loaded", "-", standby)
    return table


def _row(
    table: Table, label: str, role: str, state: str, origin: str, standby: HeldStandby | None
) -> None:
    level = show.LEVELS[standby.level] if standby else "-"
    took = standby.rollback_ms if standby else None
    way_back = f"{took:.0f} ms" if took is not None else "-"
    table.add_row(Text(show.printable(label)), role, state, origin, level, way_back)
