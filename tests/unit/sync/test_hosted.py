"""Links of a version are made once; a full disk serves what is laid out already."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import DiskRefused
from appliance.sync.hosted import laid_out
from tests.unit.sync.agent_world import Hub


def test_links_that_are_right_stay_as_they_are(tmp_path: Path) -> None:
    hub = Hub()
    hub.publish("1")
    offer = hub.releases["1"]
    first = laid_out(tmp_path / "versions", offer, lambda sha256: f"/blobs/{sha256}")
    link = Path(first.weights[0])
    made = link.lstat().st_ino
    assert laid_out(tmp_path / "versions", offer, lambda sha256: f"/blobs/{sha256}") == first
    assert link.lstat().st_ino == made
    moved = laid_out(tmp_path / "versions", offer, lambda sha256: f"/other/{sha256}")
    assert str(Path(moved.weights[0]).readlink()).startswith("/other/")


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    hub = Hub()
    hub.publish("1")
    (tmp_path / "versions").write_text("a file in its place")
    with pytest.raises(DiskRefused):
        laid_out(tmp_path / "versions", hub.releases["1"], lambda sha256: f"/blobs/{sha256}")
