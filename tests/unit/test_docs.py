"""What the documents say is what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from appliance.cli.main import VERBS
from appliance.config import SECTIONS
from appliance.errors import concrete_classes
from appliance.observe.families import FAMILIES
from tools import code_reference, deployment_picture, import_picture, room_table, scheduler_example

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))


def test_the_reference_pages_are_what_the_code_says() -> None:
    pages = ROOT / "docs" / "reference"
    assert (pages / "errors.md").read_text() == code_reference.errors_page()
    assert (pages / "metrics.md").read_text() == code_reference.metrics_page()
    assert (pages / "cli.md").read_text() == code_reference.cli_page()


def test_every_error_code_metric_key_and_verb_is_in_the_reference() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    words = [cls.code for cls in concrete_classes()]
    words += [family.name for family in FAMILIES]
    words += [
        f"{name}.{field}"
        for name, section in SECTIONS.items()
        for field in section.__struct_fields__
    ]
    assert [word for word in words if f"`{word}`" not in pages] == []
    shown = [verb for verb, (_, _, meaning) in VERBS.items() if meaning]  # others are hidden
    assert [verb for verb in shown if f"## appliance {verb}" not in pages] == []


def test_the_import_picture_is_fresh() -> None:
    text = import_picture.PAGE.read_text()
    assert text == import_picture.placed(text)


def test_the_picture_of_a_deployments_life_is_fresh() -> None:
    text = deployment_picture.PAGE.read_text()
    assert text == deployment_picture.placed(text)


def test_the_architecture_lists_every_room_as_it_says_of_itself() -> None:
    text = room_table.PAGE.read_text()
    assert text == room_table.placed(text)


def test_the_schedulers_worked_example_is_fresh() -> None:
    text = scheduler_example.PAGE.read_text()
    assert text == scheduler_example.placed(text)


def test_the_picture_leaves_out_only_what_others_imply() -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}
    assert import_picture.reduced(edges) == {("a", "b"), ("b", "c"), ("a", "d")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_points_only_to_what_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    files = re.findall(r"`((?:appliance|tools|tests|docs|configs|benchmarks)/[\w./-]+)`", text)
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_architecture_names_only_files_that_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    names = set(re.findall(r"`([a-z_]+/[a-z_]+(?:\.py)?|[a-z_]+\.py)`", text))
    missing = [
        name
        for name in names
        if not (ROOT / "appliance" / f"{name.removesuffix('.py')}.py").exists()
        and not (ROOT / name).exists()
    ]
    assert missing == []


def test_a_decision_has_its_four_parts_and_is_in_the_index() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    numbers = [int(path.name[:4]) for path in DECISIONS]
    assert numbers == sorted(set(numbers))
    for number, path in zip(numbers, DECISIONS, strict=True):
        text = path.read_text()
        for part in ("Context", "Options", "Decision", "Cost"):
            assert f"\n**{part}.** " in text
        title = text.splitlines()[0].removeprefix(f"# {number:04d} ")
        assert f"| [{number:04d}]({path.name}) | {title} |" in index


def test_the_readme_names_targets_and_verbs_that_exist() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", text, re.MULTILINE):
        assert f"\n{''.join(target)}:" in makefile
    for verb in re.findall(r"bin/appliance ([a-z]+)", text):
        assert verb in VERBS


def test_every_dependency_is_imported_somewhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {
        "googleapis-common-protos": "google.rpc",
        "grpcio": "grpc",
        "grpcio-health-checking": "grpc_health",
        "grpcio-reflection": "grpc_reflection",
        "grpcio-status": "grpc_status",
        "llama-cpp-python": "llama_cpp",
        "nvidia-ml-py": "pynvml",
        "protobuf": "google.protobuf",
    }
    code = "\n".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py"))
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        module = re.escape(modules.get(name, name.replace("-", "_")))
        assert re.search(rf"^\s*(from|import) {module}\b", code, re.MULTILINE), name
