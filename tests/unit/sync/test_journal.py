"""What is remembered of deployments: in one transaction, over restarts, over a lost file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from pysqlite3 import dbapi2 as sqlite

from appliance.config import Store as Settings
from appliance.contract.release import (
    BlobRef,
    Facts,
    FileRole,
    Release,
    ReleaseFile,
    Strategy,
)
from appliance.domain import Digest
from appliance.errors import StoreError
from appliance.store import Store
from appliance.sync.deployment import Bounds, Deployment, Happening, Undo, decide, plan, undoing
from appliance.sync.eligibility import Attempts, Wish
from appliance.sync.host import Offer
from appliance.sync.journal import MIGRATIONS, POINTER_NAME, Journal
from appliance.sync.states import Event, State

SETTINGS = Settings(busy_timeout_s=0.05, reopen_s=0.001)
NONE = Digest("")
OLD, NEW = Digest("sha256:" + "0" * 64), Digest("sha256:" + "1" * 64)
DIRECT = Strategy(shadow_share=0.0, steps_percent=(), probation=None)
WAY = (
    Event.STARTED,
    Event.BLOBS_READY,
    Event.WINDOW_OPEN,
    Event.LOADED,
    Event.CHECKS_PASSED,
)


def offer(digest: Digest, version: str = "2") -> Offer:
    blob = BlobRef(sha256=digest.removeprefix("sha256:"), length=1)
    chunk_map = BlobRef(sha256="f" * 64, length=1)
    facts = Facts(
        architecture="llama",
        parameters_count=1,
        quantisation="Q8_0",
        context_train_tokens=1,
        tokenizer_sha256="a" * 64,
    )
    file = ReleaseFile(name="m.gguf", role=FileRole.WEIGHTS, blob=blob, chunk_map=chunk_map)
    release = Release(
        schema=1,
        model="m",
        version=version,
        sequence=1,
        issued_utc_ms=0,
        files=(file,),
        facts=facts,
    )
    return Offer(release=release, digest=digest, publisher="publisher-team")


def planned(journal: Journal, digest: Digest = NEW, previous: Digest = OLD) -> Deployment:
    deployment = plan(
        model="m", version="2", digest=digest, previous=previous, strategy=DIRECT, utc_ms=1
    )
    return msgspec.structs.replace(deployment, id=journal.new_id())


def after(deployment: Deployment, *events: Event) -> Deployment:
    for event in events:
        happening = Happening(event=event, utc_ms=7, reason="why")
        decision = decide(deployment, happening, Bounds())
        assert decision is not None
        deployment = decision.deployment
    return deployment


@asynccontextmanager
async def opened(
    directory: Path, boot_id: str = "boot-1", *, clean: bool = True
) -> AsyncIterator[Journal]:
    store = Store(directory / "state.db", MIGRATIONS, SETTINGS)
    journal = Journal(store, directory, history_max=5, boot_id=boot_id)
    await journal.open()
    try:
        yield journal
        if clean:
            await journal.close()
    finally:
        assert await asyncio.to_thread(store.close, 20.0)


async def commit(journal: Journal, digest: Digest, previous: Digest = NONE) -> None:
    deployment = planned(journal, digest, previous)
    await journal.save(deployment, offer(digest), must=True)
    await journal.save(after(deployment, *WAY), must=True)


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def lose(directory: Path, loss: str) -> None:
    for path in directory.glob("state.db*"):
        if loss == "damaged":
            path.write_bytes(b"damage" * 1000)
        else:
            path.unlink()


@asynccontextmanager
async def unwritable(directory: Path) -> AsyncIterator[None]:
    """Hold the file's one write lock."""
    other = sqlite.connect(str(directory / "state.db"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_a_commit_is_one_transaction_that_a_restart_finds(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            await commit(journal, OLD)
            await commit(journal, NEW, OLD)
        async with opened(tmp_path) as journal:
            serving = journal.memory.serving["m"]
            assert (serving.active, serving.standby, serving.generation) == (NEW, OLD, 2)
            assert set(journal.memory.offers) == {OLD, NEW}
            assert journal.memory.under_way == {}
            states = [one.state for one in await journal.history(10)]
            assert states == [State.COMMITTED, State.COMMITTED]

    run(test)


def test_what_is_under_way_is_found_in_the_state_it_was_saved_in(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            deployment = planned(journal)
            await journal.save(deployment, offer(NEW), must=True)
            loading = after(deployment, *WAY[:3])
            await journal.save(loading, must=True)
        async with opened(tmp_path) as journal:
            assert journal.memory.under_way == {"m": loading}
            assert journal.new_id() == loading.id + 1
            assert journal.roots() == {"1" * 64, "f" * 64}

    run(test)


@pytest.mark.parametrize(
    ("boot_id", "clean", "expected"),
    [
        ("boot-1", True, Event.RESTARTED_CLEAN),
        ("boot-2", True, Event.RESTARTED_CLEAN),
        ("boot-1", False, Event.RESTARTED_DIRTY),
        ("boot-2", False, Event.RESTARTED_REBOOTED),
    ],
)
def test_how_the_last_run_ended_is_told_apart(
    tmp_path: Path, boot_id: str, *, clean: bool, expected: Event
) -> None:
    async def test() -> None:
        async with opened(tmp_path, clean=clean) as journal:
            assert journal.memory.last_run is Event.RESTARTED_CLEAN
        async with opened(tmp_path, boot_id) as journal:
            assert journal.memory.last_run is expected

    run(test)


def test_a_version_that_failed_is_quarantined_until_it_is_forgiven(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            deployment = planned(journal)
            await journal.save(deployment, offer(NEW), must=True)
            failed = after(deployment, *WAY[:3], Event.LOAD_FAILED)
            await journal.save(failed, must=False)
        async with opened(tmp_path) as journal:
            assert journal.memory.quarantine == {NEW: "load_failed: why"}
            await journal.forgive(NEW)
        async with opened(tmp_path) as journal:
            assert journal.memory.quarantine == {}

    run(test)


def test_tries_without_an_end_are_counted(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            for _ in range(2):
                deployment = planned(journal)
                await journal.save(deployment, offer(NEW), must=True)
                await journal.save(after(deployment, *WAY[:3], Event.DEADLINE), must=False)
            assert journal.memory.attempts == {NEW: Attempts(count=2, ended_utc_ms=7)}
        async with opened(tmp_path) as journal:
            assert journal.memory.attempts == {NEW: Attempts(count=2, ended_utc_ms=7)}
            await journal.forgive(NEW)
        async with opened(tmp_path) as journal:
            assert journal.memory.attempts == {}

    run(test)


def test_history_and_offers_are_bounded(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            for number in range(10):
                digest = Digest(f"sha256:{number:064d}")
                serving = journal.memory.serving.get("m")
                await commit(journal, digest, serving.active if serving else Digest(""))
            assert len(await journal.history(100)) == 6
        async with opened(tmp_path) as journal:
            assert len(journal.memory.offers) == 3  # the one before the standby goes with the next

    run(test)


def test_pins_holds_and_floors_are_remembered(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            await journal.wish("m", Wish(pinned="2", is_held=True))
            await journal.raise_floor("m", 4)
            await journal.raise_floor("m", 3)
        async with opened(tmp_path) as journal:
            assert journal.memory.wishes == {"m": Wish(pinned="2", is_held=True)}
            assert journal.memory.serving["m"].floor_sequence == 4

    run(test)


def test_a_dropped_standby_is_forgotten(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            await commit(journal, OLD)
            await commit(journal, NEW, OLD)
            await journal.drop_standby("m")
        async with opened(tmp_path) as journal:
            assert journal.memory.serving["m"].standby == ""

    run(test)


def test_a_failed_save_stops_the_way_forward_and_changes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            deployment = planned(journal)
            await journal.save(deployment, offer(NEW), must=True)
            async with unwritable(tmp_path):
                with pytest.raises(StoreError):
                    await journal.save(after(deployment, *WAY), must=True)
            assert journal.memory.under_way == {"m": deployment}
            assert journal.memory.serving["m"].active == ""

    run(test)


def test_a_way_back_goes_on_unsaved_and_is_written_when_it_can_be(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            await commit(journal, OLD)
            await commit(journal, NEW, OLD)
            undo = undoing(
                model="m",
                version="2",
                digest=NEW,
                to=OLD,
                undo=Undo.OPERATOR,
                utc_ms=9,
                reason="by hand",
            )
            undo = msgspec.structs.replace(undo, id=journal.new_id())
            async with unwritable(tmp_path):
                assert not await journal.save(undo, must=False)
                assert not await journal.save(after(undo, Event.TRAFFIC_BACK), must=False)
                assert journal.memory.serving["m"].active == OLD
                assert NEW in journal.memory.quarantine
                assert not await journal.settle()
            assert await journal.settle()
        async with opened(tmp_path) as journal:
            assert journal.memory.serving["m"].active == OLD
            assert NEW in journal.memory.quarantine

    run(test)


@pytest.mark.parametrize("loss", ["gone", "damaged"])
def test_a_lost_file_is_filled_again_from_the_mirror(tmp_path: Path, loss: str) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            await commit(journal, OLD)
            await commit(journal, NEW, OLD)
            await journal.wish("m", Wish(is_held=True))
            kept = journal.memory
        lose(tmp_path, loss)
        for _ in range(2):
            async with opened(tmp_path) as journal:
                assert journal.memory.serving == kept.serving
                assert journal.memory.offers == kept.offers
                assert journal.memory.wishes == kept.wishes
            (tmp_path / POINTER_NAME).unlink(missing_ok=True)

    run(test)


def test_a_mirror_that_fell_behind_is_written_again_at_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as journal:
            await commit(journal, OLD)
            behind = (tmp_path / POINTER_NAME).read_bytes()
            await commit(journal, NEW, OLD)
        (tmp_path / POINTER_NAME).write_bytes(behind)  # the power went before it was renamed
        async with opened(tmp_path):
            pass
        lose(tmp_path, "gone")
        async with opened(tmp_path) as journal:
            assert journal.memory.serving["m"].active == NEW

    run(test)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"serving": 3}'])
def test_a_mirror_that_can_not_be_read_is_as_none(tmp_path: Path, content: bytes) -> None:
    async def test() -> None:
        (tmp_path / POINTER_NAME).write_bytes(content)
        async with opened(tmp_path) as journal:
            assert journal.memory.serving == {}

    run(test)
