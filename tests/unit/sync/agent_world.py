"""A hub's word, a host and a clock for an agent: in memory, and as unkind as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.config import Deployments
from appliance.config import Store as StoreSettings
from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.release import (
    BlobRef,
    Expectation,
    Facts,
    FileRole,
    HealthPack,
    Release,
    ReleaseFile,
    Strategy,
    Trial,
)
from appliance.contract.standing import Revoked, Standing
from appliance.domain import (
    Answer,
    Digest,
    HostedVersion,
    Loaded,
    NoRoom,
    Sample,
    SwitchReport,
    Traffic,
    Window,
)
from appliance.errors import DeploymentRefused, HubUnreachable, ModelUnloadable
from appliance.store import Store
from appliance.sync.acts import Pace, Site
from appliance.sync.agent import Agent, Here
from appliance.sync.deployment import Bounds, Deployment
from appliance.sync.host import Offer
from appliance.sync.hosted import laid_out, let_go
from appliance.sync.inbox import Inbox
from appliance.sync.journal import MIGRATIONS, Journal
from appliance.sync.judge import Bars
from appliance.sync.orders import Orders

TRIAL = Trial(samples_min=5, duration_s=3.0)
QUICK = Strategy(shadow=TRIAL, step=TRIAL, probation=TRIAL, steps_percent=(50,))
MODEL = "m"
WAIT_S = 20.0


def digest_of(version: str) -> Digest:
    return Digest(f"sha256:{int(version):064d}")


class Hub:
    """What is signed. Satisfies `host.Trust`."""

    def __init__(self) -> None:
        self.releases: dict[str, Offer] = {}
        self.assigned: Assignment | None = None
        self.withdrawn: Standing | None = None
        self.is_down = False

    def publish(
        self,
        version: str,
        strategy: Strategy = QUICK,
        health: HealthPack | None = None,
        *,
        smaller: bool = False,
    ) -> None:
        """Publish a file of one byte; smaller: after a first edition of a hundred."""
        blob = BlobRef(sha256=f"{int(version):064d}", length=1)
        large = BlobRef(sha256=f"{int(version):063d}f", length=100)
        weights = [("m.gguf", blob, "Q4_0" if smaller else "")]
        if smaller:
            weights.insert(0, ("large.gguf", large, "Q8_0"))
        release = Release(
            schema=1,
            model=MODEL,
            version=version,
            sequence=int(version),
            issued_utc_ms=0,
            files=tuple(
                ReleaseFile(
                    name=name, role=FileRole.WEIGHTS, blob=one, chunk_map=one, quantisation=edition
                )
                for name, one, edition in weights
            ),
            facts=Facts(
                architecture="llama",
                parameters_count=1,
                quantisation="Q8_0",
                context_train_tokens=1,
                tokenizer_sha256="a" * 64,
            ),
            health=health or HealthPack(),
            strategy=strategy,
        )
        offer = Offer(release=release, digest=digest_of(version), publisher="publisher-team")
        self.releases[version] = offer

    def assign(self, version: str, *, halt: bool = False) -> None:
        one = Assigned(model=MODEL, version=version, release_sha256=f"{int(version):064d}")
        self.assigned = Assignment(
            schema=1, cohort="c", sequence=1, issued_utc_ms=0, models=(one,), halt=halt
        )

    def revoke(self, version: str) -> None:
        one = Revoked(version=version, release_sha256=f"{int(version):064d}", reason="it lies")
        self.withdrawn = Standing(schema=1, model=MODEL, revoked=(one,))

    async def refresh(self) -> None:
        if self.is_down:
            raise HubUnreachable(source="hub", reason="no route to it")

    def assignment(self) -> Assignment | None:
        return self.assigned

    def release(self, model: str, version: str) -> Offer | None:
        return self.releases.get(version) if model == MODEL else None

    def standing(self, model: str) -> Standing | None:
        return self.withdrawn if model == MODEL else None


class Host:
    """Who hosts: satisfies `ModelHost`, `Examiner` and `Blobs`. `bad`: gives errors alone."""

    def __init__(self) -> None:
        self.loaded: dict[Digest, HostedVersion] = {}
        self.active: Digest | None = None
        self.standby: Digest | None = None
        self.traffic = Traffic()
        self.bad: set[Digest] = set()
        self.unloadable: set[Digest] = set()
        self.answers: dict[Digest, str] = {}
        self.memory_bytes = 1
        self.roots: frozenset[str] = frozenset()

    @property
    def serves(self) -> tuple[str, str, float]:
        """Name the versions that are active and on standby, and the candidate's percentage."""
        names = [
            str(int(one.removeprefix("sha256:"))) if one else ""
            for one in (self.active, self.standby)
        ]
        return names[0], names[1], self.traffic.percent

    async def load(self, hosted: HostedVersion, instead_of: Digest | None) -> Loaded | NoRoom:
        del instead_of
        if hosted.digest in self.unloadable:
            raise ModelUnloadable(path=hosted.weights[0], reason="it is broken")
        self.loaded[hosted.digest] = hosted
        return Loaded(
            digest=hosted.digest,
            load_ms=1.0,
            memory_bytes=self.memory_bytes,
            tokenizer_sha256="a" * 64,
        )

    async def unload(self, digest: Digest) -> None:
        self.loaded.pop(digest, None)
        if self.active == digest:
            self.active = None

    async def direct(self, model: str, traffic: Traffic) -> None:
        del model
        self.traffic = traffic

    async def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        previous = self.active
        if previous not in (to, expecting):
            raise DeploymentRefused(model=model, action="switch", reason="another is active")
        if previous != to:
            self.active, self.standby = to, previous
        self.traffic = Traffic()
        return SwitchReport(
            model=model,
            previous=previous or to,
            to=to,
            utc_ms=0,
            flip_ms=0.0,
            moved_count=0,
            left_count=0,
            reason="",
        )

    async def stand_by(self, model: str, hosted: HostedVersion | None) -> None:
        del model
        self.standby = hosted.digest if hosted else None

    async def ask(self, digest: Digest, prompt: Expectation) -> Answer:
        text = self.answers.get(digest, prompt.contains)
        return Answer(text=text, token_count=4, decode_ms=4.0)

    def window(self, digest: Digest) -> Window:
        error = "DECODE_FAILED" if digest in self.bad else ""
        shadow = self.traffic.shadow_share > 0 and digest == self.traffic.candidate
        return Window(samples=(Sample(error=error, first_token_ms=9.0, is_shadow=shadow),) * 10)

    async def fetch(self, files: tuple[ReleaseFile, ...], progress: Callable[[str], None]) -> None:
        progress(f"0 of {len(files)}")

    def path_of(self, sha256: str) -> str:
        return f"blobs/{sha256}"

    async def prune(self, roots: Callable[[], frozenset[str]]) -> None:
        self.roots = roots()


class Box:
    """One appliance: what outlives a restart is the hub's word and the directory."""

    def __init__(self, directory: Path, settings: Deployments) -> None:
        self.hub = Hub()
        self.host = Host()
        self.record: list[tuple[str, str, str, str]] = []
        self.alerts: list[Deployment] = []
        self.now_ms = 1_800_000_000_000.0
        self.closed = ""
        self.free_bytes: int | None = None
        self.editions: dict[str, str] = {}
        self._directory = directory
        self._settings = settings

    async def sleep(self, seconds: float) -> None:
        self.now_ms += seconds * 1000
        await asyncio.sleep(0.0005)

    @asynccontextmanager
    async def running(self, inbox: Inbox | None = None) -> AsyncIterator[tuple[Agent, Orders]]:
        store = Store(self._directory / "state.db", MIGRATIONS, StoreSettings(busy_timeout_s=0.05))
        journal = Journal(store, self._directory, history_max=100, boot_id="boot")
        agent = Agent(
            self._settings,
            self._site(journal),
            journal,
            self.hub,
            Here(
                appliance_version="0.1.0",
                memory_bytes=0,
                local_names=frozenset,
                free_bytes=lambda: self.free_bytes,
                editions=self.editions,
            ),
        )
        orders = Orders(agent, lambda *row: self.record.append(row))
        try:
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(agent.run(None, inbox))
                yield agent, orders
                agent.close()
        finally:
            assert await asyncio.to_thread(store.close, WAIT_S)

    def _site(self, journal: Journal) -> Site:
        async def hosted(offer: Offer) -> HostedVersion:
            return laid_out(self._directory / "versions", offer, self.host.path_of)

        async def let(kept: frozenset[Digest]) -> None:
            let_go(self._directory / "versions", kept)

        return Site(
            host=self.host,
            examiner=self.host,
            blobs=self.host,
            book=journal,
            hosted=hosted,
            let_go=let,
            offers=lambda digest: journal.memory.offers[digest],
            window=lambda: self.closed,
            alert=self.alerts.append,
            utc_ms=lambda: int(self.now_ms),
            monotonic_ms=lambda: self.now_ms,
            sleep=self.sleep,
            bars=Bars(),
            bounds=Bounds(),
            pace=Pace(measure_s=1.0, retry_s=1.0),
        )


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for is another's
            await asyncio.sleep(0.001)
