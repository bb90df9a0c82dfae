"""The hub over HTTPS: who may come in, and what is served how. Real processes, real TLS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from appliance.access.device import DIRECTORY, DeviceIdentity
from appliance.clock import utc_ms
from appliance.config import Link
from appliance.errors import (
    DocumentRefused,
    EnrolmentRefused,
    HubUnreachable,
    InvalidRequest,
)
from appliance.sync import enrolment
from tests.integration.daemons import program
from tests.integration.hubs import (
    TIMEOUT_S,
    HubClient,
    RunningHub,
    asked,
    until,
    without_certificate,
)

SECOND_DAYS = 1 / 86_400


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with RunningHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def device(hub: RunningHub, tmp_path_factory: pytest.TempPathFactory) -> DeviceIdentity:
    return hub.enrolled(tmp_path_factory.mktemp("device"), device="reader")


@pytest.fixture(scope="module")
def blob(hub: RunningHub) -> tuple[str, bytes]:
    data = random.Random(7).randbytes(700_001)
    return hub.put_blob(data), data


def refusal(hub: RunningHub, identity: DeviceIdentity, path: str) -> tuple[int, str]:
    answer = asked(hub.url, identity.tls, path)
    return answer.status, str(json.loads(answer.body)["error"]["code"])


# --- enrolment -----------------------------------------------------------------------------------


def test_an_enrolled_appliance_knows_its_hub_and_nobody_else_can_read_its_key(
    hub: RunningHub, tmp_path: Path
) -> None:
    done = program(
        *("enrol", "--hub", hub.url, "--state-dir", tmp_path, "--token-file", "-", "--json"),
        stdin=hub.token(cohort="shop", device="till-7"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["device"], told["cohort"], told["url"]) == ("till-7", "shop", hub.url)
    assert told["push_address"] == hub.push_address
    identity = DeviceIdentity.load(tmp_path)
    assert identity is not None
    assert identity.hub.device == "till-7"
    assert stat.S_IMODE((tmp_path / DIRECTORY / "device.pem").stat().st_mode) == 0o600
    names = sorted(path.name for path in (tmp_path / DIRECTORY).iterdir())
    assert names == ["device.pem", "hub.json", "hub.pem"]
    listed = json.loads(hub.run("device", "list", "--cohort", "shop", "--json"))["devices"]
    assert [one["device"] for one in listed] == ["till-7"]


def test_the_hubs_keys_are_its_own(hub: RunningHub, device: DeviceIdentity) -> None:
    assert device.hub.url == hub.url
    for name in ("ca.key", "server.pem"):
        assert stat.S_IMODE((hub.state_dir / name).stat().st_mode) == 0o600


def test_a_token_is_good_for_one_key(hub: RunningHub, tmp_path: Path) -> None:
    token = hub.token()
    asyncio.run(enrolment.enrol(hub.url, token, tmp_path / "one", TIMEOUT_S))
    with pytest.raises(EnrolmentRefused, match="used before"):
        asyncio.run(enrolment.enrol(hub.url, token, tmp_path / "two", TIMEOUT_S))


def test_an_enrolment_that_was_cut_off_may_be_repeated_with_the_same_key(
    hub: RunningHub, tmp_path: Path
) -> None:
    token = hub.token()
    first = asyncio.run(enrolment.enrol(hub.url, token, tmp_path, TIMEOUT_S))
    key = (tmp_path / DIRECTORY / "device.pem").read_bytes().partition(b"-----BEGIN CERT")[0]
    (tmp_path / DIRECTORY / "next.key").write_bytes(key)  # as if the answer had not come
    (tmp_path / DIRECTORY / "hub.json").unlink()
    again = asyncio.run(enrolment.enrol(hub.url, token, tmp_path, TIMEOUT_S))
    assert again.hub == first.hub


def test_a_token_expires(hub: RunningHub, tmp_path: Path) -> None:
    token = hub.token(hours=1e-9)
    with pytest.raises(EnrolmentRefused, match="expired"):
        asyncio.run(enrolment.enrol(hub.url, token, tmp_path, TIMEOUT_S))


def test_a_made_up_token_is_refused_and_not_repeated(hub: RunningHub, tmp_path: Path) -> None:
    digest = hub.token().split(".")[1]
    secret = "s" * 43
    with pytest.raises(EnrolmentRefused, match="no such token"):
        asyncio.run(enrolment.enrol(hub.url, f"aplt.{digest}.{secret}", tmp_path, TIMEOUT_S))
    with pytest.raises(DocumentRefused) as refused:
        asyncio.run(enrolment.enrol(hub.url, f"aplt.{digest}.{secret}x", tmp_path, TIMEOUT_S))
    assert secret not in str(refused.value)


def test_a_hub_that_the_token_does_not_name_gets_no_secret(hub: RunningHub, tmp_path: Path) -> None:
    with RunningHub(tmp_path / "other") as other:
        token = other.token()
        with pytest.raises(EnrolmentRefused, match="not the one that the token names"):
            asyncio.run(enrolment.enrol(hub.url, token, tmp_path / "box", TIMEOUT_S))
        asyncio.run(enrolment.enrol(other.url, token, tmp_path / "box", TIMEOUT_S))  # unspent


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://host", "https://a:1/x", "ftp:"])
def test_a_hub_has_an_https_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="https://HOST:PORT"):
        asyncio.run(enrolment.enrol(url, "", tmp_path, TIMEOUT_S))


def test_a_hub_that_is_not_there_is_named(hub: RunningHub, tmp_path: Path) -> None:
    token = hub.token()
    with pytest.raises(HubUnreachable, match=r"127\.0\.0\.1:1"):
        asyncio.run(enrolment.enrol("https://127.0.0.1:1", token, tmp_path, TIMEOUT_S))


def test_enrolling_a_device_again_makes_its_earlier_certificates_void(
    hub: RunningHub, tmp_path: Path
) -> None:
    first = hub.enrolled(tmp_path / "old", device="again")
    second = hub.enrolled(tmp_path / "new", device="again")
    path = hub.put_blob(b"again")
    assert refusal(hub, first, path) == (403, "ENROLMENT_REFUSED")
    assert asked(hub.url, second.tls, path).status == 200
    with pytest.raises(EnrolmentRefused, match="again since"):
        asyncio.run(enrolment.renew(first, TIMEOUT_S))


# --- renewal and revocation ----------------------------------------------------------------------


def test_a_revoked_appliance_is_out_at_once_and_may_be_restored(
    hub: RunningHub, tmp_path: Path
) -> None:
    identity = hub.enrolled(tmp_path, device="lost")
    path = hub.put_blob(b"secret weights")

    async def revoked_while_connected() -> list[int]:
        async with HubClient(hub.url, identity.tls) as client:
            found = [(await client.ask(path)).status]
            await asyncio.to_thread(hub.run, "device", "revoke", "lost")
            found.append((await client.ask(path)).status)
            return found

    assert asyncio.run(revoked_while_connected()) == [200, 403]
    with pytest.raises(EnrolmentRefused, match="revoked"):
        asyncio.run(enrolment.renew(identity, TIMEOUT_S))
    hub.run("device", "restore", "lost")
    assert asked(hub.url, identity.tls, path).status == 200


def test_a_certificate_that_is_over_is_not_let_in_and_still_renews(tmp_path: Path) -> None:
    with RunningHub(tmp_path, certificate_days=SECOND_DAYS) as hub:
        identity = hub.enrolled(tmp_path / "box")
        first_end = identity.ends_utc_ms
        path = hub.put_blob(b"data")
        until(lambda: utc_ms() > first_end + 1000)
        with pytest.raises((aiohttp.ClientError, OSError)):
            asked(hub.url, identity.tls, path)
        asyncio.run(enrolment.renew(identity, TIMEOUT_S))
        assert identity.ends_utc_ms > first_end
        hub.run("device", "move", "box", "elsewhere")
        asyncio.run(enrolment.renew(identity, TIMEOUT_S))
        assert identity.hub.cohort == "elsewhere"


def test_the_chore_renews_at_two_thirds_of_a_certificates_life(
    hub: RunningHub, tmp_path: Path
) -> None:
    identity = hub.enrolled(tmp_path, device="worn")
    first = (identity.begins_utc_ms, identity.ends_utc_ms)
    life = first[1] - first[0]
    assert identity.renew_utc_ms == pytest.approx(first[0] + life * 2 / 3, abs=2)
    now = identity.renew_utc_ms - 1
    settings = Link(renew_check_s=0.01, retry_s_min=0.01, retry_s_max=0.01)

    async def watched(*, renewed: bool) -> None:
        path = tmp_path / DIRECTORY / "device.pem"
        pem = path.read_bytes()
        chore = enrolment.Renewal(identity, settings, utc_ms=lambda: now, rng=random.Random(1))
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
            running = group.create_task(chore.run())
            if renewed:
                await asyncio.to_thread(until, lambda: path.read_bytes() != pem)
            else:
                await asyncio.sleep(0.05)
                assert path.read_bytes() == pem
            running.cancel()

    asyncio.run(watched(renewed=False))
    now += 1
    asyncio.run(watched(renewed=True))
    assert asked(hub.url, identity.tls, hub.put_blob(b"x")).status == 200


# --- files ---------------------------------------------------------------------------------------


def test_without_a_certificate_nothing_of_the_repository_is_served(
    hub: RunningHub, device: DeviceIdentity, blob: tuple[str, bytes]
) -> None:
    stranger = without_certificate(device)
    for path in (blob[0], "/metadata/timestamp.json", "/nothing"):
        answer = asked(hub.url, stranger, path)
        assert answer.status == 401
        assert json.loads(answer.body)["error"]["code"] == "UNAUTHENTICATED"
    assert asked(hub.url, stranger, "/healthz").status == 200


def test_a_certificate_of_another_ca_is_refused(
    hub: RunningHub, device: DeviceIdentity, blob: tuple[str, bytes], tmp_path: Path
) -> None:
    with RunningHub(tmp_path / "other") as other:
        stranger = other.enrolled(tmp_path / "box", device="reader")
    context = without_certificate(device)
    context.load_cert_chain(tmp_path / "box" / DIRECTORY / "device.pem")
    assert stranger.hub.device == "reader"
    with pytest.raises((aiohttp.ClientError, OSError)):
        asked(hub.url, context, blob[0])


@pytest.mark.parametrize(
    ("asked_for", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-262244", 100, 262_245),
        ("bytes=262144-", 262_144, 700_001),
        ("bytes=-5", 699_996, 700_001),
        ("bytes=700000-800000", 700_000, 700_001),
    ],
)
def test_a_range_is_served_exactly(
    hub: RunningHub, device: DeviceIdentity, blob: tuple[str, bytes],
    asked_for: str, begin: int, end: int,
) -> None:  # fmt: skip
    path, data = blob
    answer = asked(hub.url, device.tls, path, Range=asked_for)
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(data)}"
    assert answer.body == data[begin:end]


def test_a_blob_is_served_whole_with_its_digest_as_etag(
    hub: RunningHub, device: DeviceIdentity, blob: tuple[str, bytes]
) -> None:
    path, data = blob
    answer = asked(hub.url, device.tls, path)
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    assert (answer.status, answer.body) == (200, data)
    assert answer.headers["ETag"] == etag
    assert answer.headers["Accept-Ranges"] == "bytes"
    head = asked(hub.url, device.tls, path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(data))
    assert asked(hub.url, device.tls, path, If_None_Match=etag).status == 304
    same = asked(hub.url, device.tls, path, Range="bytes=1-2", If_Range=etag)
    assert (same.status, same.body) == (206, data[1:3])
    other = asked(hub.url, device.tls, path, Range="bytes=1-2", If_Range='"other"')
    assert (other.status, other.body) == (200, data)


def test_a_range_past_the_end_is_416_and_an_odd_one_is_passed_over(
    hub: RunningHub, device: DeviceIdentity, blob: tuple[str, bytes]
) -> None:
    path, data = blob
    answer = asked(hub.url, device.tls, path, Range="bytes=700001-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */700001")
    for odd in ("bytes=0-1,5-6", "lines=1-2", "bytes=9-3"):
        answer = asked(hub.url, device.tls, path, Range=odd)
        assert (answer.status, answer.body) == (200, data)


def test_metadata_that_is_replaced_is_served_at_once(
    hub: RunningHub, device: DeviceIdentity
) -> None:
    hub.put("metadata/1.root.json", b'{"one": 1}')
    first = asked(hub.url, device.tls, "/metadata/1.root.json")
    etag = first.headers["ETag"]
    assert asked(hub.url, device.tls, "/metadata/1.root.json", If_None_Match=etag).status == 304
    hub.put("metadata/1.root.json", b'{"two": 2}')
    second = asked(hub.url, device.tls, "/metadata/1.root.json", If_None_Match=etag)
    assert (second.status, second.body) == (200, b'{"two": 2}')


def test_only_paths_of_the_repository_are_served(hub: RunningHub, device: DeviceIdentity) -> None:
    hub.put("metadata/.hidden.json", b"{}")
    hub.put("metadata/deep/er.json", b"{}")
    outside = hub.state_dir / "repository" / "metadata" / "9.root.json"
    outside.symlink_to(hub.state_dir / "ca.key")
    for path in (
        *("/", "/metadata", "/metadata/", "/blobs/sha256/", "/metadata/.hidden.json"),
        *("/metadata/deep/er.json", "/metadata/9.root.json", "/ca.key", "/hub.db"),
        *("/metadata/%2e%2e/%2e%2e/ca.key", "/targets/models/a/b/release.json"),
        f"/blobs/sha256/aa/{'b' * 64}",
    ):
        assert asked(hub.url, device.tls, path).status == 404, path


def test_a_body_over_the_bound_is_refused(hub: RunningHub, device: DeviceIdentity) -> None:
    large = asked(hub.url, device.tls, "/enrol", method="POST", body=b"x" * 70_000)
    assert large.status == 413
    odd = asked(hub.url, device.tls, "/enrol", method="POST", body=b"{}")
    assert (odd.status, json.loads(odd.body)["error"]["code"]) == (400, "DOCUMENT_REFUSED")


def test_a_device_has_so_many_connections(tmp_path: Path) -> None:
    with RunningHub(tmp_path, device_connections_max=2) as hub:
        identity = hub.enrolled(tmp_path / "box")
        path = hub.put_blob(b"data")

        async def statuses() -> list[int | str]:
            found: list[int | str] = []
            async with (
                HubClient(hub.url, identity.tls) as one,
                HubClient(hub.url, identity.tls) as two,
                HubClient(hub.url, identity.tls) as three,
            ):
                for client in (one, two, three):
                    try:
                        found.append((await client.ask(path)).status)
                    except (aiohttp.ClientError, OSError):
                        found.append("cut off")
                await one.session.close()
                await two.session.close()
            return found

        assert asyncio.run(statuses()) == [200, 200, "cut off"]
        refused = hub.logged("hub_connection_refused")
        assert "hub.device_connections_max is 2" in str(refused["reason"])


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    with RunningHub(tmp_path, write_timeout_s=0.2) as hub:
        identity = hub.enrolled(tmp_path / "box")
        path = hub.put_blob(bytes(64 * 1024 * 1024))

        async def stalled() -> None:
            port = int(hub.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("localhost", port, ssl=identity.tls)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await reader.readline()
            await asyncio.to_thread(hub.logged, "http_refused")
            writer.transport.abort()

        asyncio.run(stalled())
        assert asked(hub.url, identity.tls, hub.put_blob(b"next")).status == 200


def test_sigterm_lets_a_transfer_end(tmp_path: Path) -> None:
    with RunningHub(tmp_path) as hub:
        identity = hub.enrolled(tmp_path / "box")
        data = random.Random(3).randbytes(24 * 1024 * 1024)
        path = hub.put_blob(data)

        async def stopped_meanwhile() -> bytes:
            async with (
                HubClient(hub.url, identity.tls) as client,
                client.session.get(f"{hub.url}{path}") as answer,
            ):
                first = await answer.content.readexactly(1000)
                hub.process.terminate()
                await asyncio.to_thread(hub.logged, "signal")
                return first + await answer.content.read()

        assert asyncio.run(stopped_meanwhile()) == data
        assert hub.wait() == 0
        hub.logged("stopped")
