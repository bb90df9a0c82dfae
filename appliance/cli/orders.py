"""Give a daemon an operator's orders about its versions.

What this room does: one command for each order, over the operator's own socket; how it came out.
What it knows: the daemon reads a bundle itself, so its path is made absolute here.
What it never does: decide; what can't be done is refused by the daemon, with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from appliance.cli import show, show_versions
from appliance.cli.exits import RETRY, SOFTWARE, CommandFailed
from appliance.cli.options import daemon_options
from appliance.cli.show import print_json
from appliance.cli.versions_client import Outlook, SyncStatus, VersionsClient
from appliance.clock import utc_ms

_T = TypeVar("_T")
_Ask = Callable[[VersionsClient], Awaitable[_T]]
_BACK = frozenset({"rolled_back", "aborted"})


@click.command()
@click.argument("model")
@daemon_options
def rollback(*, model: str, where: str, as_json: bool) -> None:
    """Send the users of MODEL back: out of a trial, or from the active version to its standby.

    Exits with 75 if it is not done after a minute; it goes on then.
    """
    done = _told(where, lambda client: client.rollback(model))
    if as_json:
        print_json(done)
    state = done.deployment.state
    if not done.deployment.has_ended:
        raise CommandFailed(show_versions.line_of(done.deployment), RETRY)
    if state not in _BACK:
        raise CommandFailed(show_versions.line_of(done.deployment), SOFTWARE)
    if as_json:
        return
    what = "back on the version before" if state == "rolled_back" else "not on it: they never were"
    lasting = (
        "" if done.is_durable else "; a power cut now would undo it: the disk can't be written"
    )
    left = show.printable(done.deployment.label)
    print(f"{left}: {state.replace('_', ' ')} in {done.took_ms:.1f} ms; users are {what}{lasting}")


@click.command()
@click.argument("model")
@click.argument("version")
@daemon_options
def pin(*, model: str, version: str, where: str, as_json: bool) -> None:
    """Take no other version of MODEL than VERSION, whatever the hub assigns."""
    _ordered(where, model, lambda c: c.pin(model, version), as_json=as_json)


@click.command()
@click.argument("model")
@daemon_options
def unpin(*, model: str, where: str, as_json: bool) -> None:
    """Take any version of MODEL again."""
    _ordered(where, model, lambda c: c.pin(model, ""), as_json=as_json)


@click.command()
@click.argument("model")
@daemon_options
def hold(*, model: str, where: str, as_json: bool) -> None:
    """Take no new version of MODEL; what is under way goes on."""
    _ordered(where, model, lambda c: c.hold(model, is_held=True), as_json=as_json)


@click.command()
@click.argument("model")
@daemon_options
def release(*, model: str, where: str, as_json: bool) -> None:
    """Take new versions of MODEL again, after 'hold'."""
    _ordered(where, model, lambda c: c.hold(model, is_held=False), as_json=as_json)


@click.command()
@click.argument("model")
@daemon_options
def approve(*, model: str, where: str, as_json: bool) -> None:
    """Let the version of MODEL that waits for a person meet users."""
    _ordered(where, model, lambda c: c.approve(model), as_json=as_json)


@click.command()
@click.argument("model")
@daemon_options
def cancel(*, model: str, where: str, as_json: bool) -> None:
    """End the deployment of MODEL that is under way.

    Its version is left alone from then on; 'appliance forgive' lets it be tried again.
    """
    _ordered(where, model, lambda c: c.cancel(model), as_json=as_json)


@click.command()
@click.argument("model")
@click.argument("version")
@daemon_options
def forgive(*, model: str, version: str, where: str, as_json: bool) -> None:
    """Let VERSION of MODEL be tried again that failed here, or was cancelled."""
    _ordered(where, model, lambda c: c.forgive(model, version), as_json=as_json)


@click.command()
@click.argument("model")
@daemon_options
def drill(*, model: str, where: str, as_json: bool) -> None:
    """Rehearse the way back of MODEL to its standby, and tell how long it takes.

    Users notice nothing of it. Exits with 70 if the way back does not work.
    """
    done = _told(where, lambda client: client.drill(model))
    if as_json:
        print_json(done)
    if done.reason:
        raise CommandFailed(f"{done.label} can't be gone back to: {done.reason}", SOFTWARE)
    if not as_json:
        loading = f"loaded in {done.load_ms:.0f} ms, " if done.load_ms else ""
        print(
            f"{show.printable(done.label)}: {loading}takes a request after "
            f"{done.accepted_ms:.1f} ms, its first token after {done.first_token_ms:.1f} ms"
        )


@click.group()
def sync() -> None:
    """Learn what a hub has signed for this appliance."""


@sync.command()
@daemon_options
def now(*, where: str, as_json: bool) -> None:
    """Look for news at once; returns when what came is acted on.

    What it began is shown by 'appliance deployments'. Exits with 75 if no source answers.
    """
    _show_news(_told(where, lambda client: client.sync_now()), as_json=as_json)


@click.command(name="import")
@click.argument("path", type=click.Path(path_type=Path))
@daemon_options
def take_in(*, path: Path, where: str, as_json: bool) -> None:
    """Take in the bundle at PATH, a directory or a tar that 'appliance hub export' wrote.

    It is believed as far as it is signed, as if it came from the hub. When this returns, the files
    of what applies are here, so that the bundle may go; trying it goes on.
    """
    bundle = str(path.absolute())
    _show_news(_told(where, lambda client: client.take_in(bundle)), as_json=as_json)


def _told(where: str, ask: _Ask[_T]) -> _T:
    async def asked() -> _T:
        async with VersionsClient(where) as client:
            return await ask(client)

    return asyncio.run(asked())


def _ordered(where: str, model: str, ask: _Ask[None], *, as_json: bool) -> None:
    """Give an order, and show how its model stands afterwards."""

    async def done(client: VersionsClient) -> Outlook | None:
        await ask(client)
        overview = await client.overview()
        return next((one for one in overview.models if one.model == model), None)

    outlook = _told(where, done)
    if as_json:
        print_json({"model": outlook})
    elif outlook is not None:
        print("\n".join(show_versions.outlook_lines(outlook)))
    else:
        print(f"{show.printable(model)}: written down; no hub has named it yet")


def _show_news(sync_status: SyncStatus, *, as_json: bool) -> None:
    if as_json:
        print_json({"sync": sync_status})
        return
    for line in show_versions.sync_lines(sync_status, utc_ms()):
        print(line)
