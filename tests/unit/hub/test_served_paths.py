"""Which paths of the repository are served."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance.hub.served_paths import Kind, served

H = "0f" * 32


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("metadata/timestamp.json", Kind.METADATA),
        ("metadata/12.root.json", Kind.METADATA),
        ("metadata/3.publisher-team-a.json", Kind.METADATA),
        (f"targets/models/m/1.2/{H}.release.json", Kind.TARGET),
        (f"targets/models/m/{H}.standing.json", Kind.TARGET),
        (f"targets/fleet/lab/{H}.assignment.json", Kind.TARGET),
        (f"blobs/sha256/0f/{H}", Kind.BLOB),
    ],
)
def test_what_the_repository_holds_is_served(path: str, kind: Kind) -> None:
    found = served(f"/{path}")
    assert found is not None
    assert (found.path, found.kind) == (path, kind)
    assert found.digest == (H if kind is Kind.BLOB else "")
    for other in (path, f"/{path}/", f"//{path}", f"/{path}?a", f"/{path}\n", f"/./{path}"):
        assert served(other) is None


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/metadata", "/metadata/0.root.json", "/metadata/.json", "/metadata/a/b.json",
        "/metadata/../hub.db", "/metadata/%2e%2e/ca.key", "/targets/models/m/1/release.json",
        f"/targets/models/../1/{H}.release.json", f"/targets/x/m/1/{H}.release.json",
        f"/blobs/sha256/00/{H}", f"/blobs/sha256/0f/{H.upper()}", f"/blobs/sha256/0f/{H}0",
        "/metadata/" + "a" * 600 + ".json",
    ],
)  # fmt: skip
def test_nothing_else_is(path: str) -> None:
    assert served(path) is None


@given(some.text())
def test_no_path_leaves_the_repository(text: str) -> None:
    for prefix in ("/", "/metadata/", "/targets/models/", "/blobs/sha256/"):
        found = served(prefix + text)
        assert found is None or ".." not in found.path.split("/")
