"""Read the files of a version: editions of weights, whole or split, and adapters.

What this room does: finds the parts of a split model, checks every file and that the parts belong
together, sorts files into editions by their quantisation.
What it knows: llama.cpp's names of parts: NAME-00001-of-00003.gguf.
What it never does: write, hash or copy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.contract.release import FILES_MAX
from appliance.errors import PublishRefused
from appliance.gguf import GgufFault, GgufHead, check_file, check_split, quantisation

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class Edition(msgspec.Struct, frozen=True, kw_only=True):
    """The weights in one quantisation: one file, or the parts of a split one in their order."""

    quantisation: str
    paths: tuple[Path, ...]
    heads: tuple[GgufHead, ...]


def read_editions(paths: Sequence[Path]) -> tuple[Edition, ...]:
    """Read the weights of every edition, the preferred one first; blocks on the disk.

    Raises:
        PublishRefused: a file is not whole, a part is missing, or two editions are the same.
    """
    if not paths:
        raise PublishRefused(what="weights", reason="no file is given")
    editions: dict[str, Edition] = {}
    taken: set[Path] = set()
    for path in paths:
        if path in taken:
            continue
        parts = _parts(path)
        taken.update(parts)
        edition = _edition(parts)
        if edition.quantisation in editions:
            reason = f"there is an edition in {edition.quantisation} already"
            raise PublishRefused(what=str(path), reason=reason)
        editions[edition.quantisation] = edition
    if len(taken) > FILES_MAX:
        raise PublishRefused(what="weights", reason=f"more than {FILES_MAX} files")
    return tuple(editions.values())


def read_adapter(path: Path, model: GgufHead) -> GgufHead:
    """Read an adapter for a model; blocks on the disk.

    Raises:
        PublishRefused: it is not whole, no LoRA adapter, or for another architecture.
    """
    head = _checked(path)
    kinds = head.metadata.get("general.type"), head.metadata.get("adapter.type")
    if kinds != ("adapter", "lora"):
        raise PublishRefused(what=str(path), reason="is no LoRA adapter")
    if head.architecture != model.architecture:
        reason = f"is for {head.architecture}, and the model is {model.architecture}"
        raise PublishRefused(what=str(path), reason=reason)
    return head


def _edition(paths: tuple[Path, ...]) -> Edition:
    heads = tuple(_checked(path) for path in paths)
    try:
        check_split(heads)
    except GgufFault as fault:
        raise PublishRefused(what=str(paths[0]), reason=str(fault)) from fault
    if heads[0].metadata.get("general.type", "model") != "model":
        raise PublishRefused(what=str(paths[0]), reason="holds no model; is it an adapter?")
    return Edition(quantisation=quantisation(heads[0]), paths=paths, heads=heads)


def _parts(path: Path) -> tuple[Path, ...]:
    """Find the other parts beside a part of a split model."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= count <= FILES_MAX:
        raise PublishRefused(what=str(path), reason=f"at most {FILES_MAX} parts are possible")
    names = (f"{match['stem']}-{n:05d}-of-{match['count']}.gguf" for n in range(1, count + 1))
    return tuple(path.with_name(name) for name in names)


def _checked(path: Path) -> GgufHead:
    try:
        return check_file(path)
    except GgufFault as fault:
        raise PublishRefused(what=str(path), reason=str(fault)) from fault
