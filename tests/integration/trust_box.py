"""An appliance's trust on a disk of its own, before a repository on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from appliance.clock import utc_ms
from appliance.config import Refresh
from appliance.config import Store as StoreSettings
from appliance.store import Store
from appliance.sync.fetcher import HttpMetadata
from appliance.sync.remembered import MIGRATIONS, Remembered
from appliance.sync.trust import Trust, Trusted
from tests.integration.loopback_hub import LoopbackHub, serving
from tests.integration.tuf_repository import Repository, a_release

WAIT_S = 20.0


class Box:
    """An appliance's trust, its disk and its clock."""

    def __init__(self, directory: Path, repository: Repository, hub: LoopbackHub) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.repository = repository
        self.hub = hub
        self.clock_ms = utc_ms()
        self.store = Store(directory / "state.db", MIGRATIONS, StoreSettings())
        assert self.store.wait_open() == ""
        self.remembered = Remembered(self.store, store_wait_s=WAIT_S)

    @property
    def trust(self) -> Trust:
        return Trust(
            self.directory / "tuf",
            self.repository.bootstrap,
            self.remembered,
            clock=lambda: self.clock_ms,
            built_utc_ms=0,
        )

    def refresh(self, *models: str, settings: Refresh | None = None) -> Trusted:
        source = HttpMetadata(self.hub.url, settings or Refresh(), tls=None)
        return self.trust.refresh(source, "shops", models)

    def current(self) -> Path:
        return self.directory / "tuf" / (self.directory / "tuf/current").read_text().strip()


def labels(trusted: Trusted) -> list[str]:
    return [one.release.label for one in trusted.agreement.genuine]


@contextlib.contextmanager
def boxed(directory: Path, threshold: int = 1) -> Iterator[Box]:
    """Set up one publisher with one model, at version 2, which the shops should run."""
    repository = Repository({"acme": ["demo"], "rival": ["other"]}, threshold)
    digest = repository.release("acme", a_release("demo", "2", 2))
    repository.assign("shops", 1, ("demo", "2", digest))
    with serving(repository.files) as hub:
        box = Box(directory, repository, hub)
        try:
            yield box
        finally:
            assert box.store.close(WAIT_S)
