"""Show what a daemon serves now.

What this room does: one row per loaded version, how each standby is held, when something was last
learnt from the hub and what it refused; or the same as JSON.
What it knows: what `ModelService` and `DeploymentService` tell.
What it never does: judge, or change anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import click
from rich.table import Table

from appliance.cli import show, show_versions
from appliance.cli.client import HeldStandby, ServedModel
from appliance.cli.models import read
from appliance.cli.options import daemon_options
from appliance.cli.versions_client import Overview
from appliance.clock import utc_ms

_COLOURS = {"ready": "green", "loading": "yellow", "restarting": "yellow", "failed": "red"}


@click.command()
@daemon_options
def status(*, where: str, as_json: bool) -> None:
    """Show models, their state, load and workers, and how this appliance stands with its hub.

    Exits with 75 if no daemon answers.
    """
    seen = asyncio.run(read(where))
    if as_json:
        shown = {"address": where, "models": seen.versions, "standbys": seen.standbys}
        show.print_json(shown | {"overview": seen.overview})
        return
    console = show.console()
    console.print(_table(seen.versions))
    for model in seen.versions:
        if model.reason:
            console.print(f"{model.label}: {model.reason}", markup=False)
    for standby in seen.standbys:
        console.print(_line(standby), markup=False)
    for line in _hub_lines(seen.overview):
        console.print(line, markup=False, soft_wrap=True)


def _hub_lines(overview: Overview | None) -> Iterator[str]:
    """Say what was learnt and when, and what is under way or refused; nothing without a hub."""
    if overview is None:
        return
    for outlook in overview.models:
        if outlook.deployment is not None or outlook.refusal is not None:
            yield from show_versions.outlook_lines(outlook)
    yield from show_versions.sync_lines(overview.sync, utc_ms())


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
