"""The hub's CA: what it certifies, and for whom it renews."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from appliance.access import device as devices
from appliance.access.device import DeviceIdentity
from appliance.contract.enrolment import DeviceName, Enrolled, RenewRequest
from appliance.errors import ConfigError, EnrolmentRefused
from appliance.hub.authority import CA_FILE, CA_KEY_FILE, Authority, read_request
from appliance.hub.server_certificate import ServerCertificate

DAY_MS = 86_400_000
NOW = 1_800_000_000_000
NAME = DeviceName(device="box", generation=3)


def enrolled(authority: Authority, state_dir: Path, life_ms: int = 90 * DAY_MS) -> DeviceIdentity:
    directory = devices.device_directory(state_dir)
    request = read_request(devices.request(directory, "box"))
    pem, ends_utc_ms = authority.issue_device(request, NAME, NOW, life_ms)
    assert ends_utc_ms == NOW + life_ms
    answer = Enrolled(device="box", cohort="lab", certificate_pem=pem)
    devices.adopt(directory, "https://hub:1", answer, authority.certificate_pem)
    found = DeviceIdentity.load(state_dir)
    assert found is not None
    return found


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ca").mkdir()
    return Authority.open(tmp_path / "ca", NOW)


def test_the_ca_is_the_same_when_it_is_opened_again(tmp_path: Path, authority: Authority) -> None:
    again = Authority.open(tmp_path / "ca", NOW + DAY_MS)
    assert again.fingerprint == authority.fingerprint
    assert devices.pinned(authority.certificate_pem.encode(), again.fingerprint)
    with pytest.raises(EnrolmentRefused, match="not the one"):
        devices.pinned(authority.certificate_pem.encode(), "0" * 64)
    with pytest.raises(EnrolmentRefused, match="not a certificate"):
        devices.pinned(b"junk", "0" * 64)


def test_a_ca_key_that_others_may_read_is_refused(tmp_path: Path, authority: Authority) -> None:
    assert authority.fingerprint
    (tmp_path / "ca" / CA_KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="consider it stolen"):
        Authority.open(tmp_path / "ca", NOW)


@pytest.mark.parametrize("name", [CA_KEY_FILE, CA_FILE])
def test_a_damaged_ca_is_refused_by_name(tmp_path: Path, authority: Authority, name: str) -> None:
    assert authority.fingerprint
    (tmp_path / "ca" / name).write_bytes(b"junk")
    with pytest.raises(ConfigError, match=name):
        Authority.open(tmp_path / "ca", NOW)


def test_a_device_renews_until_the_grace_is_over(tmp_path: Path, authority: Authority) -> None:
    asked = enrolled(authority, tmp_path).renewal()
    end = NOW + 90 * DAY_MS
    for now in (NOW, end - 1, end + 10 * DAY_MS):
        assert authority.renewing(asked, now, 10 * DAY_MS) == NAME
    with pytest.raises(EnrolmentRefused, match="enrol again"):
        authority.renewing(asked, end + 10 * DAY_MS + 1, 10 * DAY_MS)


def test_a_renewal_needs_the_old_key_and_our_certificate(
    tmp_path: Path, authority: Authority
) -> None:
    mine = enrolled(authority, tmp_path / "mine").renewal()
    other = enrolled(authority, tmp_path / "other").renewal()
    (tmp_path / "ca2").mkdir()
    foreign = enrolled(Authority.open(tmp_path / "ca2", NOW), tmp_path / "foreign").renewal()

    def mixed(certificate: RenewRequest, csr: RenewRequest, signature: str) -> RenewRequest:
        return RenewRequest(
            certificate_pem=certificate.certificate_pem, csr_pem=csr.csr_pem, signature=signature
        )

    for asked, reason in (
        (mixed(mine, mine, other.signature), "did not sign"),
        (mixed(mine, other, mine.signature), "did not sign"),
        (mixed(mine, mine, "!"), "did not sign"),
        (mixed(other, mine, mine.signature), "did not sign"),
        (foreign, "not of this hub"),
        (
            RenewRequest(certificate_pem="junk", csr_pem=mine.csr_pem, signature=mine.signature),
            "not of this hub",
        ),
        (
            RenewRequest(
                certificate_pem=authority.certificate_pem,
                csr_pem=mine.csr_pem,
                signature=mine.signature,
            ),
            "not of this hub",
        ),
    ):
        with pytest.raises(EnrolmentRefused, match=reason):
            authority.renewing(asked, NOW, DAY_MS)


@pytest.mark.parametrize("csr", ["", "junk", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_what_is_no_request_is_refused(csr: str) -> None:
    with pytest.raises(EnrolmentRefused, match="can't be read"):
        read_request(csr)


def test_a_certificate_for_another_key_is_not_kept(tmp_path: Path, authority: Authority) -> None:
    one, two = (devices.device_directory(tmp_path / name) for name in ("one", "two"))
    request = read_request(devices.request(one, "box"))
    devices.request(two, "box")
    pem, _ = authority.issue_device(request, NAME, NOW, DAY_MS)
    answer = Enrolled(device="box", cohort="lab", certificate_pem=pem)
    with pytest.raises(EnrolmentRefused, match="another key"):
        devices.adopt(two, "https://hub:1", answer, authority.certificate_pem)
    assert DeviceIdentity.load(tmp_path / "two") is None


def test_an_identity_that_others_may_read_or_that_is_damaged_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    identity = enrolled(authority, tmp_path)
    path = tmp_path / devices.DIRECTORY / "device.pem"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        identity.reload()
    path.chmod(0o600)
    path.write_bytes(b"junk")
    with pytest.raises(ConfigError, match="damaged"):
        identity.reload()
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        identity.reload()


def test_the_hubs_own_certificate_is_made_again_at_two_thirds(
    tmp_path: Path, authority: Authority
) -> None:
    own = ServerCertificate(tmp_path, authority, ("localhost", "127.0.0.1", "::1"), 90 * DAY_MS)
    assert own.refresh(NOW)
    first = own.pems
    assert not own.refresh(NOW + 60 * DAY_MS - 1)
    assert own.pems == first
    assert own.refresh(NOW + 60 * DAY_MS)
    assert own.pems[1:] != first[1:]
    assert own.tls.verify_mode is ssl.CERT_OPTIONAL
