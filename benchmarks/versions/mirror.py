"""Serve a folder over TLS that asks both sides for a certificate; run as a program of its own.

What this program does: makes a throw-away authority with one certificate for both sides; serves
files with Range until it is ended.
What it knows: it is the same server for everybody who is measured.
What it never does: leave a key anywhere but in the folder it is given.

Usage: python -m benchmarks.versions.mirror FOLDER CERTIFICATES; prints its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CERTIFICATE, KEY = "both.pem", "both.key"
_DAY = dt.timedelta(days=1)
_STOP_S = 10.0


@contextlib.contextmanager
def running(folder: Path, certificates: Path) -> Iterator[str]:
    """Run it as a process; gives its address."""
    write_certificates(certificates)
    command = [sys.executable, "-m", "benchmarks.versions.mirror", str(folder), str(certificates)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError("the mirror did not start")
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(_STOP_S)


def client_tls(certificates: Path) -> ssl.SSLContext:
    """Make what a client shows and believes."""
    context = ssl.create_default_context(cafile=str(certificates / CERTIFICATE))
    context.load_cert_chain(certificates / CERTIFICATE, certificates / KEY)
    return context


def write_certificates(folder: Path) -> None:
    """Make a key and a certificate of its own authority, for both sides."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a measurement")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CERTIFICATE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / KEY).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


async def _serve(folder: Path, certificates: Path) -> None:
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / CERTIFICATE)
    )
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates / CERTIFICATE, certificates / KEY)
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2])))
