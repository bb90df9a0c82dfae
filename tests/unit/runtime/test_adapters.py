"""How adapters come, drain and go, and what a worker's end means for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from appliance.domain import AdapterState, AdapterVersion, Digest, Origin
from appliance.errors import (
    AdapterNotLoaded,
    AdapterUnloadable,
    ApplianceError,
    InvalidRequest,
    TooManyAdapters,
)
from appliance.runtime import wire
from appliance.runtime.adapters import AdapterFile, Adapters

T = TypeVar("T")


def file(name: str, *, digest: str = "0", scale: float = 1.0) -> AdapterFile:
    version = AdapterVersion(
        model="m@1",
        name=name,
        digest=Digest(f"sha256:{digest * 64}"),
        blob_bytes=10,
        scale=scale,
        origin=Origin.LOCAL,
        key_id="k",
        signature="s",
    )
    return AdapterFile(path=f"/{name}", version=version, rank=4, file_key=(1, 2, 3, 4))


class Bench:
    """Adapters with a worker that answers when it is told to, and tickets that are counted."""

    def __init__(self, adapters_max: int = 4) -> None:
        self.tickets: dict[str, int] = {}
        self.failed: list[tuple[str, ApplianceError]] = []
        self.sent: list[wire.Frame] = []
        self.adapters = Adapters(
            "m@1",
            adapters_max,
            count_of=lambda key: self.tickets.get(key, 0),
            fail=lambda key, error: self.failed.append((key, error)),
        )
        self.adapters.attach(self.sent.append)

    async def begin(self, awaitable: Awaitable[T]) -> asyncio.Task[T]:
        """Start something and let it come as far as it can."""
        task = asyncio.ensure_future(awaitable)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    async def load(self, adapter: AdapterFile) -> None:
        task = await self.begin(self.adapters.load(adapter, is_shelved=False, utc_ms=5))
        self.adapters.take(wire.AdapterLoaded(key=adapter.version.key, blocked_ms=7.0))
        await task

    def restoring(self) -> bool:
        return self.adapters.is_restoring

    def states(self) -> dict[str, AdapterState]:
        return {s.adapter.name: s.state for s in self.adapters.statuses()}


def run(test: Callable[[Bench], Awaitable[None]], **options: int) -> None:
    async def main() -> None:
        await test(Bench(**options))

    asyncio.run(main())


def test_an_adapter_may_be_named_once_the_worker_has_it() -> None:
    async def test(b: Bench) -> None:
        ada = file("ada")
        task = await b.begin(b.adapters.load(ada, is_shelved=True, utc_ms=5))
        assert b.sent == [
            wire.LoadAdapter(key=ada.version.key, path="/ada", scale=1.0, file_key=(1, 2, 3, 4))
        ]
        with pytest.raises(AdapterNotLoaded, match="'ada' of 'm@1' is loading; loaded are: none"):
            b.adapters.key_of("ada")
        b.adapters.take(wire.AdapterLoaded(key=ada.version.key, blocked_ms=7.0))
        status = await task
        assert (status.state, status.load_ms, status.rank) == (AdapterState.READY, 7.0, 4)
        assert status.is_shelved
        assert b.adapters.key_of("ada") == ada.version.key
        assert b.adapters.key_of("") == ""
        with pytest.raises(AdapterNotLoaded, match="'bob' of 'm@1' is not loaded; loaded are: ada"):
            b.adapters.key_of("bob")

    run(test)


def test_loading_what_is_there_changes_nothing_and_another_file_of_that_name_is_refused() -> None:
    async def test(b: Bench) -> None:
        await b.load(file("ada"))
        await b.adapters.load(file("ada"), is_shelved=False, utc_ms=9)
        assert len(b.sent) == 1
        for other in (file("ada", digest="1"), file("ada", scale=0.5)):
            with pytest.raises(InvalidRequest, match="'ada' is ready; unload it first"):
                await b.adapters.load(other, is_shelved=False, utc_ms=9)

    run(test)


def test_one_more_than_are_allowed_is_refused() -> None:
    async def test(b: Bench) -> None:
        await b.load(file("ada"))
        with pytest.raises(TooManyAdapters, match="'m@1' has 1 adapters"):
            await b.adapters.load(file("bob"), is_shelved=False, utc_ms=9)

    run(test, adapters_max=1)


def test_one_that_the_worker_refuses_is_gone() -> None:
    async def test(b: Bench) -> None:
        ada = file("ada")
        task = await b.begin(b.adapters.load(ada, is_shelved=False, utc_ms=5))
        b.adapters.take(wire.AdapterFailed(key=ada.version.key, reason="no"))
        with pytest.raises(AdapterUnloadable, match="/ada: no"):
            await task
        assert b.states() == {}
        await b.load(ada)

    run(test)


def test_one_in_use_drains_before_it_goes() -> None:
    async def test(b: Bench) -> None:
        ada = file("ada")
        await b.load(ada)
        b.tickets[ada.version.key] = 2
        task = await b.begin(b.adapters.unload("ada"))
        assert b.states() == {"ada": AdapterState.DRAINING}
        with pytest.raises(AdapterNotLoaded, match="'ada' of 'm@1' is draining"):
            b.adapters.key_of("ada")
        b.adapters.settle()
        assert not task.done()
        b.tickets.clear()
        b.adapters.settle()
        await task
        assert b.sent[1:] == [wire.UnloadAdapter(key=ada.version.key)]
        assert b.states() == {}
        with pytest.raises(AdapterNotLoaded, match="not loaded"):
            await b.adapters.unload("ada")

    run(test)


def test_one_that_is_unloaded_while_it_loads_goes_when_it_is_there() -> None:
    async def test(b: Bench) -> None:
        ada = file("ada")
        loading = await b.begin(b.adapters.load(ada, is_shelved=False, utc_ms=5))
        unloading = await b.begin(b.adapters.unload("ada"))
        assert not unloading.done()
        b.adapters.take(wire.AdapterLoaded(key=ada.version.key, blocked_ms=7.0))
        await unloading
        with pytest.raises(AdapterNotLoaded):
            await loading
        assert b.sent[1:] == [wire.UnloadAdapter(key=ada.version.key)]

    run(test)


def test_a_new_worker_loads_what_there_was_also_what_drains() -> None:
    async def test(b: Bench) -> None:
        ada, bob = file("ada"), file("bob")
        await b.load(ada)
        await b.load(bob)
        b.tickets[bob.version.key] = 1
        unloading = await b.begin(b.adapters.unload("bob"))
        b.adapters.detach()
        b.adapters.judge("sigkill")
        b.sent.clear()
        b.adapters.attach(b.sent.append)
        assert [frame.key for frame in b.sent if isinstance(frame, wire.LoadAdapter)] == [
            ada.version.key,
            bob.version.key,
        ]
        assert b.restoring()
        b.adapters.take(wire.AdapterLoaded(key=ada.version.key, blocked_ms=1.0))
        assert b.restoring()
        b.adapters.take(wire.AdapterLoaded(key=bob.version.key, blocked_ms=1.0))
        assert not b.restoring()
        assert b.states() == {"ada": AdapterState.READY, "bob": AdapterState.DRAINING}
        b.tickets.clear()
        b.adapters.settle()
        await unloading

    run(test)


def test_one_that_ends_the_worker_while_it_is_loaded_first_is_not_tried_again() -> None:
    async def test(b: Bench) -> None:
        task = await b.begin(b.adapters.load(file("ada"), is_shelved=False, utc_ms=5))
        b.adapters.detach()
        b.adapters.judge("sigabrt")
        with pytest.raises(AdapterUnloadable, match=r"process ended \(sigabrt\) while it loaded"):
            await task
        b.sent.clear()
        b.adapters.attach(b.sent.append)
        assert not b.sent

    run(test)


def test_one_that_is_asked_for_while_there_is_no_worker_is_loaded_by_the_next() -> None:
    async def test(b: Bench) -> None:
        b.adapters.detach()
        b.sent.clear()
        task = await b.begin(b.adapters.load(file("ada"), is_shelved=False, utc_ms=5))
        b.adapters.judge("sigkill")
        assert b.sent == []
        b.adapters.attach(b.sent.append)
        assert not b.restoring()
        b.adapters.take(wire.AdapterLoaded(key=file("ada").version.key, blocked_ms=1.0))
        await task

    run(test)


def test_one_that_can_not_be_loaded_again_fails_with_its_requests() -> None:
    async def test(b: Bench) -> None:
        ada = file("ada")
        await b.load(ada)
        b.adapters.detach()
        b.adapters.judge("sigkill")
        b.adapters.attach(b.sent.append)
        b.adapters.take(wire.AdapterFailed(key=ada.version.key, reason="it changed"))
        assert not b.restoring()
        assert b.states() == {"ada": AdapterState.FAILED}
        ((key, error),) = b.failed
        assert key == ada.version.key
        assert isinstance(error, AdapterUnloadable)
        with pytest.raises(AdapterNotLoaded, match="is failed"):
            b.adapters.key_of("ada")
        with pytest.raises(InvalidRequest, match="unload it first"):
            await b.adapters.load(ada, is_shelved=False, utc_ms=9)
        await b.adapters.unload("ada")
        await b.load(ada)

    run(test)


def test_one_that_ends_two_workers_while_it_is_loaded_again_fails() -> None:
    async def test(b: Bench) -> None:
        ada = file("ada")
        await b.load(ada)
        for state in (AdapterState.READY, AdapterState.READY, AdapterState.FAILED):
            b.adapters.detach()
            b.adapters.judge("sigsegv")
            assert b.states() == {"ada": state}
            b.adapters.attach(b.sent.append)
        assert not b.restoring()

    run(test)


def test_when_the_model_goes_nobody_waits_for_an_adapter_any_more() -> None:
    async def test(b: Bench) -> None:
        await b.load(file("ada"))
        b.tickets[file("ada").version.key] = 1
        unloading = await b.begin(b.adapters.unload("ada"))
        loading = await b.begin(b.adapters.load(file("bob"), is_shelved=False, utc_ms=5))
        b.adapters.fail_all("stopped")
        await unloading
        with pytest.raises(AdapterUnloadable):
            await loading
        assert b.states() == {}

    run(test)
