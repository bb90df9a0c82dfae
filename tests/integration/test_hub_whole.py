"""The whole way: a repository with real keys, the hub's process, an appliance's trust and blobs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.access.device import DeviceIdentity
from appliance.clock import utc_ms
from appliance.config import Downloads, Refresh
from appliance.config import Store as StoreSettings
from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.document import SCHEMA, encode
from appliance.contract.names import DIRECTOR_ROLE, assignment_path, blob_path
from appliance.errors import HubUnreachable, Untrusted
from appliance.hub import key_files
from appliance.hub.online import KEYS_DIRECTORY
from appliance.store import Store
from appliance.sync.blobs import BlobStore
from appliance.sync.download import Fetcher
from appliance.sync.fetcher import HttpMetadata
from appliance.sync.http_blobs import HttpBlobs
from appliance.sync.remembered import MIGRATIONS, Remembered
from appliance.sync.throttle import Throttle
from appliance.sync.trust import Trust, Trusted
from tests.integration.daemons import RunningDaemon, RunningProgram
from tests.integration.hubs import TIMEOUT_S, RunningHub
from tests.unit.hub.published import DAY, ONLINE, Hub
from tests.unit.sync.hostile import CHUNK, a_file

DAYS_OLD = 5  # a timestamp holds for seven days and is signed again after half of them


@pytest.fixture
def published(tmp_path: Path) -> Hub:
    """Found a repository some days ago in the hub's directory, its online keys beside it."""
    state_dir = tmp_path / "hub"
    keys = state_dir / KEYS_DIRECTORY
    key_files.make(keys, "online", algorithm="ed25519", passphrase="")
    signer = key_files.open_signer(keys / "online.key")
    hub = Hub(
        state_dir / "repository",
        now=utc_ms() - DAYS_OLD * DAY,
        signers={role: [signer] for role in ONLINE},
    )
    hub.found()
    role = hub.add_publisher("acme", "demo")
    path = hub.publish(role, "demo", "2")
    digest = hub.repository.documents(role)[path][0]
    assigned = Assigned(model="demo", version="2", release_sha256=digest)
    assignment = Assignment(
        schema=SCHEMA, cohort="lab", sequence=1, issued_utc_ms=hub.now, models=(assigned,)
    )
    where = assignment_path("lab")
    hub.repository.put(DIRECTOR_ROLE, {where: encode(assignment)}, now_utc_ms=hub.now)
    hub.sign(DIRECTOR_ROLE)
    hub.settle()
    return hub


@contextlib.contextmanager
def trusting(place: Path, bootstrap: bytes) -> Iterator[Trust]:
    place.mkdir()
    store = Store(place / "state.db", MIGRATIONS, StoreSettings())
    try:
        assert store.wait_open() == ""
        remembered = Remembered(store, store_wait_s=TIMEOUT_S)
        yield Trust(place / "tuf", bootstrap, remembered, clock=utc_ms, built_utc_ms=0)
    finally:
        assert store.close(TIMEOUT_S)


def refreshed(trust: Trust, identity: DeviceIdentity) -> Trusted:
    source = HttpMetadata(identity.hub.url, Refresh(), tls=identity.tls)
    return trust.refresh(source, identity.hub.cohort)


def test_an_appliance_learns_over_mtls_what_its_cohort_should_run(
    published: Hub, tmp_path: Path
) -> None:
    box = tmp_path / "box"
    with RunningHub(tmp_path) as hub, trusting(box, published.repository.roots()[0]) as trust:
        identity = hub.enrolled(box)
        trusted = refreshed(trust, identity)
        assert [one.release.label for one in trusted.agreement.genuine] == ["demo@2"]
        hub.run("device", "revoke", "box")
        with pytest.raises((HubUnreachable, Untrusted)):
            refreshed(trust, identity)


def test_the_hub_signs_again_what_is_half_over_and_says_so_to_everybody(
    published: Hub, tmp_path: Path
) -> None:
    before = published.repository.versions()
    with RunningHub(tmp_path, resign_check_s=0.1) as hub:
        said = hub.logged("signed_again")
        version = before["timestamp"] + 1
        assert f"timestamp {version}" in said["what"]
        news = hub.waited(
            lambda lines: [
                line
                for line in lines
                if line["event"] == "published" and line["timestamp_version"] == version
            ]
        )
        assert news
        assert published.repository.due(utc_ms()) == ()
    assert published.repository.versions()["targets"] == before["targets"]


def test_a_hub_without_its_online_keys_serves_and_says_what_is_missing(
    published: Hub, tmp_path: Path
) -> None:
    for path in (tmp_path / "hub" / KEYS_DIRECTORY).iterdir():
        path.unlink()
    box = tmp_path / "box"
    with RunningHub(tmp_path) as hub, trusting(box, published.repository.roots()[0]) as trust:
        assert hub.logged("signing_failed")["reason"]
        assert refreshed(trust, hub.enrolled(box)).agreement.genuine


def _imported(program: RunningProgram, event: str) -> list[str]:
    """List what a running process has imported until it logged `event`."""
    program.logged(event)
    lines = program.waited(lambda lines: [line for line in lines if line["event"] == "text"])
    return [
        str(line["line"]).rpartition("|")[2].strip()
        for line in lines
        if str(line["line"]).startswith("import time:")
    ]


def test_the_hub_that_listens_holds_nothing_that_publishes_and_a_daemon_no_hub(
    tmp_path: Path,
) -> None:
    watched = {"PYTHONPROFILEIMPORTTIME": "1"}
    with RunningHub(tmp_path, env=watched) as hub:
        found = _imported(hub, "listening")
    assert "appliance.hub.server" in found
    bad = ("appliance.hub.publish", "appliance.runtime", "appliance.sync", "llama_cpp")
    assert [name for name in found if name.startswith(bad)] == []
    with RunningDaemon(tmp_path / "box", **watched) as daemon:
        found = _imported(daemon, "ready")
    assert "appliance.api.grpc_server" in found
    assert [name for name in found if f"{name}.".startswith("appliance.hub.")] == []


def test_an_enrolled_daemon_dials_its_hub_and_serves_without_it(tmp_path: Path) -> None:
    with RunningHub(tmp_path) as hub:
        hub.enrolled(tmp_path / "box" / "state", device="till")
        with RunningDaemon(tmp_path / "box").ready() as daemon:
            assert hub.logged("session_begun")["device"] == "till"
            daemon.logged("hub_link_up")
            hub.publish(2)
            daemon.waited(
                lambda lines: [line for line in lines if line.get("timestamp_version") == 2]
            )
            assert hub.stop() == 0
            daemon.logged("hub_link_down")
            daemon.process.terminate()
            assert daemon.wait() == 0


def test_blobs_are_fetched_by_chunk_over_mtls(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(40 * CHUNK + 3)
    wanted, files = a_file(data)
    with RunningHub(tmp_path) as hub:
        identity = hub.enrolled(tmp_path / "box")
        for path, content in files.items():
            hub.put(path.lstrip("/"), content)

        async def fetched() -> bytes:
            store = BlobStore(tmp_path / "box")
            source = HttpBlobs("hub", identity.hub.url, Downloads(), tls=identity.tls)
            fetcher = Fetcher(store, [source], Downloads(), Throttle(lambda: None))
            try:
                await fetcher.fetch_now([wanted])
                return store.path_of(wanted.blob.sha256).read_bytes()
            finally:
                await fetcher.close()

        assert asyncio.run(fetched()) == data
    assert (tmp_path / "hub" / "repository" / blob_path(wanted.blob.sha256)).read_bytes() == data
