"""A world for deployments: a host, a disk and a clock that crash, fill up and move on by a seed.

What it checks, at every save and every act, is what must hold whatever happens; see `World.check`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import msgspec

from appliance.contract.release import (
    BlobRef,
    Expectation,
    Facts,
    FileRole,
    Release,
    ReleaseFile,
    Strategy,
    Trial,
)
from appliance.domain import (
    Answer,
    Digest,
    HostedVersion,
    Loaded,
    ModelVersion,
    NoRoom,
    Origin,
    Sample,
    SwitchReport,
    Traffic,
    Window,
)
from appliance.errors import (
    BlobCorrupt,
    DeploymentRefused,
    DiskFull,
    ModelUnloadable,
    StoreError,
)
from appliance.sync.acts import Pace, Site
from appliance.sync.conductor import Conductor
from appliance.sync.deployment import Bounds, Deployment, Serving
from appliance.sync.host import Offer
from appliance.sync.judge import Bars
from appliance.sync.states import SEEN, Event, State

OLD, NEW = Digest("sha256:" + "0" * 64), Digest("sha256:" + "1" * 64)
NONE = Digest("")
TRIAL = Trial(samples_min=3, duration_s=2.0)
STRATEGY = Strategy(
    shadow=TRIAL, step=TRIAL, probation=TRIAL, steps_percent=(10, 50), deadline_s=500.0
)
BOUNDS = Bounds(entries_max=20, reboots_max=2)
POKES_MAX = 20_000


class Crash(BaseException):
    """The process, or the machine, is gone."""


class Chances(msgspec.Struct, frozen=True, kw_only=True):
    """How likely things are, and what the candidate is like."""

    quality: str = "good"  # good | bad | silent | unloadable | unfit | corrupt
    crash: float = 0.0
    crashes_max: int = 0
    crash_at: int = -1  # in place of chance: at just this point
    save_fails: float = 0.0
    told: float = 0.0
    no_room: bool = False
    restarted: Event = Event.RESTARTED_DIRTY


def offer(digest: Digest) -> Offer:
    blob = BlobRef(sha256=digest.removeprefix("sha256:"), length=1)
    release = Release(
        schema=1,
        model="m",
        version=digest[-1],
        sequence=1,
        issued_utc_ms=0,
        files=(ReleaseFile(name="m.gguf", role=FileRole.WEIGHTS, blob=blob, chunk_map=blob),),
        facts=Facts(
            architecture="llama",
            parameters_count=1,
            quantisation="Q8_0",
            context_train_tokens=1,
            tokenizer_sha256="a" * 64,
        ),
    )
    return Offer(release=release, digest=digest, publisher="publisher-team")


class World:
    """Everything around one conductor. `disk_*` outlives a crash; the rest does not."""

    def __init__(self, seed: int, chances: Chances, serving: Serving) -> None:
        self.random = random.Random(seed)
        self.nobody = {NONE} if serving.active == NONE else set[Digest]()  # on a first install
        self.chances = chances
        self.disk_rows: dict[int, Deployment] = {}
        self.disk_serving = serving
        self.disk_full = False
        self.unsaved: dict[int, Deployment] = {}
        self.serving = serving
        self.now_ms = 1_000_000.0
        self.points = 0
        self.crashes = 0
        self.alerts: list[Deployment] = []
        self.commits = 0
        self.conductor: Conductor | None = None
        self.loaded: set[Digest] = set()
        self.active = NONE
        self.traffic = Traffic()
        self.windows_since_ms = 0.0
        self.boot()

    # --- crashes and time ---

    def boot(self) -> None:
        """Begin as the daemon does: what the disk says serves, and nothing else is loaded."""
        self.serving, self.unsaved = self.disk_serving, {}
        self.active, self.traffic = self.disk_serving.active, Traffic()
        self.loaded = {self.active} - {NONE}

    def point(self) -> None:
        """Maybe crash here; check what must hold."""
        self.check()
        self.points += 1
        by_chance = self.chances.crash_at < 0 and self.random.random() < self.chances.crash
        if self.crashes < self.chances.crashes_max and (
            by_chance or self.points == self.chances.crash_at
        ):
            self.crashes += 1
            raise Crash

    async def sleep(self, seconds: float) -> None:
        self.now_ms += seconds * 1000
        await asyncio.sleep(0)

    # --- what must hold ---

    def check(self) -> None:
        assert self.disk_serving.active in {NONE, OLD, NEW}
        assert self.active in {OLD, NEW} | self.nobody
        row = next(iter(self.disk_rows.values()), None)
        if self.traffic.percent > 0:
            assert self.traffic.candidate in self.loaded
            assert row is not None
            going_back = row.state is State.ROLLING_BACK or bool(self.unsaved)
            assert row.state in SEEN or going_back or row.has_ended, row.state
        if row is not None:
            assert row.entries <= BOUNDS.entries_max + 1

    # --- Book ---

    async def save(self, deployment: Deployment, _: Offer | None = None, *, must: bool) -> bool:
        self.point()
        after = self.serving.after(deployment)
        if self.disk_full or self.random.random() < self.chances.save_fails:
            if must:
                raise StoreError(database="state.db", reason="the disk is full")
            self.unsaved[deployment.id] = deployment
            self.serving = after
            return False
        await asyncio.sleep(0)
        self._write(deployment, after)
        self.point()
        return True

    async def settle(self) -> bool:
        if self.unsaved and (self.disk_full or self.random.random() < self.chances.save_fails):
            return False
        for deployment in list(self.unsaved.values()):
            self._write(deployment, self.serving)
        return True

    def _write(self, deployment: Deployment, serving: Serving) -> None:
        before = self.disk_rows.get(deployment.id)
        assert before is None or not before.has_ended, "an end is written once"
        self.commits += deployment.state is State.COMMITTED
        self.disk_rows[deployment.id] = deployment
        self.disk_serving = self.serving = serving
        self.unsaved.pop(deployment.id, None)

    # --- ModelHost ---

    async def load(self, hosted: HostedVersion, instead_of: Digest | None) -> Loaded | NoRoom:
        self.point()
        await asyncio.sleep(0)
        if instead_of is None and self.chances.no_room and hosted.digest == NEW:
            return NoRoom(needed_bytes=2, free_bytes=1)
        if instead_of is not None:
            self.loaded.discard(instead_of)
        if hosted.digest == NEW and self.chances.quality == "unloadable":
            raise ModelUnloadable(path="m.gguf", reason="it is broken")
        self.loaded.add(hosted.digest)
        self.point()
        unfit = hosted.digest == NEW and self.chances.quality == "unfit"
        return Loaded(
            digest=hosted.digest,
            load_ms=1.0,
            memory_bytes=1,
            tokenizer_sha256=("b" if unfit else "a") * 64,
        )

    async def unload(self, digest: Digest) -> None:
        self.point()
        assert digest != self.active or self.active == NONE, "who serves is not stopped"
        assert self.traffic.percent == 0 or self.traffic.candidate != digest
        self.loaded.discard(digest)

    async def direct(self, model: str, traffic: Traffic) -> None:
        del model
        self.point()
        if traffic.candidate is not None and traffic.candidate not in self.loaded:
            raise ModelUnloadable(path="m", reason="it is not loaded")
        if traffic.percent > 0:
            row = next(iter(self.disk_rows.values()))
            assert row.traffic == traffic, "who gets a candidate is written down before"
        self.traffic, self.windows_since_ms = traffic, self.now_ms
        self.point()

    async def switch(self, model: str, to: Digest, expecting: Digest | None) -> SwitchReport:
        self.point()
        if self.active not in (to, expecting or NONE):
            raise DeploymentRefused(model=model, action="switch", reason="another is active")
        if to == NEW:
            assert self.disk_serving.active == NEW, "a commit is written down before"
        self.loaded.add(to)
        previous, self.active, self.traffic = self.active, to, Traffic()
        self.point()
        return SwitchReport(
            model=model,
            previous=previous,
            to=to,
            utc_ms=0,
            flip_ms=0.0,
            moved_count=0,
            left_count=0,
            reason="",
        )

    async def stand_by(self, model: str, hosted: HostedVersion | None) -> None:
        raise AssertionError((model, hosted))

    # --- Examiner ---

    async def ask(self, digest: Digest, prompt: Expectation) -> Answer:
        raise AssertionError((digest, prompt))

    def window(self, digest: Digest) -> Window:
        """Measure 2 requests a second; a silent candidate gets none."""
        seconds = (self.now_ms - self.windows_since_ms) / 1000
        if digest == OLD:
            return Window(samples=tuple([Sample(first_token_ms=100.0)] * 50))
        if self.chances.quality == "silent":
            return Window()
        error = "DECODE_FAILED" if self.chances.quality == "bad" else ""
        shadow = self.traffic.shadow_share > 0
        sample = Sample(error=error, first_token_ms=100.0, is_shadow=shadow)
        return Window(samples=tuple([sample] * min(50, int(seconds * 2))))

    # --- Blobs ---

    async def fetch(self, files: tuple[ReleaseFile, ...], progress: Callable[[str], None]) -> None:
        self.point()
        progress(f"0 of {len(files)} files")
        if self.chances.quality == "corrupt":
            raise BlobCorrupt(digest=files[0].blob.sha256, reason="no source has the right bytes")
        if self.random.random() < self.chances.save_fails:
            raise DiskFull(path="blobs", needed_bytes=2, free_bytes=1)
        self.point()

    def path_of(self, sha256: str) -> str:
        return sha256

    async def prune(self, roots: Callable[[], frozenset[str]]) -> None:
        raise AssertionError(roots())

    # --- putting it together ---

    def site(self) -> Site:
        return Site(
            host=self,
            examiner=self,
            blobs=self,
            book=self,
            hosted=self._hosted,
            offers=offer,
            window=lambda: "the window opens later" if self.random.random() < 0.3 else "",
            alert=self.alerts.append,
            utc_ms=lambda: int(self.now_ms),
            monotonic_ms=lambda: self.now_ms,
            sleep=self.sleep,
            bars=Bars(),
            bounds=BOUNDS,
            pace=Pace(measure_s=0.5, retry_s=1.0),
        )

    async def _hosted(self, one: Offer) -> HostedVersion:
        version = ModelVersion(
            model="m",
            version=one.release.version,
            digest=one.digest,
            blob_bytes=1,
            origin=Origin.HUB,
            key_id=one.publisher,
            signature="",
        )
        return HostedVersion(version=version, weights=("m.gguf",))

    async def live(self, deployment: Deployment) -> Deployment:
        """Carry a deployment to its end over every crash; returns it so."""
        self.disk_rows[deployment.id] = deployment
        restarted: Event | None = None
        while True:
            row = self.disk_rows[deployment.id]
            if row.has_ended:
                return row
            self.conductor = Conductor(row, self.site())
            try:
                async with asyncio.TaskGroup() as group:
                    running = group.create_task(self.conductor.run(restarted))
                    group.create_task(self._poke(running))
                return running.result()
            except* Crash:
                restarted = self.chances.restarted
            self.boot()

    async def _poke(self, running: asyncio.Task[Deployment]) -> None:
        """Move time on, and now and then tell the conductor what happens outside."""
        pokes = 0
        while not running.done():
            assert pokes < POKES_MAX, self.conductor and self.conductor.deployment
            pokes += 1
            await self.sleep(0.25)
            self.poke()

    def poke(self) -> None:
        conductor = self.conductor
        assert conductor is not None
        conductor.tick()
        if conductor.deployment.state is State.AWAITING_APPROVAL and self.random.random() < 0.2:
            conductor.tell(Event.APPROVED, "looks good")
        if self.random.random() < self.chances.told:
            event = self.random.choice(
                [Event.CANCELLED, Event.REVOKED, Event.SUPERSEDED, Event.WORKER_LOST]
            )
            conductor.tell(event, "from outside")
