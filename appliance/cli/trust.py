"""Install the root by which versions are checked.

What this room does: the file and its digest from the command line; what the root says of itself.
What it knows: the digest comes from whoever holds the root keys, not from the hub.
What it never does: fetch a root, or install one without its digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from appliance import config as configuration
from appliance.cli import places
from appliance.sync import anchor
from appliance.sync.clock_rules import shown
from appliance.sync.trust import ROOT_BYTES_MAX


@click.command()
@click.argument("root", type=click.File("rb"))
@click.option("--sha256", required=True, metavar="HEX", help="What 'sha256sum' says of the file.")
@click.option("--config", "path", type=click.Path(dir_okay=False, path_type=Path), help="The file.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The daemon's state directory, if no file says it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def trust(
    root: BinaryIO,
    sha256: str,
    path: Path | None,
    state_dir: Path | None,
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """Trust the versions that ROOT, a repository's metadata/1.root.json, leads to.

    Ask the holder of the root keys for the digest, on another way than the file came.
    """
    config = configuration.load(path)
    where = state_dir or (Path(config.server.state_dir) if path else places.state_dir())
    facts = anchor.install(where, root.read(ROOT_BYTES_MAX + 1), sha256)
    if as_json:
        print(msgspec.json.encode(facts).decode())
        return
    print(
        f"trusted: root version {facts.version}, {facts.threshold} of {facts.keys_count} keys sign"
        f" the next one, expires {shown(facts.expires_utc_ms)}"
    )
