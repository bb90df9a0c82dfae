"""Enrol this appliance with a hub.

What this room does: the token from the command line or a file; what came of it.
What it knows: the token names the hub's CA, so that no other hub can answer in its place.
What it never does: keep the token.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TextIO

import click
import msgspec

from appliance import config as configuration
from appliance.cli import places
from appliance.cli.exits import USAGE, CommandFailed
from appliance.sync import enrolment

TOKEN_CHARS_MAX = 1024
_FILE = click.File("r", encoding="utf-8")


@click.command()
@click.option("--hub", "url", required=True, metavar="URL", help="https://HOST:PORT of the hub.")
@click.option("--token", default="", help="The one-time token that the hub made.")
@click.option("--token-file", type=_FILE, help="A file that holds it; '-' for standard input.")
@click.option("--config", "path", type=click.Path(dir_okay=False, path_type=Path), help="The file.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The daemon's state directory, if no file says it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def enrol(
    url: str,
    token: str,
    token_file: TextIO | None,
    path: Path | None,
    state_dir: Path | None,
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """Enrol with a hub by a one-time token; a running daemon finds it by itself.

    The key is made here and stays here. Exits with 77 if the hub refuses, 75 if it does not answer.
    """
    if token_file is not None:
        token = token_file.read(TOKEN_CHARS_MAX)
    if not token.strip():
        raise CommandFailed("give the token by --token or --token-file", USAGE)
    config = configuration.load(path)
    where = state_dir or (Path(config.server.state_dir) if path else places.state_dir())
    identity = asyncio.run(enrolment.enrol(url, token, where, config.link.dial_timeout_s))
    if as_json:
        print(msgspec.json.encode(identity.hub).decode())
        return
    hub = identity.hub
    print(f"enrolled as '{hub.device}' of cohort '{hub.cohort}' with {hub.url}")
