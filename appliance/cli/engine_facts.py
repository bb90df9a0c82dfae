"""Say what llama.cpp is here: the child that `doctor` looks at.

What this room does: loads the engine and prints its version and features as JSON.
What it knows: it may die doing so, which is why it is a process of its own.
What it never does: run inside the daemon.
"""

from __future__ import annotations

import json
from importlib import metadata

import click

from appliance.runtime import llama


@click.command(hidden=True)
def engine_facts() -> None:
    """Print the engine's version, CPU features and whether it can use a GPU."""
    facts = {
        "version": metadata.version("llama-cpp-python"),
        "features": _enabled(llama.system_info()),
        "gpu": llama.supports_gpu(),
    }
    click.echo(json.dumps(facts))


def _enabled(text: str) -> str:
    """Keep the names of what is on: "CPU : SSE3 = 1 | AVX512 = 0 |" is "SSE3"."""
    pairs = (part.rpartition("=") for part in text.replace(":", "|").split("|"))
    return " ".join(name.strip() for name, _, value in pairs if value.strip() == "1")
