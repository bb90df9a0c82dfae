"""Say what deployments need of others: to host versions, to measure them, files, and what is true.

What this room does: four Protocols, declared by their consumer, because arrows to their makers
would run sideways.
What it knows: the values of `domain` and the documents of `contract`.
What it never does: anything.

| protocol | who satisfies it |
|---|---|
| `ModelHost`, `Examiner` | the router of `runtime` |
| `Blobs` | the blob store with its downloader |
| `Trust` | the view of what TUF verified |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from appliance.contract.assignment import Assignment
from appliance.contract.release import Expectation, Release, ReleaseFile
from appliance.contract.standing import Standing
from appliance.domain import (
    Answer,
    Digest,
    HostedVersion,
    Loaded,
    NoRoom,
    SwitchReport,
    Traffic,
    Value,
    Window,
)


class ModelHost(Protocol):
    """Host versions. Every act may be said twice; the second time changes nothing."""

    async def load(self, hosted: HostedVersion, instead_of: Digest | None) -> Loaded | NoRoom:
        """Start a worker for a version; nobody is sent to it until `direct` or `switch` says so.

        instead_of: a version that is stopped first, its file kept in the page cache; until another
        is switched to or it is back, whoever asks for the model must ask again. The version itself:
        it is loaded whatever room there is. None: nothing that serves is touched.

        Raises:
            ModelUnloadable: the file can't be loaded; what was stopped stays stopped.
            WorkerLost: its worker ended while loading.
        """
        ...

    async def unload(self, digest: Digest) -> None:
        """Stop a version that nobody is sent to, when its requests have ended or drained."""
        ...

    async def direct(self, model: str, traffic: Traffic) -> None:
        """Send a model's new requests as `traffic` says, from now on, and measure anew.

        A candidate that loses its share here gives up requests with nothing sent yet; they are
        replayed on the active version. Stops nothing. 100 percent are all clients, and the active
        version stays what it is.

        Raises:
            ModelNotReady: the candidate is not loaded; nothing was changed.
        """
        ...

    async def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        """Make `to` the active version at once; who was it becomes the standby.

        A `to` that stands by without being loaded is loaded first. Requests with nothing sent yet
        are replayed on it; streams go on where they are, unless their worker is the fault.
        expecting: the active version, None where there is none; where that is `to` already, only
        the report is made.

        Raises:
            DeploymentRefused: another version is active than expected; nothing was changed.
            ModelUnloadable: `to` can't be loaded.
            WorkerLost: its worker ended while loading.
        """
        ...

    async def stand_by(self, model: str, hosted: HostedVersion | None) -> None:
        """Keep a version as ready as memory allows, or none; does not wait until it is."""
        ...


class Examiner(Protocol):
    """Ask loaded versions, and read what was measured of them."""

    async def ask(self, digest: Digest, prompt: Expectation) -> Answer:
        """Have a loaded version answer one prompt, greedily, whoever it serves.

        Raises:
            ApplianceError: it could not answer.
        """
        ...

    def window(self, digest: Digest) -> Window:
        """Read what was measured of a version since traffic was directed anew; never blocks."""
        ...


class Blobs(Protocol):
    """Hold verified files by their digests, 64 hex digits."""

    async def fetch(self, files: tuple[ReleaseFile, ...], progress: Callable[[str], None]) -> None:
        """Make all files present and verified; goes on for as long as the world is unkind.

        Cancelling keeps what was verified. progress: is told in words how far it is, or what it
        waits for.

        Raises:
            BlobCorrupt: a file can't be what its digest says, or is none that we parse.
            DocumentRefused: its chunk map contradicts it.
        """
        ...

    def path_of(self, sha256: str) -> str:
        """Name the path of a blob that is present."""
        ...

    async def prune(self, roots: Callable[[], frozenset[str]]) -> None:
        """Let go of blobs that no root names, as far as retention wants.

        roots: asked when nothing can begin to be fetched any more.
        """
        ...


class Offer(Value):
    """A verified release: its document, the digest of that document, and who signed it.

    quantisation: the edition that was chosen for this appliance; empty: the preferred one.
    """

    release: Release
    digest: Digest
    publisher: str
    quantisation: str = ""

    @property
    def files(self) -> tuple[ReleaseFile, ...]:
        """Pick the files that this appliance takes: weights in their order, and adapters."""
        return self.release.edition(self.edition)

    @property
    def edition(self) -> str:
        """Name the edition that this appliance takes."""
        return self.quantisation or self.release.quantisations[0]

    @property
    def needed_bytes(self) -> int:
        """Say how much memory it needs."""
        return self.release.needed_bytes(self.edition)


class Trust(Protocol):
    """Know what was verified. Reading never needs the hub, nor fresh metadata."""

    async def refresh(self) -> None:
        """Learn what is new, from whichever source answers.

        Raises:
            HubUnreachable: none does; what was known holds.
            Untrusted: what was said is not signed by those who may say it.
            ClockUntrusted: nothing is learnt until the clock is right.
        """
        ...

    def assignment(self) -> Assignment | None:
        """Read what this appliance's cohort should run; None: nothing was ever said."""
        ...

    def release(self, model: str, version: str) -> Offer | None:
        """Read a release; None: no publisher of the model signed it, or it is not known yet."""
        ...

    def standing(self, model: str) -> Standing | None:
        """Read what is withdrawn of a model; None: nothing was ever said."""
        ...
