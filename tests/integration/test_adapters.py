"""Adapters of a served model: signed, loaded, named, drained, and there again after a crash."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance import local_versions
from appliance.access.identity import Identity
from appliance.config import Adapter, Limits
from appliance.config import Store as StoreSettings
from appliance.domain import AdapterState
from appliance.errors import (
    AdapterNotLoaded,
    AdapterUnloadable,
    InvalidRequest,
    TooManyAdapters,
)
from appliance.local_versions import LocalVersions
from appliance.runtime.adapters import AdapterFile
from appliance.runtime.router import Job
from appliance.store import Store
from tests.integration.bench import DEMO_MODEL, Bench, Stream, demo_version, running
from tools.gguf_writer import (
    SHAPES,
    Lora,
    Quantisation,
    byte_vocabulary,
    write_llama,
    write_lora,
)

PROMPTS = (
    "Extract the entities as JSON: Lena works for Skyline in Cairo.",
    "List the entities of this sentence as JSON: Diana met a client of Polaris in Boston.",
)
NAMES = ("", "ada", "bob")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two adapters for the demo model, and one for another model."""
    path = tmp_path_factory.mktemp("adapters")
    # Strong enough to change what is drawn, weak enough that no two tokens come near to a tie,
    # which another batch would decide the other way (it moves log-probabilities by some 0.02).
    for seed, name in enumerate(("ada", "bob")):
        write_lora(path / name, DEMO_MODEL, Lora(strength=0.1), seed=seed)
    write_llama(path / "tiny", SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    write_lora(path / "other", path / "tiny")
    return path


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[LocalVersions]:
    store = Store(tmp_path / "state.db", local_versions.MIGRATIONS, StoreSettings())
    identity = Identity.open(tmp_path)
    yield LocalVersions(store, identity, Limits(), store_wait_s=10)
    assert store.close(10)


async def signed(signer: LocalVersions, path: Path, name: str = "") -> AdapterFile:
    settings = Adapter(name=name or path.name, path=str(path))
    return await signer.register_adapter(demo_version(), DEMO_MODEL, settings)


async def load(b: Bench, signer: LocalVersions, *paths: Path) -> None:
    for path in paths:
        await b.router.load_adapter(b.version, await signed(signer, path), is_shelved=False)


def states(b: Bench) -> dict[str, AdapterState]:
    return {s.adapter.name: s.state for s in b.router.models()[0].adapters}


async def jobs(b: Bench) -> list[Job]:
    """Make two jobs for each adapter and for none, which go on for a while."""
    made = []
    for text in PROMPTS:
        job = await b.job(text, ignore_eos=True, max_tokens=60)
        made += [msgspec.structs.replace(job, adapter=name) for name in NAMES]
    return made


async def alone(b: Bench, made: list[Job]) -> list[list[int]]:
    """Read the tokens of each job when nothing else runs."""
    expected = []
    for job in made:
        stream = b.stream(job)
        await b.ended(stream)
        assert stream.error is None
        expected.append(stream.token_ids)
    assert len({tuple(ids) for ids in expected}) == len(expected)
    return expected


def test_streams_of_several_adapters_survive_kills_with_the_tokens_each_would_get_alone(
    signer: LocalVersions, place: Path
) -> None:
    async def run() -> None:
        async with running() as b:
            await load(b, signer, place / "ada", place / "bob")
            made = await jobs(b)
            expected = await alone(b, made)
            streams = [b.stream(job) for job in made]
            for round_index in range(2):
                for stream in streams:
                    await stream.has_tokens(4 + 8 * round_index)
                assert any(not stream.ended for stream in streams)
                os.kill(b.worker_pid, signal.SIGKILL)
                await b.lost(round_index + 1)
            await b.ended(*streams)
            assert [stream.error for stream in streams] == [None] * len(streams)
            assert [stream.token_ids for stream in streams] == expected
            assert states(b) == {"ada": AdapterState.READY, "bob": AdapterState.READY}

    asyncio.run(run())


def test_one_in_use_takes_no_new_requests_and_goes_after_those_it_has(
    signer: LocalVersions, place: Path
) -> None:
    async def run() -> None:
        async with running() as b:
            await load(b, signer, place / "ada", place / "bob")
            job = (await jobs(b))[1]
            (expected,) = await alone(b, [job])
            stream = b.stream(job)
            await stream.has_tokens(3)
            unloading = b.group.create_task(b.router.unload_adapter(b.version, "ada"))
            await asyncio.sleep(0)
            assert states(b) == {"ada": AdapterState.DRAINING, "bob": AdapterState.READY}
            with pytest.raises(
                AdapterNotLoaded, match="'ada' of 'demo@2' is draining; loaded are: bob"
            ):
                b.router.admit(b.version, job)
            await unloading
            assert stream.ended
            assert stream.token_ids == expected
            assert states(b) == {"bob": AdapterState.READY}
            await load(b, signer, place / "ada")
            assert await alone(b, [job]) == [expected]

    asyncio.run(run())


def test_a_file_that_changed_fails_its_requests_at_the_next_start_of_the_worker_and_no_others(
    signer: LocalVersions, place: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        async with running() as b:
            (tmp_path / "ada").write_bytes((place / "ada").read_bytes())
            await load(b, signer, tmp_path / "ada", place / "bob")
            made = (await jobs(b))[:3]
            expected = await alone(b, made)
            streams = [b.stream(job) for job in made]
            for stream in streams:
                await stream.has_tokens(3)
            (tmp_path / "ada").touch()
            os.kill(b.worker_pid, signal.SIGKILL)
            await b.ended(*streams)
            assert isinstance(streams[1].error, AdapterUnloadable)
            assert "has changed since it was signed" in str(streams[1].error)
            assert [streams[0].token_ids, streams[2].token_ids] == [expected[0], expected[2]]
            assert states(b) == {"ada": AdapterState.FAILED, "bob": AdapterState.READY}
            await b.router.unload_adapter(b.version, "ada")
            await load(b, signer, tmp_path / "ada")
            assert await alone(b, [made[1]]) == [expected[1]]

    asyncio.run(run())


def test_what_is_no_adapter_for_the_model_is_refused_and_the_model_answers_on(
    signer: LocalVersions, place: Path, tmp_path: Path
) -> None:
    whole = (place / "ada").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    (tmp_path / "forged").write_bytes(whole[:8] + b"\xff" * 8 + whole[16:])
    (tmp_path / "qwen2").write_bytes(whole.replace(b"llama", b"qwen2"))

    async def run() -> None:
        async with running() as b:
            for path, reason in (
                (tmp_path / "cut", "the file is cut off: 100 bytes"),
                (tmp_path / "forged", "tensors; the limit is"),
                (tmp_path / "qwen2", "is for the architecture 'qwen2'"),
                (place / "other", "for this model it is"),
                (place / "tiny", "its general.type is 'model'"),
                (tmp_path / "gone", "does not exist"),
                (tmp_path, "a directory"),
            ):
                with pytest.raises(AdapterUnloadable, match=reason):
                    await signed(signer, path, "x")
            assert states(b) == {}
            stream: Stream = b.stream(await b.job(PROMPTS[0]))
            await b.ended(stream)
            assert stream.final is not None

    asyncio.run(run())


def test_the_bounds_on_adapters_are_held(signer: LocalVersions, place: Path) -> None:
    async def run() -> None:
        async with running(limits=Limits(adapters=1)) as b:
            await load(b, signer, place / "ada")
            with pytest.raises(TooManyAdapters, match="'demo@2' has 1 adapters"):
                await load(b, signer, place / "bob")
            named = await signed(signer, place / "bob", "demo")
            with pytest.raises(InvalidRequest, match="'demo' is the name of a model"):
                await b.router.load_adapter(b.version, named, is_shelved=False)
            await b.router.unload_adapter(b.version, "ada")
            await load(b, signer, place / "bob")

    asyncio.run(run())
