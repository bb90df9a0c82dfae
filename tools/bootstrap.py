"""Make `.venv` ready on a fresh machine: the locked packages, and llama.cpp compiled once.

What this program does: creates the virtual environment, installs exactly the locked packages
(every file checked by its SHA-256), compiles llama-cpp-python from its checked source, installs
this checkout, and leaves a stamp so that the next run takes a moment.
What it knows: Debian splits pip off Python; without `python3-venv` a copy of pip comes from
Debian's own package `python3-pip-whl`, unpacked without root. The compiled wheel is kept in the
user's cache directory, under a name made of everything that decides its content, and is never
needed.
What it never does: install into the system, or name a package index: pip's own settings decide.

Usage: python3 tools/bootstrap.py [--dev]
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "appliance.stamp"
ENGINE = "llama-cpp-python"
# The engine's text library alone: no multimodal library, none for command-line programs.
ENGINE_OPTIONS = ("-DLLAVA_BUILD=OFF",)
ENGINE_CMAKE = ROOT / "tools" / "engine.cmake"
PYTHON_MIN = (3, 11)
REPORT_EVERY_S = 15.0
TAIL_LINES = 40


class BootstrapError(Exception):
    """Something the person at the terminal has to do; its text says what."""


def main(arguments: Sequence[str]) -> int:
    """Bring `.venv` up to the lock; return the process's exit code."""
    unknown = set(arguments) - {"--dev"}
    if unknown:
        print(f"unknown argument {min(unknown)}; usage: bootstrap.py [--dev]")
        return 64
    lock = ROOT / ("requirements-dev.lock" if "--dev" in arguments else "requirements.lock")
    try:
        prepare(lock)
    except BootstrapError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(lock: Path) -> None:
    """Do what the stamp says is not done yet. A development environment serves for both locks."""
    build_lock = ROOT / "requirements-build.lock"
    stamps = {_stamp(ROOT / "requirements-dev.lock", build_lock), _stamp(lock, build_lock)}
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() in stamps:
        return
    if sys.version_info < PYTHON_MIN:
        raise BootstrapError("Python 3.11 or newer is needed")
    STAMP.unlink(missing_ok=True)
    started_s = time.monotonic()
    say("1/5 virtual environment in .venv")
    create_environment()
    say("2/5 build programs")
    pip("installing", "install", "--require-hashes", "--only-binary=:all:", "-r", str(build_lock))
    say(f"3/5 {ENGINE}")
    with tempfile.TemporaryDirectory(prefix="appliance-bootstrap-") as scratch:
        wheel = engine_wheel(lock, build_lock, Path(scratch))
        say(f"4/5 packages of {lock.name}")
        rest = Path(scratch) / "rest.lock"
        rest.write_text("".join(text for name, text in entries(lock) if name != ENGINE))
        pip("installing", "install", "--require-hashes", "--no-deps", "--only-binary=:all:",
            "-r", str(rest))  # fmt: skip
        pip("installing the engine", "install", "--no-index", "--no-deps", "--force-reinstall",
            str(wheel))  # fmt: skip
    say("5/5 this checkout")
    pip("installing", "install", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    pip("checking", "check")
    STAMP.write_text(_stamp(lock, build_lock))
    say(f"ready after {time.monotonic() - started_s:.0f} s")


# --- the environment ------------------------------------------------------------------------------


def create_environment() -> None:
    """Create `.venv` with pip in it, by the first of three ways that works."""
    if PYTHON.exists() and _succeeds(str(PYTHON), "-m", "pip", "--version"):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    if _succeeds(sys.executable, "-m", "venv", str(VENV)):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    if not _succeeds(sys.executable, "-m", "venv", "--without-pip", str(VENV)):
        raise BootstrapError("python3 has no module venv; run: apt-get install python3-venv")
    with tempfile.TemporaryDirectory(prefix="appliance-pip-") as scratch:
        wheel = debian_pip_wheel(Path(scratch))
        run([str(PYTHON), f"{wheel}/pip", "install", "--no-index", "--no-deps", str(wheel)], "pip")


def debian_pip_wheel(scratch: Path) -> Path:
    """Find the pip wheel that Debian packages: installed, or downloaded and unpacked here."""
    installed = Path("/usr/share/python-wheels")
    if not list(installed.glob("pip-*.whl")):
        say("    python3-venv is not installed; taking pip from Debian's python3-pip-whl")
        download = ("apt-get", "download", "python3-pip-whl")
        if not _succeeds(*download, directory=scratch):  # perhaps there are no lists yet
            lists = ("-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}")
            (scratch / "lists" / "partial").mkdir(parents=True)
            if not _succeeds("apt-get", *lists, "update") or not _succeeds(
                download[0], *lists, *download[1:], directory=scratch
            ):
                raise BootstrapError("pip is missing; run: apt-get install python3-venv")
        for package in scratch.glob("*.deb"):
            run(["dpkg-deb", "-x", str(package), str(scratch / "root")], "unpacking")
        installed = scratch / "root" / "usr/share/python-wheels"
    wheels = sorted(installed.glob("pip-*.whl"))
    if not wheels:
        raise BootstrapError("pip is missing; run: apt-get install python3-venv")
    return wheels[-1]


def _succeeds(*command: str, directory: Path = ROOT) -> bool:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


# --- the engine -----------------------------------------------------------------------------------


def engine_wheel(lock: Path, build_lock: Path, scratch: Path) -> Path:
    """Return the engine's wheel, compiled for this machine now or at an earlier run."""
    entry = next(text for name, text in entries(lock) if name == ENGINE)
    key = engine_key(entry, build_lock)
    home = cache_directory()
    cached = home / key if home is not None else None
    found = cached_wheel(cached)
    if found is not None:
        say("    compiled before; taken from the cache")
        return found
    requirement = scratch / "engine.lock"
    requirement.write_text(entry)
    say("    there is no ready-made file for it, so llama.cpp is compiled now, once:")
    say("    about three minutes on two idle cores; nothing to do meanwhile")
    built = scratch / "wheels"
    environment = {
        "CMAKE_ARGS": shlex.join([*ENGINE_OPTIONS, f"-DCMAKE_PROJECT_INCLUDE={ENGINE_CMAKE}"]),
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
    }
    pip("compiling", "wheel", "--verbose", "--require-hashes", "--no-deps", "--no-cache-dir",
        "--no-build-isolation", f"--no-binary={ENGINE}", "-w", str(built), "-r", str(requirement),
        environment=environment)  # fmt: skip
    return keep(next(built.glob("*.whl")), cached)


def engine_key(entry: str, build_lock: Path) -> str:
    """Name everything that decides what the compiler makes: source, tools, processor."""
    compilers = [_output(name, "--version") for name in ("cc", "c++")]
    if "" in compilers:
        raise BootstrapError("a C and a C++ compiler are needed; run: apt-get install gcc g++")
    flags = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    parts = [
        entry,
        build_lock.read_text(),
        *ENGINE_OPTIONS,
        ENGINE_CMAKE.read_text(),
        platform.machine(),
        sysconfig.get_config_var("SOABI") or "",
        flags.group(0) if flags else "",
        *compilers,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def cache_directory() -> Path | None:
    """Name where compiled wheels are kept; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    if not base and os.environ.get("HOME") == "":
        return None
    if not base:
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Path(base) / "appliance" / "wheels"


def cached_wheel(cached: Path | None) -> Path | None:
    """Find a wheel that is whole."""
    for wheel in cached.glob("*.whl") if cached is not None else ():
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.testzip() is None:
                    return wheel
        except (OSError, zipfile.BadZipFile):
            continue
    return None


def keep(wheel: Path, cached: Path | None) -> Path:
    """Copy the wheel into the cache if that can be written; return where it lies."""
    if cached is None:
        return wheel
    try:
        cached.mkdir(parents=True, exist_ok=True)
        temporary = cached / f".{wheel.name}.{os.getpid()}"
        shutil.copyfile(wheel, temporary)
        return temporary.rename(cached / wheel.name)
    except OSError:
        return wheel


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


# --- the locks ------------------------------------------------------------------------------------


def entries(lock: Path) -> Iterator[tuple[str, str]]:
    """Cut a lock into (package name, its lines with hashes)."""
    for block in re.split(r"\n(?=[^\s#])", lock.read_text()):
        if "==" in block:
            yield block.split("==")[0].strip(), block.rstrip() + "\n"


def _stamp(lock: Path, build_lock: Path) -> str:
    """Name what an environment made from these files contains."""
    hasher = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for path in (lock, build_lock, ROOT / "pyproject.toml", Path(__file__)):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


# --- running and telling --------------------------------------------------------------------------


def pip(label: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run pip of `.venv`."""
    run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments], label, environment)


def run(command: Sequence[str], label: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command, tell how far it is, and show the end of its output if it fails.

    Raises:
        BootstrapError: it failed.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    show = progress(label)
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            tail.append(line)
            show(line)
    if process.wait() != 0:
        print("".join(tail), file=sys.stderr)
        raise BootstrapError(f"{label} failed (the end of its output is above)")


def progress(label: str) -> Callable[[str], None]:
    """Make a function that is shown each line of output, and tells now and then how far it is."""
    started_s = time.monotonic()
    last_s = started_s
    share = ""

    def show(line: str) -> None:
        nonlocal last_s, share
        step = re.search(r"\[(\d+)/(\d+)\]", line)  # ninja's "[12/345] Building ..."
        if step:
            share = f" {100 * int(step[1]) // int(step[2])} %,"
        now_s = time.monotonic()
        if now_s - last_s >= REPORT_EVERY_S:
            last_s = now_s
            say(f"    {label}:{share} {now_s - started_s:.0f} s")

    return show


def say(text: str) -> None:
    """Print a line now, also where output is not a terminal."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
