"""The house rules that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# Where a rule does not hold, and why.
CATCH_ALL = {  # the three places that may catch what nobody foresaw
    "appliance/runtime/worker.py",
    "appliance/daemon.py",
    "appliance/api/grpc_handlers.py",
    "appliance/api/rest_guard.py",
    "appliance/api/rest_handlers.py",
    "appliance/runtime/link.py",
}
THREADS = {
    "appliance/runtime/link.py",
    "appliance/runtime/worker.py",
    "appliance/store/writer.py",
}
CLOCKS = {
    "appliance/clock.py",
    "appliance/cli/checks.py",  # `doctor` examines the clocks themselves
    "appliance/runtime/chat.py",  # templates ask for the local date
}
PRINTS = ("appliance/cli/", "tools/", "benchmarks/")
BANNED_WORDS = re.compile(r"slots?|managers?|utils?|helpers?", re.IGNORECASE)
FOREIGN_NAMES = {"__slots__", "slots", "n_slots"}  # Python's own, and llama-server's in benchmarks
CHINESE_OR_DATA = {"tools/demo_model/words.py"}  # lists of words, not code

# Written in pieces, so that this file does not name what it forbids.
INDEX_HOST = re.compile("|".join((r"pypi\." + "org", r"pythonhosted\." + "org",
                                  r"registry\." + r"npmjs\.", r"--(extra-)?index" + "-url",
                                  "find-" + r"links\s*=", r"files\." + "python")))  # fmt: skip
MACHINE_PATH = re.compile("|".join(("/root" + "/", "/work" + "/", "/opt" + "/")))


def tracked() -> list[Path]:
    """List what git tracks or would track."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts() -> Iterator[tuple[str, str]]:
    for path in tracked():
        try:
            yield str(path.relative_to(ROOT)), path.read_text()
        except UnicodeDecodeError:
            continue


def sources() -> list[str]:
    return [
        name
        for name in (str(path.relative_to(ROOT)) for path in tracked())
        if name.endswith(".py") and "_pb2" not in name
    ]


SOURCES = sources()
DOCSTRINGS_REQUIRED = [name for name in SOURCES if name.startswith(("appliance/", "tools/"))]


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def called(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_a_file_fits_on_a_readers_desk(source: str) -> None:
    if source in CHINESE_OR_DATA:
        return
    assert len((ROOT / source).read_text().splitlines()) <= FILE_LINES_MAX


def test_a_function_fits_on_a_screen(source: str) -> None:
    long = [
        f"{source}:{node.lineno} {node.name}"
        for node in ast.walk(parsed(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("name", DOCSTRINGS_REQUIRED)
def test_a_room_says_what_it_does_and_never_does(name: str) -> None:
    text = ast.get_docstring(parsed(name)) or ""
    assert text
    if name.startswith("appliance/") and name.count("/") > 1 and "__init__" not in name:
        assert "never does" in text or len(text.splitlines()) == 1


def test_a_name_means_one_thing(source: str) -> None:
    banned = []
    for node in ast.walk(parsed(source)):
        name = getattr(node, "name", None) or getattr(node, "id", None) or getattr(node, "arg", "")
        if not isinstance(name, str) or name in FOREIGN_NAMES:
            continue
        parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.arg)) or (
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ):
            banned += [f"{source}: {name}" for part in parts if BANNED_WORDS.fullmatch(part)]
    assert banned == []
    assert BANNED_WORDS.fullmatch(Path(source).stem) is None


def test_only_the_clock_reads_the_clock() -> None:
    clocks = ("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns",
              "time.perf_counter", "datetime.now", "datetime.datetime.now")  # fmt: skip
    found = [
        f"{name}:{line}"
        for name in SOURCES
        if name.startswith("appliance/") and name not in CLOCKS
        for line, call in called(parsed(name))
        if call in clocks
    ]
    assert found == []


def test_only_the_command_line_prints() -> None:
    found = [
        f"{name}:{line}"
        for name in SOURCES
        if not name.startswith((*PRINTS, "tests/"))
        for line, call in called(parsed(name))
        if call == "print"
    ]
    assert found == []


def test_every_task_has_a_group_that_waits_for_it() -> None:
    bare = ("asyncio.create_task", "asyncio.ensure_future", "loop.create_task")
    found = [
        f"{name}:{line}"
        for name in SOURCES
        if name.startswith("appliance/")
        for line, call in called(parsed(name))
        if call in bare
    ]
    assert found == []


def test_threads_are_made_only_where_they_may_be() -> None:
    found = {
        name
        for name in SOURCES
        if name.startswith("appliance/")
        for _, call in called(parsed(name))
        if call.split(".")[-1] in {"Thread", "ThreadPoolExecutor"}
    }
    assert found <= THREADS


def test_only_three_kinds_of_places_catch_everything() -> None:
    found = {
        name
        for name in SOURCES
        if name.startswith("appliance/")
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) == "Exception")
    }
    assert found <= CATCH_ALL


def test_tests_do_not_sleep_skip_or_mock() -> None:
    bad = {"time.sleep", "pytest.skip", "pytest.xfail", "pytest.importorskip"}
    found = [
        f"{name}:{line} {call}"
        for name in SOURCES
        if name.startswith("tests/")
        for line, call in called(parsed(name))
        if call in bad or call.startswith(("pytest.mark.skip", "pytest.mark.xfail", "mock."))
    ]
    assert found == []


def test_no_source_of_packages_and_no_path_of_a_machine_is_named() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if INDEX_HOST.search(line) or MACHINE_PATH.search(line)
    ]
    assert found == []


def test_no_work_is_left_marked() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
    found = [
        f"{name}:{number}"
        for name, text in texts()
        if name.startswith(("appliance/", "tools/", "tests/", "benchmarks/", "docs/"))
        and "_pb2" not in name
        for number, line in enumerate(text.splitlines(), start=1)
        if marks.search(line)
    ]
    assert found == []


def test_a_lock_pins_every_file_by_its_digest() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-build.lock"):
        blocks = re.split(r"\n(?=[^\s#])", (ROOT / name).read_text().strip())
        for block in blocks:
            assert re.match(r"[a-z0-9-]+==[\w.+]+ \\\n    --hash=sha256:[0-9a-f]{64}", block), block


def test_the_development_lock_holds_the_shipped_versions() -> None:
    def pins(name: str) -> dict[str, str]:
        found = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
        return dict(found)

    shipped, development = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: development.get(name) for name in shipped} == shipped
