"""The committed code is what the protos generate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {
    "appliance.api.proto": ROOT / "appliance" / "api" / "proto",
    "appliance.fleet_proto": ROOT / "appliance" / "fleet_proto",
}
GENERATE_TIMEOUT_S = 60.0


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    command: list[str | Path] = [
        sys.executable,
        ROOT / "tools" / "generate_proto.py",
        "--out",
        tmp_path,
    ]
    subprocess.run(command, check=True, timeout=GENERATE_TIMEOUT_S)
    for package, place in PACKAGES.items():
        fresh = {path.name: path.read_text() for path in (tmp_path / package).iterdir()}
        committed = {path.name: path.read_text() for path in place.glob("*_pb2*.py*")}
        assert committed == fresh
