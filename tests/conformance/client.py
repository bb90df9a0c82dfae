"""Drive our real trust from the command line, as theupdateframework/tuf-conformance calls a client.

    client.py --metadata-dir D init ROOT
    client.py --metadata-dir D --metadata-url U refresh
    client.py --metadata-dir D --metadata-url U --target-name P … --target-dir T --target-base-url B
              download

The state of the appliance (state.db and the generations) lies in D/.state; what D itself shows are
copies of the current generation. Exit status 0: all of it was done; 1: something was refused.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from appliance.clock import utc_ms
from appliance.config import Refresh
from appliance.config import Store as StoreSettings
from appliance.errors import SyncError, Untrusted
from appliance.store import Store
from appliance.sync.fetcher import HttpMetadata, Reader
from appliance.sync.generations import Generations
from appliance.sync.remembered import MIGRATIONS, Remembered
from appliance.sync.trust import Trust

TARGET_BYTES_MAX = 64 << 20
STORE_WAIT_S = 20.0


class TwoPlaces:
    """A source whose metadata and targets lie at two addresses."""

    def __init__(self, metadata_url: str, targets_url: str) -> None:
        self.name = metadata_url
        self._places = {"metadata": metadata_url, "targets": targets_url or metadata_url}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Reader]:
        with contextlib.ExitStack() as stack:
            self._readers = {
                folder: stack.enter_context(HttpMetadata(url, Refresh(), tls=None).opened())
                for folder, url in self._places.items()
            }
            yield self

    def read(self, path: str, bytes_max: int) -> bytes | None:
        folder, _, rest = path.partition("/")
        return self._readers[folder].read(rest, bytes_max)


def initialise(metadata: Path, root: Path) -> None:
    (metadata / ".state").mkdir(parents=True)
    for place in (metadata / ".state" / "bootstrap.json", metadata / "root.json"):
        shutil.copyfile(root, place)


def learn(asked: argparse.Namespace) -> None:
    """Refresh, then read each target in order with the same refresh; stop at the first failure."""
    state = asked.metadata_dir / ".state"
    store = Store(state / "state.db", MIGRATIONS, StoreSettings())
    store.wait_open()
    trust = Trust(
        state / "tuf",
        (state / "bootstrap.json").read_bytes(),
        Remembered(store, store_wait_s=STORE_WAIT_S),
        clock=utc_ms,
        built_utc_ms=0,
    )

    def place(name: str) -> Path:
        return Path(asked.target_dir, quote(name, ""))

    def held(name: str) -> bytes | None:
        return place(name).read_bytes() if place(name).exists() else None

    source = TwoPlaces(asked.metadata_url, asked.target_base_url)
    try:
        with trust.learning(source, held=held) as learning:
            for name in asked.target_name:
                found = learning.document(name, TARGET_BYTES_MAX)
                if found is None:
                    raise Untrusted(what=name, reason="nobody has signed it")
                if held(name) != found.data:
                    place(name).write_bytes(found.data)
    finally:
        show(Generations(state / "tuf").current(), asked.metadata_dir)
        store.close(STORE_WAIT_S)


def show(generation: Path | None, metadata: Path) -> None:
    if generation is not None:
        for file in generation.glob("*.json"):
            shutil.copyfile(file, metadata / file.name)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url", default="")
    acts = parser.add_subparsers(dest="act", required=True)
    acts.add_parser("init").add_argument("root", type=Path)
    acts.add_parser("refresh")
    acts.add_parser("download")
    asked = parser.parse_args(arguments)
    try:
        if asked.act == "init":
            initialise(asked.metadata_dir, asked.root)
        else:
            learn(asked)
    except SyncError as error:
        print(error, file=sys.stderr)  # noqa: T201 # the suite's log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
