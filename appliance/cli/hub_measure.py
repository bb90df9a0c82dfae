"""Measure a publisher's original, and hold editions of it against the measurement.

What this room does: `hub measure`: a health pack in, the same pack with what was likely in the
original's answers and the bar out; how far each edition lies from it.
What it knows: both are asked by the engine that appliances have, in workers of their own.
What it never does: sign, or need a repository.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import click
import msgspec

from appliance import originals
from appliance.cli import hub_options
from appliance.cli.exits import DATA, USAGE, CommandFailed
from appliance.cli.hub_options import json_option, read_part
from appliance.contract.release import HealthPack
from appliance.store.files import write_durably
from appliance.sync.health import check, drift_of

_FILE = click.Path(dir_okay=False, path_type=Path)
_MODEL = click.Path(exists=True, dir_okay=False, path_type=Path)


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """How one edition does: nats from the original, and right answers."""

    path: str
    drift_nats: float
    right: int
    asked: int
    passes: bool


@click.command()
@click.argument("original", type=_MODEL)
@click.option("--health", type=_FILE, required=True, help="The health pack, TOML or JSON.")
@click.option("--out", type=_FILE, required=True, help="Where the measured pack goes, as JSON.")
@click.option(
    "--noise-percent",
    type=click.FloatRange(0.1, 100),
    default=100 * originals.NOISE_USUAL,
    show_default=True,
    help="Refuse what lies further from ORIGINAL than ORIGINAL with so much noise on its weights.",
)
@click.option(
    "--drift-max",
    type=click.FloatRange(0, 100, min_open=True),
    help="The bar itself instead, in nats on average.",
)
@click.option("--edition", "editions", multiple=True, type=_MODEL, help="Hold it against the pack.")
@json_option
def measure(
    *,
    original: Path,
    health: Path,
    out: Path,
    noise_percent: float,
    drift_max: float | None,
    editions: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Ask ORIGINAL the prompts of a health pack, and keep what it finds likely.

    An appliance then refuses a candidate that lies too far from ORIGINAL, also where it writes the
    same text. How far that is, is measured: a noisy copy of ORIGINAL is asked as well; it lies
    beside --out meanwhile. ORIGINAL: the weights before they were quantised, in one file.
    """
    pack = read_part(health, HealthPack)
    if not pack.prompts:
        raise CommandFailed(f"{health}: has no prompts", USAGE)
    with tempfile.TemporaryDirectory(prefix="noisy-", dir=out.parent) as scratch:
        noise = noise_percent / 100 if drift_max is None else 0.0
        pack = asyncio.run(originals.measured(original, pack, Path(scratch), noise=noise))
    if drift_max is not None:
        pack = msgspec.structs.replace(pack, drift_max=drift_max)
    held = [_held(pack, path) for path in editions]
    write_durably(out, msgspec.json.format(msgspec.json.encode(pack), indent=1) + b"\n", mode=0o644)
    if as_json:
        hub_options.print_json({"path": str(out), "drift_max": pack.drift_max, "editions": held})
    else:
        click.echo(f"{out}: {len(pack.prompts)} prompts, at most {pack.drift_max:g} nats of drift")
        for one in held:
            word = "passes" if one.passes else "would be refused"
            click.echo(
                f"{one.path}: {one.drift_nats:.3f} nats, {one.right} of {one.asked} right: {word}"
            )
    if not all(one.passes for one in held):
        raise CommandFailed("an edition would be refused", DATA)


def _held(pack: HealthPack, path: Path) -> Held:
    answers = asyncio.run(originals.answers_of(path, pack.prompts))
    drift = drift_of(pack, answers)
    right = sum(not check(*pair) for pair in zip(pack.prompts, answers, strict=True))
    passes = right >= pack.pass_ratio_min * len(answers) and (
        not pack.drift_max or drift <= pack.drift_max
    )
    return Held(path=str(path), drift_nats=drift, right=right, asked=len(answers), passes=passes)
