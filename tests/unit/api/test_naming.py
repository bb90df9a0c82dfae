"""The ways to name a model and an adapter, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.api.naming import meant
from appliance.domain import (
    AdapterState,
    AdapterStatus,
    AdapterVersion,
    Digest,
    ModelStatus,
    ModelVersion,
    Origin,
    Role,
    VersionState,
)
from appliance.errors import InvalidRequest

SIGNED: dict[str, Any] = {
    "digest": Digest("sha256:" + "0" * 64),
    "origin": Origin.LOCAL,
    "key_id": "",
    "signature": "",
}


def status(model: str, *adapters: str) -> ModelStatus:
    version = ModelVersion(model=model, version="1", blob_bytes=1, **SIGNED)
    return ModelStatus(
        version=version,
        role=Role.ACTIVE,
        state=VersionState.READY,
        loading_ratio=1.0,
        created_utc_ms=0,
        adapters=tuple(
            AdapterStatus(
                adapter=AdapterVersion(
                    model=version.label, name=name, blob_bytes=1, scale=1.0, **SIGNED
                ),
                state=AdapterState.READY,
                rank=4,
                created_utc_ms=0,
                is_shelved=False,
            )
            for name in adapters
        ),
    )


SERVED = (status("one", "ada", "both"), status("two", "bob", "both"))


@pytest.mark.parametrize(
    ("model", "adapter", "expected"),
    [
        ("one", "", ("one", "")),
        ("one@1", "ada", ("one@1", "ada")),
        ("one", "unknown", ("one", "unknown")),
        ("", "ada", ("", "ada")),
        ("one:ada", "", ("one", "ada")),
        ("one:ada", "ada", ("one", "ada")),
        ("one@1:unknown", "", ("one@1", "unknown")),
        ("bob", "", ("two@1", "bob")),
        ("bob", "bob", ("two@1", "bob")),
        ("two:both", "", ("two", "both")),
        ("three", "", ("three", "")),
        ("three:ada", "", ("three:ada", "")),
    ],
)
def test_every_way_to_name_an_adapter_finds_it(
    model: str, adapter: str, expected: tuple[str, str]
) -> None:
    assert meant(model, adapter, SERVED) == expected


@pytest.mark.parametrize(
    ("model", "adapter", "reason"),
    [
        ("one:ada", "bob", "adapter: is 'bob' and contradicts 'model', which names 'ada'"),
        ("bob", "ada", "adapter: is 'ada' and contradicts"),
        ("both", "", "model: is ambiguous; write one@1:both or two@1:both"),
    ],
)
def test_what_contradicts_itself_is_refused(model: str, adapter: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        meant(model, adapter, SERVED)
