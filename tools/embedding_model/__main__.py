"""Make the embedding GGUF: `python -m tools.embedding_model` prints where it is.

What this room does: asks for the cached file and says its path.
What it knows: nothing more.
What it never does: write into the tree.
"""

from __future__ import annotations

import click

from tools.embedding_model import cached_gguf, convert
from tools.embedding_model.convert import EDITION


@click.command()
def main() -> None:
    """Fetch and convert the model if it is not in the cache yet, and print its path."""
    click.echo(cached_gguf(convert, EDITION))


if __name__ == "__main__":
    main()
