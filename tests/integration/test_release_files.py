"""What a release carries beside its weights is loaded with it, checked, and used."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest

from appliance import gguf
from appliance.contract.release import Facts, HealthPack
from appliance.domain import Digest, HostedAdapter, Loaded, StandbyLevel
from appliance.errors import AdapterNotLoaded, ModelUnloadable
from appliance.sync.health import gate
from tests.integration.bench import DEMO_MODEL
from tests.integration.hosts import Hosted, hosted, hosting
from tests.integration.trial import NEW, OLD, Trial, edition
from tools.gguf_writer import SHAPES, Lora, Quantisation, byte_vocabulary, write_llama, write_lora

THIRD = edition(3)


def adapter(path: Path) -> HostedAdapter:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return HostedAdapter(path=str(path), digest=Digest(f"sha256:{digest}"))


async def answer(t: Trial, name: str) -> list[int]:
    asked = t.ask(tokens=12, adapter=name)
    await asked.done()
    if asked.error is not None:
        raise asked.error
    assert asked.versions == [f"{THIRD.label}:{name}" if name else THIRD.label]
    return asked.token_ids


def test_adapters_come_with_their_version_as_candidate_active_and_standby(tmp_path: Path) -> None:
    write_lora(tmp_path / "ada.gguf", DEMO_MODEL, Lora(strength=0.5))

    async def seen(t: Trial, h: Hosted) -> list[int]:
        await h.host.switch("demo", THIRD.digest, OLD.digest)
        own, plain = await answer(t, "ada"), await answer(t, "")
        assert own != plain
        return own

    async def run() -> None:
        async with hosting(tmp_path) as (t, h):
            third = hosted(3, adapters={"ada": adapter(tmp_path / "ada.gguf")})
            assert isinstance(await h.host.load(third, None), Loaded)
            asked = t.ask(model=THIRD.label, adapter="ada", tokens=4)  # nobody is sent there yet
            await asked.done()
            assert asked.error is None
            asked = t.ask(adapter="ada", tokens=4)
            await asked.done()
            assert isinstance(asked.error, AdapterNotLoaded)  # the active one has none
            first = await seen(t, h)
            await h.host.switch("demo", OLD.digest, THIRD.digest)
            h.room = msgspec.structs.replace(h.room, available_bytes=0)
            while h.standby.level is not StandbyLevel.DISK:
                await h.standbys.look()
            assert await seen(t, h) == first  # loaded again, from what the standby keeps

    asyncio.run(run())


def test_a_version_whose_adapter_does_not_load_is_refused_whole(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny", SHAPES["tiny"], byte_vocabulary(), Quantisation.Q8_0)
    write_lora(tmp_path / "other", tmp_path / "tiny")
    write_lora(tmp_path / "cut", DEMO_MODEL)
    cut = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(cut[: len(cut) // 2])

    async def run() -> None:
        async with hosting(tmp_path) as (t, h):
            for name, reason in (("other", "for this model it is"), ("cut", "cut off")):
                broken = hosted(3, adapters={name: adapter(tmp_path / name)})
                with pytest.raises(ModelUnloadable, match=f"its adapter {name}: .*{reason}"):
                    await h.host.load(broken, None)
            many = {f"a{n}": adapter(tmp_path / "cut") for n in range(65)}
            with pytest.raises(ModelUnloadable, match=r"limits\.adapters"):
                await h.host.load(hosted(3, adapters=many), None)
            assert [status.version for status in t.router.models()] == [OLD, NEW]

    asyncio.run(run())


def test_the_tokeniser_of_what_was_loaded_is_held_against_what_was_signed(tmp_path: Path) -> None:
    async def run() -> None:
        async with hosting(tmp_path) as (_, h):
            loaded = await h.host.load(hosted(3), None)
            assert isinstance(loaded, Loaded)
            own = gguf.tokenizer_digest(DEMO_MODEL, gguf.read_head(DEMO_MODEL))
            assert gate(HealthPack(), facts(own), loaded, (), ()).ok
            refused = gate(HealthPack(), facts("b" * 64), loaded, (), ())
            assert (refused.ok, "tokeniser" in refused.reason) == (False, True)

    asyncio.run(run())


def facts(tokenizer_sha256: str) -> Facts:
    return Facts(
        architecture="llama",
        parameters_count=1,
        quantisation="Q8_0",
        context_train_tokens=1,
        tokenizer_sha256=tokenizer_sha256,
    )
