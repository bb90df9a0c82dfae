"""Over TLS with certificates on both sides: who is nobody's is not talked to."""

from __future__ import annotations

import asyncio
import random
import ssl
from pathlib import Path

import msgspec
import pytest

from appliance.errors import HubUnreachable
from appliance.sync.http_blobs import HttpBlobs
from benchmarks.versions.mirror import CERTIFICATE, KEY, client_tls, write_certificates
from tests.unit.sync.hostile import CHUNK, QUICK, Server, a_file, fetching

FEW = msgspec.structs.replace(QUICK, failures_max=3)
DATA = random.Random(6).randbytes(9 * CHUNK)


def _server_tls(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / CERTIFICATE))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


@pytest.mark.parametrize("client", ["known", "without a certificate", "of another hub"])
def test_only_who_knows_each_other_talks(client: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_certificates(ours)
    write_certificates(theirs)
    wanted, files = a_file(DATA)
    server = Server(files)
    tls = {
        "known": lambda: client_tls(ours),
        "without a certificate": lambda: ssl.create_default_context(cafile=str(ours / CERTIFICATE)),
        "of another hub": lambda: client_tls(theirs),
    }[client]()

    async def run() -> None:
        async with server.running(_server_tls(ours)):
            source = HttpBlobs("hub", server.url, FEW, tls=tls)
            async with fetching(tmp_path / "store", source, settings=FEW) as (fetcher, store):
                if client == "known":
                    await fetcher.fetch_now([wanted])
                    assert store.path_of(wanted.blob.sha256).read_bytes() == DATA
                    return
                with pytest.raises(HubUnreachable, match="hub: "):
                    await fetcher.fetch_now([wanted])
                assert server.asked == []

    asyncio.run(run())
