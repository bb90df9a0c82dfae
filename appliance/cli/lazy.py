"""Load the room of a verb when the verb is used.

What this room does: groups of commands that are written as a table: verb, room, attribute, meaning.
What it knows: a verb without a meaning is for our own processes and is not shown.
What it never does: import a room in order to list it.
"""

from __future__ import annotations

import importlib
from typing import ClassVar

import click


class LazyGroup(click.Group):
    """A group that imports a verb's room when the verb is used; `verbs` is its table."""

    verbs: ClassVar[dict[str, tuple[str, str, str]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the verbs in the order of the table."""
        return [verb for verb, (_, _, meaning) in self.verbs.items() if meaning]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one verb."""
        if cmd_name not in self.verbs:
            return super().get_command(ctx, cmd_name)
        room, attribute, _ = self.verbs[cmd_name]
        command = getattr(importlib.import_module(f"appliance.cli.{room}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the verbs from the table, without importing their rooms."""
        rows = [(verb, meaning) for verb, (_, _, meaning) in self.verbs.items() if meaning]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def lazy(table: dict[str, tuple[str, str, str]]) -> type[LazyGroup]:
    """Make a group of a table: verb → (room, attribute, meaning)."""

    class Group(LazyGroup):
        verbs = table

    return Group
