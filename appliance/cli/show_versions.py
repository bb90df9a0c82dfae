"""Show versions and deployments to a person.

What this room does: a deployment as a row, its download as a bar; how a model and the appliance
stand with the hub, in lines; how long ago something was.
What it knows: whatever comes from a hub or a file is made safe for a terminal first.
What it never does: ask a daemon, or decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from appliance.cli import show
from appliance.cli.advice import advice_on
from appliance.cli.versions_client import Deployment, Download, Outlook, SyncStatus

BAR_WIDTH = 30
_COLOURS = {
    "committed": "green",
    "rolled_back": "yellow",
    "aborted": "yellow",
    "stranded": "bold red",
    "awaiting_approval": "magenta",
}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_MS_PER_S = 1000


def span(ms: float) -> str:
    """Say how long a time is, in its largest unit: 90000 is '1 min'."""
    seconds = max(0, round(ms / _MS_PER_S))
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return "0 s"


def state_of(deployment: Deployment) -> str:
    """Name a state in words; with the share of clients where some are on the candidate."""
    word = deployment.state.replace("_", " ")
    return f"{word} {deployment.percent:.0f} %" if deployment.state == "shifting" else word


def download_line(download: Download) -> str:
    """Say how far a download is: verified bytes, rate, time left, or why it stands still."""
    said = f"{show.size(download.verified_bytes)} of {show.size(download.total_bytes)} verified"
    if download.stopped_by:
        return f"{said}; waits: {download.stopped_by}"
    if download.seconds_left is None:
        return said
    minutes, seconds = divmod(round(download.seconds_left), 60)
    return f"{said}, {show.size(download.bytes_per_s)}/s, {minutes}:{seconds:02} left"


def why(deployment: Deployment) -> str:
    """Say what a deployment waits for, or why it is where it is."""
    if deployment.download is not None:
        return download_line(deployment.download)
    return deployment.waiting_for or deployment.reason


def line_of(deployment: Deployment) -> str:
    """Say in one line how a deployment stands."""
    reason = why(deployment)
    said = f"{deployment.label} {state_of(deployment)}"
    return show.printable(f"{said}: {reason}" if reason else said)


def picture(deployments: Sequence[Deployment], now_utc_ms: int) -> Group:
    """Draw deployments, the newest first, and the download of each that fetches."""
    table = Table(box=None, pad_edge=False)
    table.add_column("ID", justify="right", no_wrap=True)
    for heading in ("VERSION", "EDITION", "STATE", "SINCE"):
        table.add_column(heading, no_wrap=True)
    table.add_column("WHY", ratio=1)
    bars: list[RenderableType] = []
    for one in deployments:
        table.add_row(
            str(one.id),
            Text(show.printable(one.label)),
            Text(show.printable(one.quantisation)),
            Text(state_of(one), style=_COLOURS.get(one.state, "cyan")),
            span(now_utc_ms - one.entered_utc_ms),
            Text(show.printable(why(one))),
        )
        if one.download is not None:
            bars.append(_bar(one, one.download))
    return Group(table, *bars)


def _bar(deployment: Deployment, download: Download) -> Table:
    grid = Table.grid(padding=(0, 1))
    total, done = max(1, download.total_bytes), download.verified_bytes
    bar = ProgressBar(total=total, completed=done, width=BAR_WIDTH)
    grid.add_row(Text(show.printable(deployment.label)), bar, f"{done / total:.0%}")
    return grid


def outlook_lines(outlook: Outlook) -> Iterator[str]:
    """Say how a model stands with the hub: what serves, what is wished, tried and refused."""
    parts = [f"version {outlook.active.version} serves" if outlook.active else "none serves yet"]
    if outlook.standby:
        parts.append(f"version {outlook.standby.version} stands by")
    if outlook.assigned_version:
        parts.append(f"the hub assigns version {outlook.assigned_version}")
    if outlook.pinned_version:
        parts.append(f"pinned to version {outlook.pinned_version}")
    if outlook.is_held:
        parts.append("held")
    yield show.printable(f"{outlook.model}: {', '.join(parts)}")
    if outlook.active and outlook.active.quantisation:
        yield show.printable(f"  the edition that serves: {outlook.active.quantisation}")
    if outlook.deployment is not None and not outlook.deployment.has_ended:
        yield f"  under way: {line_of(outlook.deployment)}"
    refusal = outlook.refusal
    if refusal is not None and refusal.code != "active":
        refused = f"{outlook.model}@{outlook.assigned_version} is not taken: {refusal.reason}"
        yield show.printable(f"  {refused} ({refusal.code})")
        advice = advice_on(refusal.code, outlook.model, outlook.assigned_version)
        if advice:
            yield show.printable(f"  what to do: {advice}")


def sync_lines(sync: SyncStatus, now_utc_ms: int) -> Iterator[str]:
    """Say what the appliance has learnt from its hub, and since when; nothing without a hub."""
    if not sync.is_on:
        return
    learnt = f"learnt {span(now_utc_ms - sync.learnt_utc_ms)} ago"
    parts = [f"cohort {sync.cohort}", learnt if sync.learnt_utc_ms else "nothing learnt yet"]
    parts.append("hints come" if sync.is_linked else "no hints come, so it asks by the clock")
    yield show.printable(f"hub: {', '.join(parts)}")
    for alert in sync.alerts:
        what = f"{alert.kind.replace('_', ' ')} {alert.subject}".rstrip()
        since = span(now_utc_ms - alert.since_utc_ms)
        yield show.printable(f"  ALERT for {since}: {what}: {alert.reason}")
    if sync.is_stale:
        yield f"  STALE: expired {span(now_utc_ms - sync.expires_utc_ms)} ago; serving goes on"
    if sync.fault:
        yield show.printable(f"  nothing new is learnt: {sync.fault}")
    if not sync.is_linked and sync.link_reason:
        yield show.printable(f"  no hints: {sync.link_reason}")
