"""Found a hub's repository, make keys, and say who may sign what.

What this room does: `init`, and the verbs of `key`.
What it knows: `hub.founding` and `hub.key_files`.
What it never does: show a private key, or leave an offline one without a passphrase unasked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from appliance.cli import hub_options
from appliance.cli.exits import USAGE, CommandFailed
from appliance.cli.hub_options import (
    Places,
    Ring,
    json_option,
    key_options,
    passphrase_option,
    place_options,
    public_keys,
    sign_shown,
    yes_option,
)
from appliance.clock import utc_ms
from appliance.hub import founding, key_files
from appliance.hub.founding import Holders
from appliance.hub.key_files import PublicKey
from appliance.hub.signing import Signer, Validity

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_ALGORITHM = click.option(
    "--algorithm",
    type=click.Choice(list(key_files.ALGORITHMS)),
    default="ed25519",
    help="The kind of key; default ed25519.",
)


@click.command()
@click.option("--keys", "keys_dir", type=_DIRECTORY, help="Make root.key and targets.key here.")
@click.option("--root", "root", multiple=True, type=_FILE, help="A public key of root (repeat it).")
@click.option("--root-threshold", type=int, default=1, help="How many must sign; default 1.")
@click.option("--targets", "targets", multiple=True, type=_FILE, help="A public key of targets.")
@click.option("--targets-threshold", type=int, default=1, help="How many must sign; default 1.")
@click.option("--timestamp-days", type=int, default=7, help="How long a timestamp holds; 7.")
@click.option("--no-passphrase", is_flag=True, help="Leave the offline keys in the clear.")
@_ALGORITHM
@key_options
@place_options
@json_option
def init(
    *,
    ring: Ring,
    places: Places,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - what click hands over
) -> None:
    """Found a repository: its root, who may sign it, and the online keys.

    With --keys both offline keys are made there, encrypted with a passphrase, and sign at once;
    take that directory off the hub afterwards. With --root and --targets they exist already, at
    several owners perhaps, and sign with 'appliance hub sign'. A fleet that rarely reaches the hub
    needs a longer --timestamp-days.
    """
    now, directory, algorithm = utc_ms(), options["keys_dir"], options["algorithm"]
    given = {role: public_keys(options[role]) for role in ("root", "targets")}
    made: list[Signer] = []
    if directory is not None:
        passphrase = _passphrase(ring.passphrase_file, is_clear=options["no_passphrase"])
        for role, keys in tuple(given.items()):
            public = key_files.make(directory, role, algorithm=algorithm, passphrase=passphrase)
            given[role] = (*keys, public)
            private = directory / f"{role}{key_files.PRIVATE_SUFFIX}"
            made.append(key_files.open_signer(private, passphrase))
    founding.found(
        places.repository,
        root=Holders(keys=given["root"], threshold=options["root_threshold"]),
        targets=Holders(keys=given["targets"], threshold=options["targets_threshold"]),
        online_directory=places.online_directory,
        validity=Validity(timestamp=options["timestamp_days"]),
        now_utc_ms=now,
    )
    places.repository.sign_all([*places.online(), *made, *ring.signers()])
    if not as_json:
        click.echo(f"the repository is in {places.repository.directory}")
    _answer(places, now, {"repository": str(places.repository.directory)}, as_json=as_json)


@click.group()
def key() -> None:
    """Make signing keys, and say who may sign what."""


@key.command()
@click.argument("owner")
@click.option("--keys", "keys_dir", type=_DIRECTORY, required=True, help="Where to put it.")
@click.option("--no-passphrase", is_flag=True, help="Leave it in the clear.")
@_ALGORITHM
@passphrase_option
@json_option
def new(
    owner: str,
    keys_dir: Path,
    no_passphrase: bool,  # noqa: FBT001 - an option of a command
    algorithm: str,
    passphrase_file: Path | None,
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """Make OWNER.key, for nobody else's eyes, and OWNER.pub, to be handed around."""
    passphrase = _passphrase(passphrase_file, is_clear=no_passphrase)
    made = key_files.make(keys_dir, owner, algorithm=algorithm, passphrase=passphrase)
    _show_key(keys_dir / f"{owner}{key_files.PUBLIC_SUFFIX}", made, as_json=as_json)


@key.command()
@click.argument("owner")
@click.option("--uri", required=True, help="Where it is, as securesystemslib names it: hsm:…")
@click.option("--pem", type=_FILE, required=True, help="Its public half, in PEM.")
@click.option("--keys", "keys_dir", type=_DIRECTORY, required=True, help="Where to put it.")
@json_option
def hardware(
    owner: str,
    uri: str,
    pem: Path,
    keys_dir: Path,
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """Write OWNER.pub for a key that stays in hardware or in a cloud's key store.

    It is given as --key where another key's OWNER.key is. Its library must be installed beside the
    program.
    """
    public = key_files.from_hardware(owner, uri, pem)
    path = keys_dir / f"{owner}{key_files.PUBLIC_SUFFIX}"
    key_files.write_public(path, public)
    _show_key(path, public, as_json=as_json)


@key.command()
@click.argument("public", type=_FILE)
@json_option
def show(
    public: Path,
    as_json: bool,  # noqa: FBT001 - an option of a command
) -> None:
    """Show what a public key is, to be read out over the telephone."""
    _show_key(public, key_files.read_public(public), as_json=as_json)


@key.command()
@click.argument("name")
@click.option("--model", "models", multiple=True, help="A model it may sign for (repeat it).")
@click.option("--public", "publics", multiple=True, type=_FILE, help="A public key (repeat it).")
@click.option("--threshold", type=int, default=1, help="How many of them must sign; default 1.")
@yes_option
@key_options
@place_options
@json_option
def publisher(
    *,
    name: str,
    models: tuple[str, ...],
    publics: tuple[Path, ...],
    threshold: int,
    yes: bool,
    ring: Ring,
    places: Places,
    as_json: bool,
) -> None:
    """Let the publisher NAME sign for these models, besides those it has.

    --key is one of targets, and one of the publisher's own where it is at hand; both roles wait
    until enough have signed. Without --public its keys stay.
    """
    now = utc_ms()
    holders = Holders(keys=public_keys(publics), threshold=threshold)
    role = founding.set_publisher(places.repository, name, models, holders, now_utc_ms=now)
    sign_shown(places.repository, ring.signers(), ("targets", role), yes=yes)
    _answer(places, now, {"role": role}, as_json=as_json)


@key.command()
@click.argument("name")
@yes_option
@key_options
@place_options
@json_option
def drop(
    *,
    name: str,
    yes: bool,
    ring: Ring,
    places: Places,
    as_json: bool,
) -> None:
    """Let the publisher NAME sign nothing any more; appliances stop believing its releases."""
    now = utc_ms()
    places.repository.drop_publisher(name, now_utc_ms=now)
    sign_shown(places.repository, ring.signers(), ("targets",), yes=yes)
    _answer(places, now, {"publisher": name}, as_json=as_json)


@key.command()
@click.argument("role")
@click.option("--public", "publics", multiple=True, type=_FILE, required=True, help="A new key.")
@click.option("--threshold", type=int, default=1, help="How many of them must sign; default 1.")
@yes_option
@key_options
@place_options
@json_option
def rotate(
    *,
    role: str,
    publics: tuple[Path, ...],
    threshold: int,
    yes: bool,
    ring: Ring,
    places: Places,
    as_json: bool,
) -> None:
    """Let these keys, and no others, sign ROLE: root, targets, snapshot, director and so on.

    A new root is signed by the old and the new keys. Put the private half of a new online key into
    the hub's directory of online keys, and leave the old one there until it is put out.
    """
    now = utc_ms()
    holders = Holders(keys=public_keys(publics), threshold=threshold)
    places.repository.set_keys(role, holders.role_keys(), now_utc_ms=now)
    drafted = [one.role for one in places.repository.pending()]
    roles = [one for one in ("root", "targets", role) if one in drafted]
    signers = [*ring.signers(), *places.online()]
    sign_shown(places.repository, signers, tuple(dict.fromkeys(roles)), yes=yes)
    _answer(places, now, {"role": role}, as_json=as_json)


def _answer(places: Places, now_utc_ms: int, answer: dict[str, str], *, as_json: bool) -> None:
    put_out = places.settle(now_utc_ms).versions
    pending = places.repository.pending()
    if as_json:
        hub_options.print_json(answer | {"put_out": put_out, "pending": pending})
        return
    hub_options.print_put_out(put_out)
    for signing in pending:
        hub_options.print_waiting(signing)


def _passphrase(path: Path | None, *, is_clear: bool) -> str:
    if is_clear and path is not None:
        raise CommandFailed("give --passphrase-file or --no-passphrase, not both", USAGE)
    if is_clear:
        return ""
    if path is not None:
        return hub_options.read_passphrase(path)
    return hub_options.asked("Passphrase of the new key", twice=True)


def _show_key(path: Path, public: PublicKey, *, as_json: bool) -> None:
    if as_json:
        hub_options.print_json({"public": str(path), **msgspec.structs.asdict(public)})
        return
    scheme = public.key.get("scheme", "?")
    click.echo(f"{path}: {scheme} of {public.owner}, id {public.keyid}")
