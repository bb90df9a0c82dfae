"""Check the configuration and show the values in use."""

from __future__ import annotations

from pathlib import Path

import click

from appliance import config as configuration

CONFIG_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def config() -> None:
    """Check the configuration."""


@config.command()
@click.option("--config", "path", type=CONFIG_FILE, help="The TOML file; without it the defaults.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key.")
def check(path: Path | None, overrides: tuple[str, ...]) -> None:
    """Read the configuration as `serve` would, and print every value in use.

    Exits with 78 and one line that names the key if anything is wrong.
    """
    changes = dict(configuration.parse_override(text) for text in overrides)
    click.echo(configuration.effective(configuration.load(path, changes)), nl=False)
