"""Take the adapters that a version brings with it as files that its worker may load.

What this room does: each adapter's head against the heads of the weights, and what its file is
recognised by.
What it knows: the publisher signed their bytes together with the weights, so nothing is signed
here, and their scale is as trained.
What it never does: load one, or believe that a signature makes a file harmless.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from appliance import gguf
from appliance.config import Limits
from appliance.domain import AdapterVersion, HostedVersion
from appliance.errors import ModelUnloadable
from appliance.runtime.adapter_head import check_adapter
from appliance.runtime.adapters import AdapterFile, file_key

_SCALE = 1.0


def signed_adapters(hosted: HostedVersion, limits: Limits) -> tuple[AdapterFile, ...]:
    """Check every adapter of a version; blocks on the disk for their heads.

    Raises:
        ModelUnloadable: names the adapter that can't be served with these weights, and why; or
            there are too many.
    """
    if not hosted.adapters:
        return ()
    if len(hosted.adapters) > limits.adapters:
        reason = f"it has {len(hosted.adapters)} adapters; limits.adapters is {limits.adapters}"
        raise ModelUnloadable(path=hosted.weights[0], reason=reason)
    model = _head_of_all(hosted.weights)
    return tuple(_checked(hosted, name, model, limits) for name in hosted.adapters)


def _checked(hosted: HostedVersion, name: str, model: gguf.GgufHead, limits: Limits) -> AdapterFile:
    adapter = hosted.adapters[name]
    try:
        facts = check_adapter(
            gguf.read_head(Path(adapter.path)),
            model,
            rank_max=limits.adapter_rank,
            bytes_max=limits.adapter_bytes,
        )
        key = file_key(Path(adapter.path).stat())
    except (gguf.GgufFault, OSError) as fault:
        reason = f"its adapter {name}: {fault}"
        raise ModelUnloadable(path=adapter.path, reason=reason) from fault
    version = hosted.version
    signed = AdapterVersion(
        model=version.label,
        name=name,
        digest=adapter.digest,
        blob_bytes=facts.file_bytes,
        scale=_SCALE,
        origin=version.origin,
        key_id=version.key_id,
        signature=version.signature,
    )
    return AdapterFile(path=adapter.path, version=signed, rank=facts.rank, file_key=key)


def _head_of_all(weights: Sequence[str]) -> gguf.GgufHead:
    """Read the head of a model with the tensors of all its parts."""
    try:
        heads = [gguf.read_head(Path(part)) for part in weights]
    except gguf.GgufFault as fault:
        raise ModelUnloadable(path=weights[0], reason=str(fault)) from fault
    tensors = {name: entry for head in heads for name, entry in head.tensors.items()}
    return dataclasses.replace(heads[0], tensors=tensors)
