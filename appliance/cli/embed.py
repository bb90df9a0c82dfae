"""Turn texts into vectors.

What this room does: `embed`, one text per argument or per line of standard input.
What it knows: the service bounds how many texts one request may hold; so do we, by batches.
What it never does: keep or compare the vectors.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import click

from appliance.cli.client import Client
from appliance.cli.exits import USAGE, CommandFailed
from appliance.cli.options import address_of, address_option

BATCH_TEXTS = 256


@click.command()
@click.argument("texts", nargs=-1)
@click.option("--model", "-m", default="", help="Name or name@version, if several are served.")
@click.option("--raw", is_flag=True, help="As the model gives them, not of length 1.")
@address_option
def embed(
    texts: tuple[str, ...],
    model: str,
    raw: bool,  # noqa: FBT001 - an option of a command
    address: str | None,
    runtime_dir: Path | None,
) -> None:
    """Print one JSON list of numbers per TEXT, or per line of standard input."""
    if not texts and sys.stdin.isatty():
        raise CommandFailed("give texts as arguments or one per line on standard input", USAGE)
    lines: Iterable[str] = texts or (line.rstrip("\n") for line in sys.stdin)
    where = address_of(address, runtime_dir)
    with asyncio.Runner() as runner:
        for batch in _batches(lines):
            for vector in runner.run(_vectors(where, model, batch, raw=raw)):
                print(json.dumps([round(value, 7) for value in vector]))


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(lines)
    while batch := list(islice(rest, BATCH_TEXTS)):
        yield batch


async def _vectors(address: str, model: str, texts: list[str], *, raw: bool) -> list[list[float]]:
    async with Client(address) as client:
        return await client.embed(model, texts, raw=raw)
