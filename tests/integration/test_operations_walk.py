"""The walk of docs/operations.md, followed literally: every command of its blocks, in order."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemons import ROOT, RunningProgram, command, environment

HEADING = "## From two bare machines to a signed version"
PAGE = ROOT / "docs" / "operations.md"
COMMAND_TIMEOUT_S = 120.0

pytestmark = pytest.mark.timeout(300)


class Block:
    """One code block: on which machine, and its lines; a command may go over several."""

    def __init__(self, text: str) -> None:
        first, _, self.text = text.partition("\n")
        assert first.startswith("# on "), first
        self.machine = first.removeprefix("# on ")

    def parts(self) -> Iterator[tuple[bool, str]]:
        """Cut off what stays in the foreground: whether a part does, and its text."""
        *before, last = self.text.strip().splitlines()
        stays = re.match(r"appliance (hub )?serve ", last) is not None
        if before:
            yield False, "\n".join(before if stays else [*before, last])
        elif not stays:
            yield False, last
        if stays:
            yield True, last


def blocks() -> list[Block]:
    page = PAGE.read_text("utf-8")
    section = page[page.index(HEADING) :].partition("\n## ")[0]
    return [Block(text) for text in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class World:
    """Directories in place of machines; `appliance` and `scp` in the PATH."""

    def __init__(self, place: Path, stack: contextlib.ExitStack) -> None:
        self.said: list[str] = []
        self._place = place
        self._stack = stack
        self._put = {
            "/srv/appliance": str(ROOT),
            "/srv/": f"{place}/srv/",
            "/media/": f"{place}/media/",
            "hub.example": "localhost",
            "0.0.0.0": "127.0.0.1",
            **{str(port): str(free_port()) for port in (8440, 8441, 8321, 8322)},
        }
        for directory in ("bin", "srv", "media/safe", "media/stick"):
            (place / directory).mkdir(parents=True)
        self._write("appliance", f'exec {shlex.quote(sys.executable)} -m appliance "$@"')
        hub = place / "on the hub"
        self._write(
            "scp",
            f'args=(); for arg in "$@"; do args+=("${{arg#localhost:}}"); done\n'
            f"to=$PWD; cd {shlex.quote(str(hub))}\n"
            f'for from in "${{args[@]::${{#args[@]}}-1}}"; do cp "$from" "$to"; done',
        )

    def _write(self, name: str, text: str) -> None:
        path = self._place / "bin" / name
        path.write_text(f"#!/bin/bash\nset -eu\n{text}\n")
        path.chmod(0o700)

    def follow(self, block: Block) -> None:
        """Do what a block says on its machine."""
        machine = self._place / f"on {block.machine}"
        machine.mkdir(exist_ok=True)
        path = f"{self._place / 'bin'}{os.pathsep}{os.environ['PATH']}"
        for stays, said in block.parts():
            text = re.sub("|".join(self._put), lambda found: self._put[found.group()], said)
            if stays:
                words = shlex.split(text)[1:]
                program = RunningProgram(command(*words), machine)
                self._stack.enter_context(program).logged("listening")
                continue
            done = subprocess.run(
                ["/bin/bash", "-euo", "pipefail", "-c", text],
                cwd=machine,
                env=environment(PATH=path),
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            self.said.append(done.stdout)
            for digest in re.findall(r"^([0-9a-f]{64})  ", done.stdout, re.MULTILINE):
                self._put["DIGEST"] = digest


def test_the_walk_of_the_operations_page_works_as_it_is_written(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        world = World(tmp_path, stack)
        for block in blocks():
            world.follow(block)
    said = "\n".join(world.said)
    assert "tiny@1 committed" in said
    assert "tiny@2 awaiting approval" in said
    assert "tiny@2 committed" in said
    assert "tiny@2: rolled back in " in said
    assert "tiny: version 1 serves, the hub assigns version 2" in said
    assert said.rstrip().endswith("1100 cm")
