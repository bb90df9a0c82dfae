"""A genuine signature on a hostile file: refused before a parser sees it, and nobody notices."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from appliance.api.proto import deployment_pb2 as pb
from appliance.clock import utc_ms
from appliance.contract import chunk_map
from appliance.contract.release import BlobRef, Strategy
from appliance.gguf import read_head
from appliance.hub import chunks, key_files
from appliance.hub import publish as publishing
from appliance.hub.publish import Intent
from appliance.hub.signing import Repository
from tests.integration.daemons import RunningDaemon
from tests.integration.fleet import (
    COHORT,
    DEMO_1,
    MODEL,
    STRAIGHT,
    Desk,
    Fleet,
    Load,
    state_of,
    steps,
)
from tests.integration.hubs import until
from tests.unit.gguf.test_whole import NORM, Damage, at_tensor
from tests.unit.hub.published import served
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

ENDLESS = "{% set r = range(99999) %}" + "{% for _ in r %}" * 4 + "{% endfor %}" * 4
WORDY = "{% for _ in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"
BREAKING_OUT = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


def counts(content: bytearray) -> None:
    content[8:16] = (2**40).to_bytes(8, "little")


HOSTILE: dict[str, tuple[str, Damage | None, str]] = {
    "forged-counts": ("", counts, "1099511627776"),
    "overlapping": ("", at_tensor(NORM, 16, "<Q", 0), "within the tensor before"),
    "out-of-file": ("", at_tensor(NORM, 16, "<Q", 2**40), "what is before it ends at"),
    "endless": (ENDLESS, None, "does not end"),
    "wordy": (WORDY, None, "larger than"),
    "breaking-out": (BREAKING_OUT, None, "refuses it"),
    "no-template": ("{% for", None, "can't be used"),
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    fleet = Fleet(tmp_path_factory.mktemp("hostile"))
    fleet.publish("1", DEMO_1, STRAIGHT)
    fleet.trust()
    return fleet


@pytest.fixture(scope="module")
def daemon(fleet: Fleet) -> Iterator[RunningDaemon]:
    with served(fleet.repository) as url:
        settings = {
            "versions.cohort": COHORT,
            "versions.mirrors": f'["{url}"]',
            "limits.text_process_timeout_s": 1,
        }
        with fleet.daemon(**settings) as daemon:
            daemon.ready()
            until(lambda: Desk(daemon).active() == "1")
            yield daemon


def sign_hostile(fleet: Fleet, version: str, template: str, damage: Damage | None) -> None:
    """Sign a file as its publisher would who means harm: with no check, but the right digests."""
    whole = fleet.place / f"whole-{version}.gguf"
    harmful = fleet.place / f"harmful-{version}.gguf"
    shape, vocabulary = SHAPES["tiny"], byte_vocabulary()
    write_llama(whole, shape, vocabulary, Quantisation.Q8_0, chat_template=template or "{{ 1 }}")
    content = bytearray(whole.read_bytes())
    if damage is not None:
        damage(content)
    harmful.write_bytes(content)
    repository, now = Repository(fleet.repository), utc_ms()
    strategy = msgspec.convert(STRAIGHT, Strategy)
    intent = Intent(model=MODEL, version=version, weights=(whole,), strategy=strategy)
    prepared = publishing.prepare(repository, intent, now_utc_ms=now)
    found = chunks.build(harmful, read_head(whole))
    data = chunk_map.encode(found)
    file = msgspec.structs.replace(
        prepared.release.files[0],
        blob=BlobRef(sha256=found.sha256, length=found.length),
        chunk_map=BlobRef(sha256=publishing._digest(data), length=len(data)),  # noqa: SLF001
    )
    source = msgspec.structs.replace(prepared.sources[0], path=harmful, file=file, chunk_map=data)
    release = msgspec.structs.replace(prepared.release, files=(file,))
    prepared = msgspec.structs.replace(prepared, release=release, sources=(source,))
    signer = key_files.open_signer(fleet.keys / "acme.key")
    publishing.publish(repository, prepared, [signer], now_utc_ms=now)
    fleet.hub_run("sign")
    fleet.assign(version)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_signed_file_that_would_do_harm_is_refused_unseen(
    fleet: Fleet, daemon: RunningDaemon, name: str
) -> None:
    template, damage, reason = HOSTILE[name]
    desk = Desk(daemon)
    workers = {child.pid for child in daemon.children()}
    sign_hostile(fleet, name, template, damage)

    async def sync(stub: Desk.Stub) -> pb.SyncNowResponse:
        return await stub.SyncNow(pb.SyncNowRequest())

    def ended() -> list[pb.Deployment]:
        return [one for one in desk.deployments() if one.version == name and one.cause]

    with Load(daemon, users=1) as load:
        assert desk.call(sync).sync.fault == ""
        until(lambda: bool(ended()))
    (deployment,) = ended()
    assert (state_of(deployment), deployment.cause) == ("ABORTED", "blob_refused")
    assert reason in deployment.reason
    assert steps(daemon.lines, name) == ["fetching", "aborted"]
    assert load.failures == []
    assert set(load.versions) == {f"{MODEL}@1"}
    until(lambda: desk.model().refusal.code == "quarantined")
    until(lambda: {child.pid for child in daemon.children()} == workers)
