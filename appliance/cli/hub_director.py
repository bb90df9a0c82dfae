"""Direct the fleet from the hub: assign versions, sign what waits, write bundles.

What this room does: `assign`, `halt`, `sign` and `export`.
What it knows: `hub.assigning`, `hub.export`, the online keys.
What it never does: open an offline key that it was not handed.
"""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli import hub_options, show
from appliance.cli.exits import USAGE, CommandFailed
from appliance.cli.hub_options import (
    Places,
    Ring,
    json_option,
    key_options,
    place_options,
    read_part,
    sign_shown,
    yes_option,
)
from appliance.clock import utc_ms
from appliance.contract.release import Strategy
from appliance.errors import PublishRefused
from appliance.hub import assigning
from appliance.hub import export as exporting

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("cohort")
@click.argument("model")
@click.argument("version", default="")
@click.option("--strategy", type=_FILE, help="In place of the release's own, TOML or JSON.")
@click.option("--none", "is_none", is_flag=True, help="Say nothing of MODEL any more.")
@place_options
@json_option
def assign(
    *,
    cohort: str,
    model: str,
    version: str,
    strategy: Path | None,
    is_none: bool,
    places: Places,
    as_json: bool,
) -> None:
    """Let COHORT run VERSION of MODEL, beside its other models."""
    if is_none == bool(version):
        raise CommandFailed("give a VERSION or --none", USAGE)
    now = utc_ms()
    online = places.online()
    if is_none:
        done, signing = assigning.unassign(places.repository, cohort, model, online, now_utc_ms=now)
    else:
        done, signing = assigning.assign(
            places.repository,
            cohort,
            model,
            version,
            online,
            now_utc_ms=now,
            strategy=read_part(strategy, Strategy) if strategy else None,
        )
    settled = places.settle(now)
    if as_json:
        hub_options.print_json(
            {"assignment": done, "signing": signing, "put_out": settled.versions}
        )
        return
    for one in done.models:
        click.echo(f"{done.cohort}: {one.model}@{one.version}")
    hub_options.print_put_out(settled.versions)
    if signing.role not in settled.versions:
        hub_options.print_waiting(signing)


@click.command()
@click.argument("cohort")
@click.option("--resume", is_flag=True, help="Let it go on.")
@place_options
@json_option
def halt(*, cohort: str, resume: bool, places: Places, as_json: bool) -> None:
    """Stop what the appliances of COHORT have begun; what is committed stays."""
    now = utc_ms()
    done, signing = assigning.halt(
        places.repository, cohort, places.online(), now_utc_ms=now, is_halted=not resume
    )
    settled = places.settle(now)
    if as_json:
        hub_options.print_json(
            {"assignment": done, "signing": signing, "put_out": settled.versions}
        )
        return
    click.echo(f"{done.cohort}: {'stopped' if done.halt else 'goes on'}")
    hub_options.print_put_out(settled.versions)


@click.command()
@click.argument("role", default="")
@click.option("--cancel", is_flag=True, help="Forget the pending version of ROLE.")
@click.option("--renew", is_flag=True, help="Make a version of ROLE that only expires later.")
@yes_option
@key_options
@place_options
@json_option
def sign(
    *,
    role: str,
    cancel: bool,
    renew: bool,
    yes: bool,
    ring: Ring,
    places: Places,
    as_json: bool,
) -> None:
    """Sign what waits for signatures, all of it or ROLE alone; put out what is complete.

    With the hub's online keys at hand it also signs again what would expire. Shows what waits.
    """
    now = utc_ms()
    if (cancel or renew) and not role:
        raise CommandFailed("--cancel and --renew need a ROLE", USAGE)
    if cancel:
        places.repository.cancel(role)
    else:
        if renew:
            places.repository.redraft(role, now_utc_ms=now)
        _add_signatures(places, role, ring, yes=yes)
    online = places.online()
    put_out = places.repository.refresh(online, now_utc_ms=now).versions if online else {}
    pending, due = places.repository.pending(), places.repository.due(now)
    stale = places.repository.stale()
    if as_json:
        hub_options.print_json({"put_out": put_out, "pending": pending, "due": due, "stale": stale})
        return
    hub_options.print_put_out(put_out)
    for one in pending:
        hub_options.print_waiting(one)
    for late in due:
        click.echo(f"{late.role} {late.reason}: 'appliance hub sign {late.role} --renew'")
    for old in stale:
        click.echo(f"{old}: its pending version was made from an older one; make it again")
    if not (put_out or pending or due or stale):
        click.echo("nothing waits, nothing is due")


def _add_signatures(places: Places, role: str, ring: Ring, *, yes: bool) -> None:
    waiting = [one.role for one in places.repository.pending()]
    if role and role not in waiting:
        raise PublishRefused(what=role, reason="no version of it is being signed")
    roles = [role] if role else waiting
    if not (roles and ring.paths):
        return
    if not sign_shown(places.repository, ring.signers(), roles, yes=yes):
        reason = "none of these keys may sign it"
        raise PublishRefused(what=", ".join(roles), reason=reason)


@click.command()
@click.option("--cohort", required=True, help="For the appliances of this cohort.")
@click.option(
    "--to",
    required=True,
    type=click.Path(path_type=Path),
    help="A directory to make, or a file that ends in .tar.",
)
@click.option("--since", type=click.IntRange(0), default=0, help="Leave out what the assignment"
              " of this sequence brought.")  # fmt: skip
@place_options
@json_option
def export(
    cohort: str,
    to: Path,
    since: int,
    places: Places,
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """Write what a cohort needs onto a stick, for 'appliance import'."""
    done = exporting.export(places.repository, cohort, to, since=since)
    if as_json:
        hub_options.print_json(done)
        return
    click.echo(f"{done.path}: {done.files_count} files, {show.size(done.total_bytes)}")
    if done.left_out_bytes:
        click.echo(f"left out, the site has it: {show.size(done.left_out_bytes)}")
    click.echo(f"next time: --since {done.sequence}")
