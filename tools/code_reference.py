"""Write `docs/reference/{errors,metrics,cli}.md` from the code.

What this program does: lists every error class with what each face says of it, every metric, and
every command with its options.
What it knows: tests hold the three pages equal to what it writes.
What it never does: explain what the code's own words don't.

Usage: python -m tools.code_reference
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from appliance.api.grpc_errors import GRPC_STATUS
from appliance.api.rest_errors import HTTP_STATUS
from appliance.cli.exits import exit_code_of
from appliance.cli.main import cli
from appliance.errors import ApplianceError, concrete_classes
from appliance.observe.families import FAMILIES

PAGES = Path(__file__).resolve().parent.parent / "docs" / "reference"
_WRITTEN = "Written by `python -m tools.code_reference`."


def errors_page() -> str:
    """List every concrete error class, in the order of `errors`."""
    lines = [
        "# Error codes",
        "",
        "Every refusal and failure has one stable code: the `reason` of gRPC's `ErrorInfo`, and",
        "`error.code` on REST where OpenAI has no word of its own. A retryable error is worth",
        f"sending again unchanged, after the time it names if it names one. {_WRITTEN}",
        "",
        "| code | meaning | gRPC | HTTP | exit code | retryable |",
        "|---|---|---|---|---|---|",
    ]
    for cls in concrete_classes():
        retryable = "yes" if cls.retryable else "no"
        lines.append(
            f"| `{cls.code}` | {_first_line(cls)} | {GRPC_STATUS[cls].name} |"
            f" {HTTP_STATUS[cls].status} | {exit_code_of(cls.code)} | {retryable} |"
        )
    return "\n".join([*lines, ""])


def metrics_page() -> str:
    """List every metric family."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` shows them in Prometheus' text format. Labels are bounded: models that are",
        f"served, codes and reasons of this program, never a client's text. {_WRITTEN}",
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind.value} | {labels} | {family.help} |")
    return "\n".join([*lines, ""])


def cli_page() -> str:
    """List every command with its arguments and options."""
    lines = ["# Commands", "", f"`appliance COMMAND --help` says the same. {_WRITTEN}", ""]
    context = click.Context(cli)
    for verb in cli.list_commands(context):
        command = cli.get_command(context, verb)
        assert command is not None
        for path, leaf in _leaves(f"appliance {verb}", command):
            lines += _command(path, leaf)
    return "\n".join(lines)


def _leaves(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from _leaves(f"{path} {name}", child)


def _command(path: str, command: click.Command) -> list[str]:
    lines = [f"## {path}", "", _paragraph(command.help or ""), ""]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            lines.append(f"- {names}: {_paragraph(parameter.help or '')}")
        else:
            lines.append(f"- `{parameter.human_readable_name}`: argument")
    return [*lines, ""] if command.params else lines


def _paragraph(text: str) -> str:
    return " ".join(text.split("\f", maxsplit=1)[0].split())


def _first_line(cls: type[ApplianceError]) -> str:
    return (cls.__doc__ or "").splitlines()[0]


def main() -> None:
    """Write the three pages."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("errors.md", errors_page()),
        ("metrics.md", metrics_page()),
        ("cli.md", cli_page()),
    ):
        (PAGES / name).write_text(text)
        print(f"docs/reference/{name}")


if __name__ == "__main__":
    main()
