"""The command line of the writer: `python -m tools.gguf_writer --shape 160M OUT.gguf`.

What this room does: options in, one file out, one line about it.
What it knows: nothing beyond the options.
What it never does: decide about weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from tools.gguf_writer import (
    SHAPES,
    Quantisation,
    byte_vocabulary,
    read_vocabulary,
    silent_layers,
    write_llama,
)


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), required=True, help="Named sizes.")
@click.option(
    "--vocab",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A GGUF whose tokenizer is taken; without it a small byte-level one is made.",
)
@click.option(
    "--quantisation",
    type=click.Choice([kind.value for kind in Quantisation]),
    default=Quantisation.Q8_0.value,
    show_default=True,
)
@click.option("--layers", type=click.IntRange(min=1), help="Instead of the shape's own number.")
@click.option("--silent-from", type=click.IntRange(min=0), help="Layers from here change nothing.")
@click.option("--context-tokens", type=click.IntRange(min=1), help="Instead of the shape's own.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--name", default="", help="general.name; made from OUT if empty.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Jinja file instead of the vocabulary's own template.",
)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(  # noqa: PLR0913 - one for each option
    *,
    shape: str,
    vocab: Path | None,
    quantisation: str,
    layers: int | None,
    silent_from: int | None,
    context_tokens: int | None,
    seed: int,
    name: str,
    chat_template: Path | None,
    out: Path,
) -> None:
    """Write a GGUF with random weights to OUT. The same options give the same bytes."""
    named = SHAPES[shape]
    sizes = replace(
        named,
        layers=layers or named.layers,
        context_tokens=context_tokens or named.context_tokens,
    )
    try:
        size = write_llama(
            out,
            sizes,
            read_vocabulary(vocab) if vocab else byte_vocabulary(),
            Quantisation(quantisation),
            seed=seed,
            name=name,
            alter=None if silent_from is None else silent_layers(silent_from),
            chat_template=chat_template.read_text(encoding="utf-8") if chat_template else None,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{out}: {shape} {quantisation}, {size / 1e6:.1f} MB, seed {seed}")


if __name__ == "__main__":
    main()
