"""Build the peers from the sources that our own engine is built from.

What this room does: fetch the pinned source archive of llama-cpp-python, unpack it, build
llama-server and llama-batched-bench from the llama.cpp in it, and install what its examples/server
needs; all in the cache, once.
What it knows: the archive's SHA-256; the options with which llama-cpp-python builds its library
(Release, shared, -march=native, OpenMP), so that both sides run the same kernels; that
examples/server runs on the libraries built for llama-server, which have the multimodal part it
imports.
What it never does: write into the tree, or touch the installed engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
NAME = f"llama_cpp_python-{VERSION}"
TARGETS = ("llama-server", "llama-batched-bench")
# What examples/server imports and we have not (its own list, which names no versions).
EXAMPLE_PACKAGES = ("fastapi>=0.100,<1", "safetensors<1", "uvicorn<1", "websockets<18")
FETCH_S, BUILD_S = 900, 3600
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "ON",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What was built: two programs, and the vocabulary-only models beside their sources."""

    server: Path
    batched_bench: Path
    vocabularies: Path
    example_server: Path  # a script
    libraries: Path


def build_peer(cache: Path, say: Callable[[str], None]) -> Peer:
    """Return the peer in `cache`, fetching and building what is missing.

    Blocks for the build, five to fifteen minutes on two cores, the first time. Raises
    subprocess.SubprocessError if a step fails; its output is in `cache`/peer.log.
    """
    sources, build = cache / NAME, cache / f"{NAME}-peer"
    llama = sources / "vendor" / "llama.cpp"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "peer.log").open("ab") as log:
        if not llama.exists():
            say("fetching the llama.cpp sources ...")
            _unpack(_fetch(cache, log.fileno()), cache)
        if not all((build / "bin" / target).exists() for target in TARGETS):
            say(f"building llama-server once, some ten minutes (log: {cache / 'peer.log'}) ...")
            _build(llama, build, cache, log.fileno())
    server, bench = (build / "bin" / target for target in TARGETS)
    return Peer(
        server=server,
        batched_bench=bench,
        vocabularies=llama / "models",
        example_server=sources / "examples" / "server" / "server.py",
        libraries=build / "bin",
    )


def example_packages(cache: Path) -> Path:
    """Return the folder with the packages that examples/server needs, installing them once.

    Raises subprocess.SubprocessError if they can't be installed.
    """
    target = cache / f"{NAME}-example-packages"
    if not target.exists():
        partial = target.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--target", str(partial), *EXAMPLE_PACKAGES]
        with (cache / "peer.log").open("ab") as log:
            subprocess.run(pip, check=True, timeout=FETCH_S, stdout=log, stderr=log)
        partial.rename(target)
    return target


def _fetch(cache: Path, log: int) -> Path:
    wanted = cache / "peer-requirements.txt"
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n", encoding="ascii")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=llama-cpp-python"]
    asked = ["--require-hashes", "--dest", str(cache), "--requirement", str(wanted)]
    subprocess.run([*pip, *asked], check=True, timeout=FETCH_S, stdout=log, stderr=log)
    return cache / f"{NAME}.tar.gz"


def _unpack(archive: Path, cache: Path) -> None:
    partial = cache / f"{NAME}.part"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / NAME).rename(cache / NAME)
    partial.rmdir()


def _build(sources: Path, build: Path, cache: Path, log: int) -> None:
    environment = dict(os.environ)
    if not shutil.which("cmake") or not shutil.which("ninja"):
        programs = cache / "cmake"
        pip = [sys.executable, "-m", "pip", "install", "--target", str(programs), "cmake", "ninja"]
        subprocess.run(pip, check=True, timeout=FETCH_S, stdout=log, stderr=log)
        environment["PATH"] = f"{programs / 'bin'}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = str(programs)
    given = [f"-D{key}={value}" for key, value in OPTIONS.items()]
    for command in (
        ["cmake", "-S", str(sources), "-B", str(build), "-G", "Ninja", *given],
        ["cmake", "--build", str(build), "--target", *TARGETS],
    ):
        subprocess.run(
            command, check=True, timeout=BUILD_S, stdout=log, stderr=log, env=environment
        )
