"""Show deployments: those under way with their progress, and how the others ended.

What this room does: a table, once or for as long as one watches; a line for each change where the
output is no terminal; the same as JSON.
What it knows: a deployment that is under way changes by itself, so watching is asking again.
What it never does: change anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable

import click
from rich.console import Console, Group
from rich.live import Live

from appliance.cli import show, show_versions
from appliance.cli.exits import RETRY, CommandFailed
from appliance.cli.options import daemon_options
from appliance.cli.versions_client import Deployment, VersionsClient
from appliance.clock import monotonic_ms, utc_ms

COUNT_MAX = 1000
WAIT_S_MAX = 86_400.0
POLL_S = 0.25

_Found = tuple[Deployment, ...]


@click.command()
@click.argument("model", default="")
@click.option("--count", type=click.IntRange(1, COUNT_MAX), default=20, help="How many; 20.")
@click.option("--watch", is_flag=True, help="Go on showing them, until Ctrl-C.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, WAIT_S_MAX),
    help="Show them until none moves by itself any more, for so many seconds at most.",
)
@daemon_options
def deployments(
    *, model: str, count: int, watch: bool, wait_s: float | None, where: str, as_json: bool
) -> None:
    """Show the newest deployments, of MODEL or of all models.

    With --wait, one that waits for 'appliance approve' moves no more; exits with 75 if the time is
    over and another is still under way.
    """
    limit_s = None if watch else wait_s or 0.0
    moving = asyncio.run(_show(where, model, count, limit_s, as_json=as_json))
    if wait_s is not None and not watch and moving:
        raise CommandFailed(f"after {wait_s:g} s still under way: {', '.join(moving)}", RETRY)


async def _show(
    address: str, model: str, count: int, limit_s: float | None, *, as_json: bool
) -> tuple[str, ...]:
    """Show what is found until `limit_s` is over or nothing moves; None: for ever.

    Returns what moves by itself then.
    """
    console = show.console()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(VersionsClient(address))
        shown: Callable[[_Found], None] = _Lines(console).show
        if as_json:
            shown = _print_json
        elif limit_s == 0.0:
            shown = _pictures(console.print)
        elif console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
            shown = _pictures(functools.partial(live.update, refresh=True))
        begun_ms = monotonic_ms()
        before: _Found | None = None
        while True:
            moving = await _moving(client, model)
            found = await client.deployments(model, count)
            if found != before or console.is_terminal:
                shown(found)
            before = found
            past_s = (monotonic_ms() - begun_ms) / 1000
            if limit_s is not None and (not moving or past_s >= limit_s):
                return moving
            await asyncio.sleep(POLL_S)


async def _moving(client: VersionsClient, model: str) -> tuple[str, ...]:
    """Name what is under way and waits for nobody; what has just ended is, until it is settled."""
    overview = await client.overview()
    live = [one.deployment for one in overview.models if model in ("", one.model)]
    return tuple(one.label for one in live if one and one.state != "awaiting_approval")


def _pictures(draw: Callable[[Group], None]) -> Callable[[_Found], None]:
    return lambda found: draw(show_versions.picture(found, utc_ms()))


def _print_json(found: _Found) -> None:
    show.print_json({"deployments": found})


class _Lines:
    """Print a line for each deployment that is in another state than it was shown in."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._known: dict[int, str] = {}

    def show(self, found: _Found) -> None:
        """Print what is new."""
        for one in reversed(found):
            state = show_versions.state_of(one)
            if self._known.get(one.id) != state:
                self._known[one.id] = state
                line = f"{one.id} {show_versions.line_of(one)}"
                self._console.print(line, markup=False, soft_wrap=True)
