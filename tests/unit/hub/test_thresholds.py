"""Whatever m of n a role needs, and whoever follows: a reader believes exactly what is signed."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Signer

from appliance.errors import PublishRefused
from tests.unit.hub.published import Hub, Reader, keys_of, served


@st.composite
def holders(draw: st.DrawFn) -> tuple[int, int]:
    count = draw(st.integers(1, 4))
    return draw(st.integers(1, count)), count


def fresh(count: int) -> list[Signer]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


@settings(max_examples=12, deadline=None)
@given(
    role=st.sampled_from(["root", "targets"]),
    chain=st.lists(holders(), min_size=1, max_size=4),
    seed=st.randoms(use_true_random=False),
)
def test_a_role_changes_hands_any_number_of_times(
    role: str, chain: list[tuple[int, int]], seed: random.Random
) -> None:
    directory = Path(tempfile.mkdtemp())
    try:
        hub = Hub(directory / "repository")
        hub.found()
        root = hub.repository.roots()[0]
        threshold = 1
        for version, (needed, count) in enumerate(chain, start=2):
            old, new = hub.signers[role], fresh(count)
            hub.repository.set_keys(role, keys_of(*new, threshold=needed), now_utc_ms=hub.now)
            if role == "targets":
                hub.sign("root")
            signing_old = seed.sample(old, threshold) if role == "root" else []
            signing_new = seed.sample(new, needed)
            if needed > 1 or (role == "root" and threshold > 0):
                short = [*signing_old, *signing_new[1:]]
                if short:
                    hub.repository.sign(role, short)
                assert hub.settle() == {}
            hub.repository.sign(role, [*signing_old, *signing_new])
            assert hub.settle()["root"] == version
            hub.signers[role], threshold = new, needed
        with served(hub.directory) as address:
            updater = Reader(directory / "reader", address, root).updater()
            assert updater.get_targetinfo("models/demo/1/release.json") is None
        assert len(hub.repository.roots()) == len(chain) + 1
    finally:
        shutil.rmtree(directory)


def test_a_root_that_needs_both_kinds_of_keys(tmp_path: Path) -> None:
    """Ed25519 and ML-DSA-65 together: neither a broken curve nor a broken lattice is enough."""
    kinds: list[Signer] = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
    hub = Hub(tmp_path / "repository", signers={"root": kinds})
    hub.found(root=2)
    with served(hub.directory) as address:
        Reader(tmp_path / "reader", address, hub.repository.roots()[0]).updater()
        hub.repository.redraft("root", now_utc_ms=hub.now)
        hub.repository.sign("root", kinds[:1])
        assert hub.settle() == {}
        hub.repository.sign("root", kinds[1:])
        assert hub.settle()["root"] == 2
        Reader(tmp_path / "reader", address, hub.repository.roots()[0]).updater()


def test_a_threshold_that_can_not_be_reached_is_refused(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "repository")
    hub.found()
    one = CryptoSigner.generate_ed25519()
    for keys, reason in (
        (keys_of(one, threshold=2), "a threshold of 2 can't be reached with 1 keys"),
        (keys_of(one, threshold=0), "a threshold of 0"),
        (keys_of(one, one), "given twice"),
    ):
        with pytest.raises(PublishRefused, match=reason):
            hub.repository.set_keys("root", keys, now_utc_ms=hub.now)
    with pytest.raises(PublishRefused, match="there is a repository already"):
        hub.found()
