"""Look at this machine and say what to mend.

What this room does: shows the findings of `checks`; the exit code.
What it knows: a warning is advice, a failure means that the appliance would not work well here.
What it never does: mend anything itself.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance.cli import exits, places
from appliance.cli.checks import Finding, Level, all_findings

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--state-dir", type=_DIRECTORY, help="The state directory to look at.")
@click.option("--runtime-dir", type=_DIRECTORY, help="The runtime directory to look at.")
def doctor(
    as_json: bool,  # noqa: FBT001 - an option of a command
    state_dir: Path | None,
    runtime_dir: Path | None,
) -> int:
    """Check what is installed, the machine and its limits; each line says what to do about it.

    Exits with 0 unless something fails, else with 78.
    """
    findings = list(
        all_findings(state_dir or places.state_dir(), runtime_dir or places.runtime_dir())
    )
    failed = any(finding.level is Level.FAIL for finding in findings)
    if as_json:
        print(msgspec.json.encode({"ok": not failed, "findings": findings}).decode())
    else:
        Console(highlight=False).print(_table(findings))
    return exits.CONFIG if failed else 0


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        seen = Text(finding.seen)
        if finding.remedy:
            seen.append(f"\n→ {finding.remedy}", style="bold")
        level = Text(finding.level.value, style=_COLOURS[finding.level])
        table.add_row(level, finding.name, seen)
    return table
