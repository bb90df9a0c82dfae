"""Print what makes a shell complete our verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "appliance"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; load it with: eval "$(appliance completion bash)"."""
    cls = get_completion_class(shell)
    root = ctx.find_root().command
    assert cls is not None
    click.echo(cls(root, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
