"""Hold the options that several commands share, and turn them into values of `domain`.

What this room does: the address of the daemon, sampling, stopping and constraints.
What it knows: an option that is not given is not sent, so the service's default holds.
What it never does: connect, or read anything but a file that an option names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from appliance import domain
from appliance.cli import places
from appliance.errors import InvalidRequest

Command = TypeVar("Command", bound=Callable[..., object])

SCHEMA_BYTES_MAX = 65_536
_SAMPLING: tuple[tuple[str, type, str], ...] = (
    ("temperature", float, "0 always takes the likeliest token; default 1."),
    ("top_k", int, "Draw from this many tokens only; 0 is off."),
    ("top_p", float, "Draw from the likeliest tokens of this share; 1 is off."),
    ("min_p", float, "Leave out tokens below this share of the likeliest; 0 is off."),
    ("typical_p", float, "Draw from typical tokens of this share; 1 is off."),
    ("repeat_penalty", float, "Divide the logits of tokens seen before; 1 is off."),
    ("frequency_penalty", float, "Lower a token each time it was drawn, -2 to 2."),
    ("presence_penalty", float, "Lower a token once it was drawn, -2 to 2."),
    ("seed", int, "The same seed draws the same tokens."),
)


def address_option(command: Command) -> Command:
    """Let a command be told which daemon it talks to."""
    where = click.option(
        "--address",
        metavar="unix:PATH|HOST:PORT",
        help="The daemon to talk to; default: the socket in the runtime directory.",
    )
    directory = click.option(
        "--runtime-dir",
        type=click.Path(path_type=Path),
        help="The runtime directory of the daemon to talk to.",
    )
    return where(directory(command))


def daemon_options(command: Callable[..., object]) -> Callable[..., object]:
    """Let a command be told which daemon it talks to, and to answer with one JSON object.

    It is handed `where`, an address, and `as_json`.
    """

    @functools.wraps(command)
    def told(
        *args: Any,  # noqa: ANN401 - what click hands over
        address: str | None,
        runtime_dir: Path | None,
        **rest: Any,  # noqa: ANN401 - likewise
    ) -> object:
        return command(*args, where=address_of(address, runtime_dir), **rest)

    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    return as_json(address_option(told))


def address_of(address: str | None, runtime_dir: Path | None) -> str:
    """Choose the daemon: the address, else that directory's socket, else the default."""
    if address:
        return address
    return places.socket_address(runtime_dir) if runtime_dir else places.client_address()


def generation_options(command: Command) -> Command:
    """Give a command the options of sampling, stopping and constraints."""
    for name, kind, meaning in reversed(_SAMPLING):
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=meaning)(
            command
        )
    for decorate in (
        click.option("--choice", "choices", multiple=True, help="Answer one of these (repeat it)."),
        click.option("--regex", help="The whole output matches this."),
        click.option("--json-schema", type=click.File("r"), help="A JSON schema for the output."),
        click.option("--json-object", is_flag=True, help="The output is a JSON object."),
        click.option("--ignore-eos", is_flag=True, help="Go on past the model's end tokens."),
        click.option("--stop", "stops", multiple=True, help="End at this text (repeat it)."),
        click.option("--max-tokens", type=int, help="At most this many tokens."),
        click.option(
            "--priority",
            type=click.Choice([priority.value for priority in domain.Priority]),
            help="How urgent it is beside other requests; default normal.",
        ),
        click.option("--adapter", default="", help="A LoRA adapter that is loaded for the model."),
        click.option("--stats", is_flag=True, help="Show speed and time to the first token."),
        click.option(
            "--model", "-m", default="", help="Name or name@version, if several are served."
        ),
    ):
        command = decorate(command)
    return command


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What the options of one command say about every answer."""

    model: str
    adapter: str
    stats: bool
    sampling: domain.SamplingOptions
    stop: domain.StopOptions
    constraint: domain.Constraint | None
    priority: domain.Priority | None = None

    def request(
        self, prompt: domain.Prompt, output: domain.OutputOptions | None = None
    ) -> domain.GenerateRequest:
        """Make a request of a prompt; the service names it."""
        return domain.GenerateRequest(
            request_id=domain.RequestId(""),
            model=self.model,
            adapter=self.adapter,
            prompt=prompt,
            sampling=self.sampling,
            stop=self.stop,
            output=output or domain.OutputOptions(),
            constraint=self.constraint,
            priority=self.priority,
        )


def generation_of(options: dict[str, Any]) -> Generation:
    """Turn the values of `generation_options` into one value.

    Raises:
        InvalidRequest: a number is out of range, or two constraints are given.
    """
    given = {name: options[name] for name, _, _ in _SAMPLING if options[name] is not None}
    return Generation(
        model=options["model"],
        adapter=options["adapter"],
        stats=options["stats"],
        sampling=domain.SamplingOptions(**given),
        stop=domain.StopOptions(
            max_tokens=options["max_tokens"],
            strings=tuple(options["stops"]),
            ignore_eos=options["ignore_eos"],
        ),
        constraint=_constraint(options),
        priority=domain.Priority(options["priority"]) if options["priority"] else None,
    )


def _constraint(options: dict[str, Any]) -> domain.Constraint | None:
    kind = domain.ConstraintKind
    found: list[domain.Constraint] = []
    if options["json_object"]:
        found.append(domain.Constraint(kind=kind.JSON_OBJECT))
    if options["json_schema"] is not None:
        schema = options["json_schema"].read(SCHEMA_BYTES_MAX + 1)
        found.append(domain.Constraint(kind=kind.JSON_SCHEMA, text=schema))
    if options["regex"] is not None:
        found.append(domain.Constraint(kind=kind.REGEX, text=options["regex"]))
    if options["choices"]:
        texts = msgspec.json.encode(options["choices"]).decode()
        found.append(domain.Constraint(kind=kind.CHOICES, text=texts))
    if len(found) > 1:
        names = ", ".join(constraint.kind.value for constraint in found)
        raise InvalidRequest(field="constraint", reason=f"give one of them, not {names}")
    return found[0] if found else None
