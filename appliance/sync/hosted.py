"""Lay a verified version out as its worker opens it: a directory of links under its files' names.

What this room does: `HEX/NAME` for each file of the preferred edition, pointing to its blob; takes
away the links of versions that are not needed any more.
What it knows: llama.cpp finds the parts of split weights by their names, side by side; blobs are
named by their content. Links can be made again at any time, so nothing here needs to be durable.
What it never does: write into a blob, or leave a directory half made under its name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from appliance.contract.release import FileRole
from appliance.domain import Digest, HostedAdapter, HostedVersion, ModelVersion, Origin
from appliance.sync.host import Offer
from appliance.sync.space import disk

_PREFIX = "sha256:"


def laid_out(root: Path, offer: Offer, path_of: Callable[[str], str]) -> HostedVersion:
    """Make the links of a version below `root`, and say what its worker loads. Blocks.

    Links that are right already stay: a version can be served from a disk that is full.

    Raises:
        DiskFull, DiskRefused: they can't be made.
    """
    release = offer.release
    files = offer.files
    directory = root / offer.digest.removeprefix(_PREFIX)
    links = {file.name: path_of(file.blob.sha256) for file in files}
    if _links(directory) != links:
        _link(directory, links)
    version = ModelVersion(
        model=release.model,
        version=release.version,
        digest=offer.digest,
        blob_bytes=sum(file.blob.length for file in files),
        origin=Origin.HUB,
        key_id=offer.publisher,
        signature="",
    )
    return HostedVersion(
        version=version,
        weights=tuple(
            str(directory / file.name) for file in files if file.role is FileRole.WEIGHTS
        ),
        adapters={
            file.adapter_name: HostedAdapter(
                path=str(directory / file.name), digest=Digest(f"{_PREFIX}{file.blob.sha256}")
            )
            for file in files
            if file.role is FileRole.ADAPTER
        },
        memory_bytes=offer.needed_bytes if release.needs.memory_bytes else 0,
    )


def let_go(root: Path, kept: Collection[Digest]) -> None:
    """Take away what is laid out below `root` of all versions but these. Blocks.

    Call while none of the others is being laid out. Who has opened a file keeps it.

    Raises:
        DiskRefused: the disk does not want to; some may be gone.
    """
    names = {digest.removeprefix(_PREFIX) for digest in kept}
    with disk(root):
        if root.is_dir():
            for entry in root.iterdir():
                if entry.name not in names:
                    shutil.rmtree(entry)


def _links(directory: Path) -> dict[str, str]:
    """Read the links of a directory; none where it can't be read, or holds anything else."""
    try:
        return {entry.name: str(entry.readlink()) for entry in directory.iterdir()}
    except OSError:
        return {}


def _link(directory: Path, links: dict[str, str]) -> None:
    fresh = directory.with_name(f".{directory.name}.{os.getpid()}")
    with disk(directory.parent):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(fresh)
        fresh.mkdir(parents=True)
        for name, target in links.items():
            (fresh / name).symlink_to(target)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
        fresh.rename(directory)
