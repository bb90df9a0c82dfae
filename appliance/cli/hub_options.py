"""Hold what the publishing commands of a hub share: which repository, which keys, how to answer.

What this room does: the options, the passphrase, the files that a person writes (TOML or JSON).
What it knows: the configuration's `[hub]`; a publisher's copy of a repository is named by
`--repository`. A passphrase comes from a file or from the terminal, never from the command line.
What it never does: keep a passphrase, or sign.
"""

from __future__ import annotations

import difflib
import functools
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from appliance import config as configuration
from appliance.cli.exits import USAGE, CommandFailed
from appliance.contract.release import Expectation, HealthPack, Likely, Strategy, Trial
from appliance.hub import key_files
from appliance.hub.key_files import PublicKey
from appliance.hub.online import KEYS_DIRECTORY, open_keys
from appliance.hub.signing import Repository, Settled, Signer, Signing

FILE_BYTES_MAX = 1 << 20
REPOSITORY_DIRECTORY = "repository"
_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_PARTS: dict[str, type[msgspec.Struct]] = {
    "prompts": Expectation,
    "likely": Likely,
    "shadow": Trial,
    "step": Trial,
    "probation": Trial,
}
_T = TypeVar("_T", HealthPack, Strategy)
Command = TypeVar("Command", bound=Callable[..., object])


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """The repository that a command works on, and where its online keys are, if this is the hub."""

    repository: Repository
    online_directory: Path

    def online(self) -> tuple[Signer, ...]:
        """Open the online keys; none on a publisher's machine. Raises PublishRefused."""
        return open_keys(self.online_directory)

    def settle(self, now_utc_ms: int) -> Settled:
        """Put out what is complete, if the online keys are here. Raises PublishRefused."""
        signers = self.online()
        if not signers:
            return Settled(versions={})
        return self.repository.settle(signers, now_utc_ms=now_utc_ms)


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    """The private keys that a command was given, and the file with their passphrase, if any."""

    paths: tuple[Path, ...]
    passphrase_file: Path | None

    def signers(self) -> tuple[Signer, ...]:
        """Open them; asks for a passphrase where one is needed and none is given.

        Raises:
            PublishRefused: a key can't be opened.
            CommandFailed: there is nobody to ask.
        """
        given = read_passphrase(self.passphrase_file) if self.passphrase_file else ""
        opened = []
        for key in self.paths:
            passphrase = given
            is_file = key.suffix == key_files.PRIVATE_SUFFIX
            if is_file and not given and key_files.is_encrypted(key):
                passphrase = asked(f"Passphrase of {key.name}")
            opened.append(key_files.open_signer(key, passphrase))
        return tuple(opened)


def place_options(command: Callable[..., object]) -> Callable[..., object]:
    """Let a command be told which repository it works on; it is handed `places`."""

    @functools.wraps(command)
    def placed(
        *args: Any,  # noqa: ANN401 - what click hands over
        path: Path | None,
        overrides: tuple[str, ...],
        repository: Path | None,
        **rest: Any,  # noqa: ANN401 - likewise
    ) -> object:
        return command(*args, places=places_of(path, overrides, repository), **rest)

    for option in (
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override."),
        click.option("--config", "path", type=_FILE, help="The hub's TOML file."),
        click.option(
            "--repository",
            type=_DIRECTORY,
            help="A copy of the repository; default: the hub's own, in hub.state_dir.",
        ),
    ):
        placed = option(placed)
    return placed


def json_option(command: Command) -> Command:
    """Let a command answer with one JSON object."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def key_options(command: Callable[..., object]) -> Callable[..., object]:
    """Let a command be told with which keys to sign; it is handed `ring`, still closed."""

    @functools.wraps(command)
    def keyed(
        *args: Any,  # noqa: ANN401 - what click hands over
        keys: tuple[Path, ...],
        passphrase_file: Path | None,
        **rest: Any,  # noqa: ANN401 - likewise
    ) -> object:
        return command(*args, ring=Ring(paths=keys, passphrase_file=passphrase_file), **rest)

    return passphrase_option(
        click.option(
            "--key",
            "keys",
            multiple=True,
            type=_FILE,
            help="Sign with this OWNER.key, or OWNER.pub of a key in hardware (repeat it).",
        )(keyed)
    )


def yes_option(command: Command) -> Command:
    """Let a command sign without asking."""
    return click.option("--yes", is_flag=True, help="Sign what is shown without asking.")(command)


def passphrase_option(command: Command) -> Command:
    """Let a command read a passphrase from a file."""
    return click.option(
        "--passphrase-file", type=_FILE, help="Its first line opens the keys; default: asked for."
    )(command)


def places_of(path: Path | None, overrides: Sequence[str], repository: Path | None) -> Places:
    """Find the repository and the online keys. Raises ConfigError."""
    given = dict(configuration.parse_override(one) for one in overrides)
    hub = configuration.load(path, given).hub
    state = Path(hub.state_dir)
    online = Path(hub.online_keys_dir) if hub.online_keys_dir else state / KEYS_DIRECTORY
    if repository is not None:
        online = Path(hub.online_keys_dir) if hub.online_keys_dir else repository / ".no-keys"
    return Places(
        repository=Repository(repository or state / REPOSITORY_DIRECTORY),
        online_directory=online,
    )


def read_passphrase(path: Path) -> str:
    """Read the first line of a file. Raises CommandFailed."""
    line = _text(path).partition("\n")[0].rstrip("\r")
    if not line:
        raise CommandFailed(f"{path}: its first line is empty", USAGE)
    return line


def asked(prompt: str, *, twice: bool = False) -> str:
    """Ask a person for a passphrase.

    Raises:
        CommandFailed: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise CommandFailed(f"{prompt}: no terminal to ask; give --passphrase-file", USAGE)
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True))


def confirmed(question: str) -> bool:
    """Ask a person for a yes; without a terminal the answer is no."""
    return sys.stdin.isatty() and click.confirm(question, err=True)


def public_keys(paths: Sequence[Path]) -> tuple[PublicKey, ...]:
    """Read public keys. Raises PublishRefused."""
    return tuple(key_files.read_public(path) for path in paths)


def read_part(path: Path, kind: type[_T]) -> _T:
    """Read a health pack or a strategy from TOML or JSON; an unknown key is refused.

    Raises:
        CommandFailed: it can't be read, or is not one.
        DocumentRefused: something in it is out of bounds.
    """
    text = _text(path)
    try:
        raw = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError) as error:
        raise CommandFailed(f"{path}: {error}", USAGE) from error
    _check_known(path, raw, kind)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise CommandFailed(f"{path}: {error}", USAGE) from error


def print_json(answer: object) -> None:
    """Print one object on one line."""
    click.echo(msgspec.json.encode(answer).decode())


def sign_shown(
    repository: Repository, signers: Sequence[Signer], roles: Sequence[str], *, yes: bool
) -> tuple[Signing, ...]:
    """Show what the signatures would vouch for, ask, and sign those roles that the keys may sign.

    Raises:
        PublishRefused: a signer failed.
        CommandFailed: nobody said yes.
    """
    ids = {signer.public_key.keyid for signer in signers}
    chosen = [role for role in roles if ids & set(repository.signers_of(role))]
    for role in chosen:
        click.echo(f"{role}:", err=True)
        found = repository.changes(role, signers)
        for change in found:
            click.echo(f"  {change.text}", err=True)
        if not found:
            click.echo("  nothing new but when it expires", err=True)
    if chosen and not yes and not confirmed("Sign this?"):
        raise CommandFailed("nothing was signed; say --yes where there is no terminal", USAGE)
    return tuple(repository.sign(role, signers) for role in chosen)


def print_put_out(versions: dict[str, int]) -> None:
    """Say what readers can see now."""
    if versions:
        click.echo("put out: " + ", ".join(f"{role} {n}" for role, n in versions.items()))


def print_waiting(signing: Signing) -> None:
    """Say what a pending version waits for."""
    if signing.missing_count:
        names = ", ".join(signing.unsigned)
        click.echo(
            f"{signing.role} {signing.version} waits for {signing.missing_count} more of: {names}"
        )
    else:
        click.echo(
            f"{signing.role} {signing.version} is signed; 'appliance hub sign' on the hub puts it "
            "out with whatever else it needs"
        )


def _check_known(path: Path, raw: Any, kind: type[msgspec.Struct]) -> None:  # noqa: ANN401 - a file
    if not isinstance(raw, dict):
        return
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
            raise CommandFailed(f"{path}: there is no '{key}'{hint}", USAGE)
        for item in value if isinstance(value, list) else [value]:
            if key in _PARTS:
                _check_known(path, item, _PARTS[key])


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", USAGE) from error
    if len(data) > FILE_BYTES_MAX:
        raise CommandFailed(f"{path}: is larger than {FILE_BYTES_MAX} bytes", USAGE)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{path}: is not UTF-8 text", USAGE) from error
