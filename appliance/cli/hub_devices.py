"""Let appliances in at the hub, and shut them out.

What this room does: one-time tokens; the inventory as a table or as JSON; its changes.
What it knows: `hub.inventory`; the hub may be running meanwhile: both use one database.
What it never does: show a token twice, or a secret that is not new.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from appliance import config as configuration
from appliance.cli.exits import USAGE, CommandFailed
from appliance.clock import utc_ms
from appliance.config import Config
from appliance.contract.names import checked
from appliance.hub import enrol, inventory
from appliance.hub.authority import Authority
from appliance.hub.inventory import Device, DeviceStatus
from appliance.hub.process import hub_directory, opened_inventory
from appliance.store import Transaction

TOKEN_HOURS_MAX = 24 * 365
_HOUR_MS = 3_600_000
_FILE = click.Path(dir_okay=False, path_type=Path)


def hub_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which hub is meant."""
    for option in (
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override."),
        click.option("--config", "path", type=_FILE, help="The hub's TOML file."),
    ):
        command = option(command)
    return command


def hub_config(path: Path | None, overrides: tuple[str, ...]) -> Config:
    """Read the configuration of the hub. Raises ConfigError."""
    return configuration.load(path, dict(configuration.parse_override(one) for one in overrides))


@click.command()
@click.option("--cohort", required=True, help="The cohort that the appliance belongs to.")
@click.option("--device", default="", help="Its name; without one it is named after its key.")
@click.option(
    "--hours",
    type=click.FloatRange(0, TOKEN_HOURS_MAX, min_open=True),
    default=24.0,
    help="How long the token is good; default 24.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@hub_options
def token(
    cohort: str,
    device: str,
    hours: float,
    path: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """Make a token that lets one appliance enrol, once.

    It goes to standard output, this once; the hub keeps its digest. A token that names a device
    which is enrolled already makes that one's earlier certificates void.
    """
    config = hub_config(path, overrides)
    now = utc_ms()
    times = (now, now + int(hours * _HOUR_MS))
    authority = Authority.open(hub_directory(config), now)
    with opened_inventory(config) as store:
        text = enrol.new_token(store, authority, cohort, device, times)
    if as_json:
        print(msgspec.json.encode({"token": text, "expires_utc_ms": times[1]}).decode())
    else:
        print(text)


@click.group()
def device() -> None:
    """List, revoke, restore and move appliances."""


@device.command("list")
@click.option("--cohort", default="", help="Of this cohort only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@hub_options
def list_devices(
    cohort: str,
    path: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """List the appliances: cohort, status, when they were last heard, until when they may come."""
    with opened_inventory(hub_config(path, overrides)) as store:
        found = inventory.devices(store, cohort)
    if as_json:
        print(msgspec.json.encode({"devices": found}).decode())
        return
    Console(highlight=False).print(_table(found, utc_ms()))


@device.command()
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 1000), default=20, help="How many; default 20.")
@hub_options
def reports(name: str, count: int, path: Path | None, overrides: tuple[str, ...]) -> None:
    """Print the last reports of the appliance NAME as JSON, one a line, newest first.

    A "deployment-step" says which state a version entered there, and why.
    """
    with opened_inventory(hub_config(path, overrides)) as store:
        for report in inventory.reports(store, checked(name, "device"), count):
            line = {
                "seq": report.seq,
                "utc_ms": report.utc_ms,
                "kind": report.kind,
                "body": report.body.decode(errors="replace"),
            }
            print(msgspec.json.encode(line).decode())


@device.command()
@click.argument("name")
@hub_options
def revoke(name: str, path: Path | None, overrides: tuple[str, ...]) -> None:
    """Shut out the appliance NAME: at its next request, whatever certificate it has."""
    _change(
        path,
        overrides,
        name,
        lambda rows: inventory.set_status(rows, name, DeviceStatus.REVOKED),
    )


@device.command()
@click.argument("name")
@hub_options
def restore(name: str, path: Path | None, overrides: tuple[str, ...]) -> None:
    """Let the revoked appliance NAME in again."""
    _change(
        path,
        overrides,
        name,
        lambda rows: inventory.set_status(rows, name, DeviceStatus.ACTIVE),
    )


@device.command()
@click.argument("name")
@click.argument("cohort")
@hub_options
def move(name: str, cohort: str, path: Path | None, overrides: tuple[str, ...]) -> None:
    """Put the appliance NAME into another COHORT, which it learns at its next renewal."""
    cohort = checked(cohort, "cohort")
    _change(path, overrides, name, lambda rows: inventory.move(rows, name, cohort))


def _change(
    path: Path | None,
    overrides: tuple[str, ...],
    name: str,
    intent: Callable[[Transaction], bool],
) -> None:
    with opened_inventory(hub_config(path, overrides)) as store:
        if not store.submit(intent).result():
            raise CommandFailed(f"the hub knows no appliance '{name}'", USAGE)


def _table(found: list[Device], now_utc_ms: int) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("DEVICE", "COHORT", "STATUS", "SEEN", "CERTIFICATE", "PROGRAM"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        table.add_row(
            one.device,
            one.cohort,
            one.status.value,
            f"{_hours(now_utc_ms - one.seen_utc_ms)} ago" if one.seen_utc_ms else "never",
            f"for {_hours(one.certificate_ends_utc_ms - now_utc_ms)}",
            one.program,
        )
    return table


def _hours(span_ms: int) -> str:
    return f"{span_ms / _HOUR_MS:.1f} h"
