"""Make API keys for applications.

What this room does: a new key, shown once, and the lines of configuration that let it in.
What it knows: the configuration holds the digest of a key only.
What it never does: write a file, talk to a daemon, or show a key twice.
"""

from __future__ import annotations

import click

from appliance import config as configuration
from appliance import domain
from appliance.access.keys import new_key
from appliance.cli.exits import USAGE, CommandFailed
from appliance.errors import ConfigError

PRIORITIES = [priority.value for priority in domain.Priority]


@click.group()
def key() -> None:
    """Make API keys for applications."""


@key.command()
@click.argument("name")
@click.option("--weight", type=float, default=1.0, help="Share beside other clients; default 1.")
@click.option(
    "--priority-max",
    type=click.Choice(PRIORITIES),
    default=PRIORITIES[0],
    help="Highest class it may ask for; default interactive.",
)
def new(name: str, weight: float, priority_max: str) -> None:
    """Make a key for the application NAME.

    The key goes to standard output, this once; the lines to add to the configuration go to
    standard error. They hold the digest of the key, not the key.
    """
    secret, digest = new_key()
    fields = {
        "name": name,
        "key_sha256": digest,
        "weight": weight,
        "priority_max": priority_max,
    }
    try:
        (client,) = configuration.load(None, {"clients": [fields]}).clients
    except ConfigError as error:
        raise CommandFailed(error.message, USAGE) from error
    click.echo("Add this to the configuration and start the daemon again:\n", err=True)
    click.echo(configuration.section_text("clients", client), err=True)
    click.echo(secret)
