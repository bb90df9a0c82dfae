"""Train, export and measure the demo model from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import click

_TARGET = Path("appliance/models/demo")
_folder = click.argument("folder", type=click.Path(path_type=Path))
_target = click.option(
    "--target", type=click.Path(path_type=Path), default=_TARGET, show_default=True,
    help="Where the GGUF files are.",
)  # fmt: skip


@click.group()
def main() -> None:
    """Make the demo model. FOLDER holds the training's checkpoints; it may be anywhere."""


@main.command("train")
@_folder
@click.option("--steps", type=int, default=None, help="Optimiser steps in all.")
@click.option("--threads", type=int, default=None, help="Threads of PyTorch.")
@click.option("--batch-tokens", type=int, default=None, help="Tokens of one optimiser step.")
@click.option("--seed", type=int, default=None, help="Of another model than the usual one.")
@click.option("--layers", type=int, default=None, help="Of a smaller or larger one.")
def train_command(folder: Path, **given: int | None) -> None:
    """Train, or go on where a stopped run was."""
    from tools.demo_model.train import train  # noqa: PLC0415 - needs torch; the corpus doesn't

    train(folder, **{key: value for key, value in given.items() if value is not None})


@main.command("export")
@_folder
@_target
def export_command(folder: Path, target: Path) -> None:
    """Write the GGUF files of versions 1, 2 and 3 from a training."""
    from tools.demo_model.export import export_all  # noqa: PLC0415 - needs torch

    for path in export_all(folder, target):
        click.echo(f"{path}  {path.stat().st_size:,} bytes")


@main.command("evaluate")
@_folder
@_target
def evaluate_command(folder: Path, target: Path) -> None:
    """Measure every file through llama.cpp; write the model card and the held-out sample."""
    from tools.demo_model import evaluate  # noqa: PLC0415 - needs llama.cpp
    from tools.demo_model.export import DAMAGED_TENSOR, DESCRIPTION  # noqa: PLC0415 - needs torch
    from tools.demo_model.model import Shape  # noqa: PLC0415 - needs torch

    chats = evaluate.held_out_sample(evaluate.COUNT)
    results = {}
    for path in sorted(target.glob("demo-*.gguf")):
        results[path] = evaluate.score(path, chats)
        click.echo(f"{path.name}  {evaluate.exact_share(results[path]):.1%}")
    trail = json.loads((folder / "trail.json").read_text())
    kept = chats[: evaluate.KEPT_COUNT]
    evaluate.write_kept(kept, target / "heldout.jsonl")
    shape = Shape(**trail.get("shape", {}))
    facts = {
        "description": DESCRIPTION, "layers": shape.layers, "width": shape.width,
        "vocabulary": shape.vocabulary, "seed": trail["plan"]["seed"],
        "steps": trail["plan"]["steps"], "minutes": trail["trail"][-1]["spent_s"] / 60,
        "count": evaluate.COUNT, "kept": len(kept), "damaged": f"`{DAMAGED_TENSOR}`",
    }  # fmt: skip
    evaluate.write_card(results, facts, target / "README.md")


if __name__ == "__main__":
    main()
