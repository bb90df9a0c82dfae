"""Remember deployments, who serves, what is quarantined and what the operator wished.

What this room does: one transaction of state.db for each state entered: the deployment, who serves
after it, its quarantine. What is remembered is read at the start and kept in memory as well.
What it knows: that the commit of a version is that transaction and nothing else. After it comes
`pointer.json`, a mirror from which a lost state.db is filled again.
What it never does: act. Nor does it stop a way back because the disk is full: then memory goes on
alone, and `settle` writes it down when that can be done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from appliance.contract.fleet import DEPLOYMENT_STEP, DeploymentStep
from appliance.domain import Digest, Value
from appliance.errors import StoreError
from appliance.store import Store, Transaction, remove_unfinished, write_durably
from appliance.sync import records
from appliance.sync.deployment import Deployment, Serving
from appliance.sync.eligibility import Attempts, Wish
from appliance.sync.host import Offer
from appliance.sync.records import COUNTED, MIGRATIONS, Memory

__all__ = ["MIGRATIONS", "Journal", "Memory"]

T = TypeVar("T")
POINTER_NAME = "pointer.json"
POINTER_BYTES_MAX = 64 << 20
_POINTER_MODE = 0o600
_REASON_CHARS = 1_000  # of what a report says; the whole stands in the history here
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Outbox(Protocol):
    """Keep reports until the hub has them; see `outbox`. changed: set by who added one."""

    changed: asyncio.Event

    def add_in(self, transaction: Transaction, kind: str, body: bytes) -> None:
        """Add a report in the transaction of what it reports. Raises DocumentRefused."""
        ...


class _Mirror(Value):
    """What `pointer.json` holds."""

    serving: tuple[Serving, ...]
    offers: tuple[Offer, ...]
    quarantine: dict[Digest, str]
    wishes: dict[str, Wish]


class Journal:
    """The memory of deployments. Belongs to one loop; the thread of `Store` writes.

    `memory` is read by others and changed by nobody else.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        outbox: Outbox | None = None,
        *,
        history_max: int,
        boot_id: str | None = None,
    ) -> None:
        """Remember in `store`, made with MIGRATIONS, and mirror into `directory`; see `open`.

        outbox: of the same store, for a report of each state entered; None: nobody is told.
        boot_id: names this boot of the machine; None: as the kernel says.
        """
        self.memory = Memory()
        self._store = store
        self._pointer = directory / POINTER_NAME
        self._history_max = history_max
        self._boot_id = boot_id
        self._outbox = outbox
        self._turn = asyncio.Lock()
        self._unsaved = dict[int, Deployment]()
        self._is_run_marked = False
        self._is_mirror_stale = False

    @property
    def is_durable(self) -> bool:
        """Tell whether all that happened is written down."""
        return not self._unsaved and self._is_run_marked

    async def open(self) -> Memory:
        """Read what is remembered, from the mirror where the file has nothing; begin this run.

        Raises:
            StoreError: the file can't be read. One that was lost or set aside is no error.
        """
        known = self._boot_id
        boot_id = await asyncio.to_thread(_read_boot_id) if known is None else known
        self._boot_id = boot_id
        self.memory = await self._write(lambda to: records.recall(to, boot_id))
        with contextlib.suppress(OSError):  # a disk that can't be written is no reason to stop
            await asyncio.to_thread(remove_unfinished, self._pointer)
        if not self.memory.serving:
            await self._recover()
        else:  # the power may have gone between the two
            held = await asyncio.to_thread(_read_bounded, self._pointer)
            self._is_mirror_stale = held != self._mirrored()
        await self.settle()
        return self.memory

    async def close(self) -> None:
        """Write what waits, and that the run ended cleanly, if that can be done."""
        if await self.settle():
            await self._tried(lambda to: self._mark(to, is_clean=True))

    def new_id(self) -> int:
        """Take the number of the next deployment."""
        self.memory.next_id += 1
        return self.memory.next_id - 1

    async def save(self, deployment: Deployment, offer: Offer | None = None, *, must: bool) -> bool:
        """Write down that a deployment entered its state, and all that follows from it, at once.

        offer: what its version is, when it is saved first. must: raise if it can't be written, with
        nothing changed; else memory goes on without, and False says that it is not durable.

        Raises:
            StoreError: it can't be written, and must be.
        """
        async with self._turn:
            serving = self._serving(deployment.model).after(deployment)
            is_durable = True
            try:
                await self._write(lambda to: self._put(to, deployment, serving, offer))
                self._unsaved.pop(deployment.id, None)
            except StoreError:
                if must:
                    raise
                is_durable = False
                self._unsaved[deployment.id] = deployment
            self._learn(deployment, serving, offer)
            if self._outbox is not None:
                self._outbox.changed.set()
            await self._mirror()
        return is_durable

    async def raise_floor(self, model: str, floor_sequence: int) -> None:
        """Take no release of a model below this any more. Raises as `save`."""
        async with self._turn:
            before = self._serving(model)
            if floor_sequence > before.floor_sequence:
                await self._serve(msgspec.structs.replace(before, floor_sequence=floor_sequence))

    async def drop_standby(self, model: str) -> None:
        """Forget the standby of a model. Raises as `save`."""
        async with self._turn:
            await self._serve(msgspec.structs.replace(self._serving(model), standby=Digest("")))

    async def wish(self, model: str, wish: Wish) -> None:
        """Remember what the operator wants of a model. Raises as `save`."""
        async with self._turn:
            await self._write(lambda to: records.put_wish(to, model, wish))
            self.memory.wishes[model] = wish
            self._is_mirror_stale = True
            await self._mirror()

    async def forgive(self, digest: Digest) -> None:
        """Lift the quarantine of a version, and forget how often it was tried. Raises as `save`."""
        async with self._turn:
            await self._write(lambda to: records.forgive(to, digest))
            self.memory.quarantine.pop(digest, None)
            self.memory.attempts.pop(digest, None)
            self._is_mirror_stale = True
            await self._mirror()

    async def history(self, count: int) -> tuple[Deployment, ...]:
        """Read the newest deployments, the last first. Raises StoreError if they can't be read."""
        rows = await asyncio.to_thread(
            self._store.read, "SELECT body FROM deployments ORDER BY id DESC LIMIT ?", (count,)
        )
        return tuple(records.value(row[0], Deployment) for row in rows)

    async def settle(self) -> bool:
        """Write down what could not be; tells whether all is."""
        async with self._turn:
            for deployment in list(self._unsaved.values()):
                if await self._tried(self._putting(deployment)):
                    self._unsaved.pop(deployment.id, None)
            if not self._is_run_marked:
                self._is_run_marked = await self._tried(lambda to: self._mark(to, is_clean=False))
            await self._mirror()
        return self.is_durable

    def roots(self) -> frozenset[str]:
        """List the blobs that must stay, in hex: of all versions that are named."""
        offers = [self.memory.offers[d] for d in self.memory.named() if d in self.memory.offers]
        files = [file for offer in offers for file in offer.files]
        return frozenset(blob.sha256 for file in files for blob in (file.blob, file.chunk_map))

    # --- memory ---

    def _serving(self, model: str) -> Serving:
        return self.memory.serving.get(model, Serving(model=model))

    def _learn(self, deployment: Deployment, serving: Serving, offer: Offer | None) -> None:
        """Bring memory to what was, or should have been, written."""
        now = self.memory
        if offer is not None:
            now.offers[offer.digest] = offer
        if serving is not now.serving.get(deployment.model):
            now.serving[deployment.model] = serving
            self._is_mirror_stale = True
        if not deployment.has_ended:
            now.under_way[deployment.model] = deployment
            return
        now.under_way.pop(deployment.model, None)
        named = now.named()
        now.offers = {digest: one for digest, one in now.offers.items() if digest in named}
        if deployment.is_blamed:
            now.quarantine[deployment.digest] = _blame(deployment)
            self._is_mirror_stale = True
        if deployment.cause in COUNTED:
            tried = now.attempts.get(deployment.digest, Attempts())
            now.attempts[deployment.digest] = Attempts(
                count=tried.count + 1, ended_utc_ms=deployment.entered_utc_ms
            )

    # --- writing ---

    def _putting(self, deployment: Deployment) -> Callable[[Transaction], None]:
        serving = self._serving(deployment.model)
        return lambda to: self._put(to, deployment, serving, None)

    def _put(
        self, to: Transaction, deployment: Deployment, serving: Serving, offer: Offer | None
    ) -> None:
        """Write one state entered. On the writing thread."""
        records.put_deployment(to, deployment)
        records.put_serving(to, serving)
        if self._outbox is not None:
            self._outbox.add_in(to, DEPLOYMENT_STEP, msgspec.json.encode(_step(deployment)))
        if offer is not None:
            records.put_offer(to, offer)
        if not deployment.has_ended:
            return
        if deployment.is_blamed:
            records.put_quarantine(to, deployment.digest, _blame(deployment))
        named = {*self.memory.named(), serving.active, serving.standby}
        records.let_go(to, named, deployment.id - self._history_max)

    async def _serve(self, serving: Serving) -> None:
        await self._write(lambda to: records.put_serving(to, serving))
        self.memory.serving[serving.model] = serving
        self._is_mirror_stale = True
        await self._mirror()

    def _mark(self, to: Transaction, *, is_clean: bool) -> None:
        assert self._boot_id is not None, "open first"
        records.mark_run(to, self._boot_id, is_clean=is_clean)

    async def _write(self, intent: Callable[[Transaction], T]) -> T:
        return await asyncio.wrap_future(self._store.submit(intent))

    async def _tried(self, intent: Callable[[Transaction], None]) -> bool:
        try:
            await self._write(intent)
        except StoreError:
            return False
        return True

    # --- the mirror ---

    async def _mirror(self) -> None:
        """Write the mirror if it is behind; a full disk leaves the old one, to be tried again."""
        if not self._is_mirror_stale:
            return
        data = self._mirrored()
        try:
            await asyncio.to_thread(write_durably, self._pointer, data, mode=_POINTER_MODE)
        except OSError:
            return
        self._is_mirror_stale = False

    def _mirrored(self) -> bytes:
        """Say what the mirror should hold."""
        now = self.memory
        wanted = {d for one in now.serving.values() for d in (one.active, one.standby)}
        mirror = _Mirror(
            serving=tuple(now.serving.values()),
            offers=tuple(offer for digest, offer in now.offers.items() if digest in wanted),
            quarantine=dict(now.quarantine),
            wishes=dict(now.wishes),
        )
        return msgspec.json.encode(mirror)

    async def _recover(self) -> None:
        """Fill an empty file from the mirror, if there is one that can be read."""
        data = await asyncio.to_thread(_read_bounded, self._pointer)
        try:
            mirror = msgspec.json.decode(data, type=_Mirror)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        self.memory.serving.update({one.model: one for one in mirror.serving})
        self.memory.offers.update({one.digest: one for one in mirror.offers})
        self.memory.quarantine.update(mirror.quarantine)
        self.memory.wishes.update(mirror.wishes)

        def intent(to: Transaction) -> None:
            for serving in mirror.serving:
                records.put_serving(to, serving)
            for offer in mirror.offers:
                records.put_offer(to, offer)
            for digest, reason in mirror.quarantine.items():
                records.put_quarantine(to, digest, reason)
            for model, wish in mirror.wishes.items():
                records.put_wish(to, model, wish)

        await self._tried(intent)


def _blame(deployment: Deployment) -> str:
    return f"{deployment.cause}: {deployment.reason}"


def _read_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(POINTER_BYTES_MAX)
    except OSError:
        return b""


def _step(deployment: Deployment) -> DeploymentStep:
    """Say what the hub is told of a state that was entered."""
    return DeploymentStep(
        deployment=deployment.id,
        model=deployment.model,
        version=deployment.version,
        digest=deployment.digest,
        state=deployment.state.value,
        entered_utc_ms=deployment.entered_utc_ms,
        step=deployment.step,
        quantisation=deployment.quantisation,
        undo=deployment.undo.value if deployment.undo is not None else "",
        cause=deployment.cause,
        reason=deployment.reason[:_REASON_CHARS],
    )
