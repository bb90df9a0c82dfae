"""Start a command: the list of verbs, and the one place where a command's end becomes an exit code.

What this room does: load only the room of the verb that was asked for; turn every refusal into one
line on standard error and a sysexits code.
What it knows: where each verb lives.
What it never does: import grpc or rich before a verb needs them.
"""

from __future__ import annotations

import sys

import click

from appliance.cli import exits
from appliance.cli.lazy import lazy
from appliance.errors import ApplianceError

PROGRAM = "appliance"

# verb → (room, attribute, what it does); one without a meaning is for our own processes
VERBS: dict[str, tuple[str, str, str]] = {
    "serve": ("serve", "serve", "Serve models in the foreground."),
    "chat": ("talk", "chat", "Talk to a model."),
    "generate": ("talk", "generate", "Continue a text."),
    "embed": ("embed", "embed", "Turn texts into vectors."),
    "adapter": ("adapter", "adapter", "Load, unload and list LoRA adapters."),
    "status": ("status", "status", "Show what is served."),
    "models": ("models", "models", "Show the versions of each model, and what the hub assigns."),
    "deployments": ("deployments", "deployments", "Show versions on their way, and what came."),
    "rollback": ("orders", "rollback", "Send a model's users back to the version before."),
    "pin": ("orders", "pin", "Take one version of a model and no other."),
    "unpin": ("orders", "unpin", "Take any version of a model again."),
    "hold": ("orders", "hold", "Take no new version of a model."),
    "release": ("orders", "release", "Take new versions of a model again."),
    "approve": ("orders", "approve", "Let a version that waits for a person meet users."),
    "cancel": ("orders", "cancel", "End the deployment of a model that is under way."),
    "forgive": ("orders", "forgive", "Let a version that failed here be tried again."),
    "drill": ("orders", "drill", "Rehearse the way back to the standby of a model."),
    "sync": ("orders", "sync", "Learn what a hub has signed."),
    "import": ("orders", "take_in", "Take in a bundle from a stick."),
    "key": ("key", "key", "Make API keys for applications."),
    "config": ("config_check", "config", "Check the configuration."),
    "doctor": ("doctor", "doctor", "Look at this machine, and say what to mend."),
    "enrol": ("enrol", "enrol", "Enrol this appliance with a hub."),
    "trust": ("trust", "trust", "Install the root by which versions are checked."),
    "hub": ("hub", "hub", "Be a hub: publish versions, serve them, know the appliances."),
    "demo": ("demo", "demo", "Show it all: a model asked, versions taken, caught, left."),
    "completion": ("completion", "completion", "Print the shell's completion script."),
    "engine-facts": ("engine_facts", "engine_facts", ""),
}


@click.group(cls=lazy(VERBS), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="appliance", prog_name=PROGRAM)
def cli() -> None:
    """Serve GGUF language models on this machine, and talk to them."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    A refusal is one line on standard error, never a traceback; a bug of ours keeps its traceback.
    """
    try:
        result = cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return exits.USAGE
    except click.UsageError as error:
        failure = exits.CommandFailed(_usage(error), exits.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except click.ClickException as error:
        failure = exits.CommandFailed(error.format_message(), exits.USAGE)
    except ApplianceError as error:
        failure = exits.failure_of(error)
    except exits.CommandFailed as error:
        failure = error
    line = " ".join(failure.sentence.split())
    print(f"{PROGRAM}: {line}", file=sys.stderr)
    return failure.exit_code


def _usage(error: click.UsageError) -> str:
    """Say what is wrong with the words of a command, and where to read the right ones."""
    command = error.ctx.command_path if error.ctx is not None else PROGRAM
    return f"{error.format_message().removesuffix('.')}; see '{command} --help'"
