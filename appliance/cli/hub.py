"""Be a hub: the verbs of `appliance hub`, each in a room of its own.

What this room does: the table of the hub's verbs.
What it knows: where each lives. Those that hold offline keys and the one that listens never meet in
one process.
What it never does: import a room before its verb is used.
"""

from __future__ import annotations

import click

from appliance.cli.lazy import lazy

# verb → (room, attribute, what it does)
VERBS: dict[str, tuple[str, str, str]] = {
    "init": ("hub_keys", "init", "Found the repository: its root and its online keys."),
    "key": ("hub_keys", "key", "Make signing keys, and say who may sign what."),
    "measure": ("hub_measure", "measure", "Measure an original for a health pack."),
    "publish": ("hub_publish", "publish", "Sign a version of a model."),
    "revoke": ("hub_publish", "revoke", "Withdraw a version for ever."),
    "assign": ("hub_director", "assign", "Say which version a cohort should run."),
    "halt": ("hub_director", "halt", "Stop what a cohort has begun, or let it go on."),
    "sign": ("hub_director", "sign", "Sign what waits, put out what is complete."),
    "export": ("hub_director", "export", "Write what a cohort needs onto a stick."),
    "serve": ("hub_serve", "serve", "Serve the repository and the appliances."),
    "token": ("hub_devices", "token", "Make a one-time token for an appliance."),
    "device": ("hub_devices", "device", "List, revoke, restore and move appliances."),
}


@click.group(cls=lazy(VERBS))
def hub() -> None:
    """Be a hub: publish versions, serve them, know the appliances."""
