"""Serve the repository and the appliances, in the foreground.

What this room does: the configuration of the hub; the online keys handed to what signs again.
What it knows: `hub.process`.
What it never does: import what holds offline keys.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from appliance import config as configuration
from appliance import logs
from appliance.hub import online, process
from appliance.hub.signing import Repository

CONFIG_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--config", "path", type=CONFIG_FILE, help="The TOML file; without it the defaults.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key.")
def serve(path: Path | None, overrides: tuple[str, ...]) -> None:
    """Serve what was published to enrolled appliances, and tell them when there is news.

    SIGTERM and Ctrl-C let transfers end first; a second one does not. Exits with 78 if the
    configuration can't be followed.
    """
    changes = dict(configuration.parse_override(text) for text in overrides)
    config = configuration.load(path, changes)
    logs.set_up(config.server.log_level, human=sys.stderr.isatty())
    state = Path(config.hub.state_dir)
    keys = Path(config.hub.online_keys_dir or state / online.KEYS_DIRECTORY)
    repository = Repository(state / process.REPOSITORY_DIRECTORY)
    process.run(config, online.resigner(repository, keys))
