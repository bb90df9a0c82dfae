"""Serve models in the foreground.

What this room does: options over the configuration file over the defaults; what a terminal sees of
loading; the exit code.
What it knows: without a model named anywhere, the embedded demo model is served, unless
an operator said from whom versions are taken.
What it never does: outlive the daemon it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from appliance import config as configuration
from appliance import daemon, logs
from appliance.cli import places
from appliance.cli.exits import RETRY, SOFTWARE, CommandFailed
from appliance.sync import anchor

STEP_RATIO = 0.1  # a log line each time so much more is loaded

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--config", "path", type=_FILE, help="The TOML file.")
@click.option("--model", "models", multiple=True, metavar="[NAME=]FILE", help="Serve this GGUF.")
@click.option(
    "--embedding-model",
    "embedding_models",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Serve this GGUF for embeddings.",
)
@click.option("--state-dir", type=_DIRECTORY, help="What must survive a restart.")
@click.option("--runtime-dir", type=_DIRECTORY, help="The socket.")
@click.option("--rest", metavar="HOST:PORT", help="Where to answer REST; '' for nowhere.")
@click.option("--grpc-tcp", metavar="HOST:PORT", help="Answer gRPC here too.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key.")
def serve(path: Path | None, **options: Any) -> None:  # noqa: ANN401 - read by _overrides
    """Serve models until asked to stop; without one named, the embedded demo model.

    SIGTERM and Ctrl-C let running answers end first; a second one does not. Exits with 78 if a
    model file or the configuration can't be used, 75 if an address or a directory is in use.
    """
    config = configuration.load(path, _overrides(path, options))
    human = sys.stderr.isatty()
    logs.set_up(config.server.log_level, human=human)
    with _loading(human=human) as progress:
        try:
            daemon.run(config, progress)
        except daemon.InUse as error:
            raise CommandFailed(str(error), RETRY) from error
        except daemon.Failed as error:
            raise CommandFailed("the daemon failed; its log says where", SOFTWARE) from error


def _overrides(path: Path | None, options: dict[str, Any]) -> dict[str, object]:
    """Put together what the options say; with a file, its values stand where no option does."""
    given = dict(configuration.parse_override(text) for text in options["overrides"])
    for key, value, default in (
        ("server.state_dir", options["state_dir"], places.state_dir()),
        ("server.runtime_dir", options["runtime_dir"], places.runtime_dir()),
        ("rest.tcp", options["rest"], None),
        ("grpc.tcp", options["grpc_tcp"], None),
    ):
        if value is not None:
            given[key] = str(value) if isinstance(value, Path) else value
        elif default is not None and path is None:
            given.setdefault(key, str(default))
    models = [
        _model(text, embedding=embedding)
        for key, embedding in (("models", False), ("embedding_models", True))
        for text in options[key]
    ]
    if models:
        given["models"] = models
    elif path is None and not anchor.place(Path(str(given["server.state_dir"]))).exists():
        given.setdefault("models", [{"path": str(places.demo_model())}])
    return given


def _model(text: str, *, embedding: bool) -> dict[str, object]:
    """Read [NAME=]FILE; a file whose own name has a "=" is written as ./FILE."""
    name, equals, file = text.partition("=")
    if not equals or "/" in name:
        return {"path": text, "embedding": embedding}
    return {"path": file, "name": name, "embedding": embedding}


@contextmanager
def _loading(*, human: bool) -> Iterator[Callable[[str, float], None]]:
    """Show how far loading is: a bar on a terminal, a log line now and then otherwise."""
    if not human:
        yield LogProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    task = bar.add_task("", total=1.0)

    def show(what: str, ratio: float) -> None:
        if not what:
            bar.stop()
            return
        bar.update(task, description=what, completed=ratio)
        bar.refresh()

    with bar:
        yield show


class LogProgress:
    """Log how far loading is, once for every STEP_RATIO of it."""

    def __init__(self) -> None:
        self._what = ""
        self._shown = 0.0

    def __call__(self, what: str, ratio: float) -> None:
        """Be told what is being done, and how far it is."""
        if what != self._what:
            self._what, self._shown = what, 0.0
        if what and ratio >= self._shown + STEP_RATIO:
            self._shown = ratio
            logs.event("loading", what=what, ratio=round(ratio, 2))
