"""Files that are there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from appliance.store import remove_unfinished, write_durably


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a[b].json"
    write_durably(path, b"{}", mode=0o600)
    left = tmp_path / ".a[b].json.0123456789abcdef"
    others = [tmp_path / ".ab.json.0123456789abcdef", tmp_path / ".a[b].json.notes"]
    for one in (left, *others):
        one.write_bytes(b"{")
    remove_unfinished(path)
    assert not left.exists()
    assert all(one.exists() for one in (path, *others))
