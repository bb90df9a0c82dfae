"""What our hub signs, our appliance believes: both ends real, HTTP and a directory between."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from appliance.clock import utc_ms
from appliance.config import Refresh
from appliance.config import Store as StoreSettings
from appliance.contract import names
from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.document import SCHEMA, encode
from appliance.store import Store
from appliance.sync.bundle import import_bundle
from appliance.sync.fetcher import HttpMetadata
from appliance.sync.remembered import MIGRATIONS, Remembered
from appliance.sync.trust import Trust, Trusted
from tests.integration.trust_box import labels
from tests.unit.hub.published import Hub, keys_of, served

WAIT_S = 20.0


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """Found a hub with one publisher, whose version 1 the shops should run."""
    made = Hub(tmp_path / "hub" / "repository")
    made.found()
    publish(made, made.add_publisher("acme", "demo"), "1", 1)
    return made


def publish(hub: Hub, role: str, version: str, sequence: int) -> None:
    path, data = hub.release("demo", version, sequence)
    hub.publish(role, "demo", version, sequence)
    assert path == names.release_path("demo", version)
    assigned = Assigned(model="demo", version=version, release_sha256=sha256(data).hexdigest())
    assignment = Assignment(
        schema=SCHEMA,
        cohort="shops",
        sequence=sequence,
        issued_utc_ms=hub.now,
        models=(assigned,),
    )
    documents = {names.assignment_path("shops"): encode(assignment)}
    hub.repository.put(names.DIRECTOR_ROLE, documents, now_utc_ms=hub.now)
    hub.sign(names.DIRECTOR_ROLE)
    hub.settle()


@pytest.fixture
def remembered(tmp_path: Path) -> Iterator[Remembered]:
    store = Store(tmp_path / "state.db", MIGRATIONS, StoreSettings())
    assert store.wait_open() == ""
    yield Remembered(store, store_wait_s=WAIT_S)
    assert store.close(WAIT_S)


@pytest.fixture
def trust(tmp_path: Path, hub: Hub, remembered: Remembered) -> Trust:
    root = hub.repository.roots()[0]
    return Trust(tmp_path / "tuf", root, remembered, clock=utc_ms, built_utc_ms=0)


def refresh(trust: Trust, address: str) -> Trusted:
    return trust.refresh(HttpMetadata(address, Refresh(), tls=None), "shops")


def rotate(hub: Hub, role: str) -> None:
    hub.signers[role] = [CryptoSigner.generate_ed25519()]
    hub.repository.set_keys(role, keys_of(*hub.signers[role]), now_utc_ms=hub.now)
    for pending in {one.role for one in hub.repository.pending()}:
        hub.sign(pending)
    hub.settle()


def test_a_release_comes_over_http_and_the_next_one_from_a_directory(
    hub: Hub, trust: Trust
) -> None:
    with served(hub.directory) as address:
        assert labels(refresh(trust, address)) == ["demo@1"]
        publish(hub, "publisher-acme", "2", 2)
        assert labels(refresh(trust, address)) == ["demo@2"]
    publish(hub, "publisher-acme", "3", 3)
    _, trusted = import_bundle(hub.directory, trust, "shops", (), ())
    assert labels(trusted) == ["demo@3"]


def test_new_keys_of_every_role_are_followed(hub: Hub, trust: Trust) -> None:
    with served(hub.directory) as address:
        assert labels(refresh(trust, address)) == ["demo@1"]
        for role in ("timestamp", "snapshot", "targets", "publisher-acme", "director"):
            rotate(hub, role)
            assert labels(refresh(trust, address)) == ["demo@1"], role


def test_a_publisher_who_is_dropped_is_believed_no_more(
    hub: Hub, trust: Trust, remembered: Remembered
) -> None:
    with served(hub.directory) as address:
        known = refresh(trust, address)
        assert labels(known) == ["demo@1"]
        hub.repository.drop_publisher("acme", now_utc_ms=hub.now)
        hub.sign("targets")
        hub.settle()
        trusted = refresh(trust, address)
        assert labels(trusted) == []
        assert "no publisher" in str(trusted.agreement.refusals[0].error)
        assert remembered.latest_release("demo", "1") is None
        assert remembered.release(known.agreement.genuine[0].release_sha256) is not None
        hub.add_publisher("acme", "demo")
        publish(hub, "publisher-acme", "2", 2)
        assert labels(refresh(trust, address)) == ["demo@2"]


def test_what_is_signed_again_before_it_expires_is_taken(hub: Hub, trust: Trust) -> None:
    with served(hub.directory) as address:
        before = refresh(trust, address).freshness.expires_utc_ms
        later = hub.now + 5 * 86_400_000
        assert hub.repository.refresh(hub.online, now_utc_ms=later).versions
        assert refresh(trust, address).freshness.expires_utc_ms > before
