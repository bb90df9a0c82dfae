"""Count what crosses the line when a version differs from the one before in a part only.

What this room does: writes two editions of a model, publishes both, fetches the first and then the
second as the appliance does, over TLS, and counts all bytes that the server sent for the second.
What it knows: what a connection costs besides the file is counted too: TLS, headers, the chunk map.
The metadata of TUF is not: some kilobytes, whatever changed.
What it never does: load a model, or tell the second fetch what to look for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader

from appliance.config import Downloads
from appliance.contract.release import Release
from appliance.hub.publish import Intent
from appliance.sync.blobs import BlobStore
from appliance.sync.download import Fetcher
from appliance.sync.holding import Holding
from appliance.sync.http_blobs import HttpBlobs
from appliance.sync.throttle import Throttle
from benchmarks.bars import Bar
from benchmarks.versions import mirror
from benchmarks.versions.bench import Bench
from benchmarks.versions.desk import Desk
from benchmarks.versions.relay import Relay
from tools.gguf_writer import Quantisation, Shape, Tensor, Vocabulary, byte_vocabulary, write_llama

SUITE, OURS = "changed", "ours"
TEMPLATE, TEMPLATE_150K = "a new chat template", "a new chat template, vocabulary of 150k"
LAYERS, TYPE, ONE_TYPE = "the last 4 of 24 layers", "another type of ffn_down", "of one tensor"
MODEL = "bench"
_TOKENS = 150_000
_DEADLINE_S = 300.0
_SHAPE = Shape(layers=24, width=1024, heads=16, kv_heads=4, feed_forward=4864, tied=True)
_SHAPE_SHORT = Shape(layers=24, width=256, heads=4, kv_heads=2, feed_forward=512, tied=True)
_LAST = re.compile(r"blk\.(2[0-3])\..*")
_DOWN = re.compile(r"blk\.\d+\.ffn_down\.weight")
_ONE = re.compile(r"blk\.5\.ffn_down\.weight")

BARS: tuple[Bar, ...] = (
    Bar(suite=SUITE, case=TEMPLATE, metric="fetched_percent", side=OURS, at_most=1.0),
    Bar(suite=SUITE, case=TEMPLATE_150K, metric="fetched_percent", side=OURS, at_most=1.0),
    Bar(suite=SUITE, case=LAYERS, metric="fetched_percent", side=OURS, at_most=20.0),
    Bar(suite=SUITE, case=TYPE, metric="fetched_per_changed", side=OURS, at_most=1.05),
    Bar(suite=SUITE, case=ONE_TYPE, metric="fetched_per_changed", side=OURS, at_most=1.05),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """How the second edition differs."""

    name: str
    changed: re.Pattern[str] | None = None
    alter: Callable[[Tensor], Tensor] | None = None
    template: str | None = None
    vocabulary: Callable[[], Vocabulary] = byte_vocabulary


def measure(bench: Bench) -> None:
    """Publish and fetch both editions of every case."""
    for number in bench.rounds(1):
        for case in _cases():
            place = bench.scratch / "changed"
            place.mkdir()
            try:
                bench.keep(SUITE, case.name, OURS, number, **_measured(case, place, bench.short))
            finally:
                shutil.rmtree(place)


def _measured(case: _Case, place: Path, short: bool) -> dict[str, float]:  # noqa: FBT001
    desk = Desk(place / "hub", [MODEL])
    shape, vocabulary = _SHAPE_SHORT if short else _SHAPE, case.vocabulary()
    releases = []
    for version in ("1", "2"):
        path, second = place / "model.gguf", version == "2"
        write_llama(
            path,
            shape,
            vocabulary,
            Quantisation.Q8_0,
            name="model",
            chat_template=case.template if second else None,
            alter=case.alter if second else None,
        )
        releases.append(desk.publish(Intent(model=MODEL, version=version, weights=(path,))))
    file_bytes = path.stat().st_size
    changed_bytes = sum(
        int(tensor.n_bytes)
        for tensor in GGUFReader(path).tensors
        if case.changed is not None and case.changed.fullmatch(tensor.name)
    )
    path.unlink()
    fetched = asyncio.run(_fetched(place, desk.directory, releases))
    found = {
        "fetched_percent": 100 * fetched / file_bytes,
        "fetched_mib": fetched / (1 << 20),
        "file_mib": file_bytes / (1 << 20),
    }
    if changed_bytes:
        found["fetched_per_changed"] = fetched / changed_bytes
    return found


async def _fetched(place: Path, served: Path, releases: list[Release]) -> int:
    """Fetch the first version, then the second; returns what the server sent for the second."""
    certificates = place / "certificates"
    settings = Downloads(free_bytes_min=0)
    store = BlobStore(place / "appliance")
    with mirror.running(served, certificates) as address:
        relay = Relay(address)
        async with relay.running() as here, asyncio.timeout(_DEADLINE_S):
            for release in releases:
                relay.received_bytes = 0
                source = HttpBlobs("hub", here, settings, tls=mirror.client_tls(certificates))
                fetcher = Fetcher(store, [source], settings, Throttle(lambda: None))
                try:
                    await Holding(store, fetcher, settings).fetch(release.files)
                finally:
                    await fetcher.close()
    return relay.received_bytes


def _cases() -> tuple[_Case, ...]:
    usual = byte_vocabulary().chat_template
    template = "{# the second edition greets first #}" + usual
    return (
        _Case(name=TEMPLATE, template=template),
        _Case(name=TEMPLATE_150K, template=template, vocabulary=_large_vocabulary),
        _Case(name=LAYERS, changed=_LAST, alter=_drawn_anew),
        _Case(name=TYPE, changed=_DOWN, alter=lambda tensor: _retyped(tensor, _DOWN)),
        _Case(name=ONE_TYPE, changed=_ONE, alter=lambda tensor: _retyped(tensor, _ONE)),
    )


def _drawn_anew(tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, seed=1) if _LAST.fullmatch(tensor.name) else tensor


def _retyped(tensor: Tensor, which: re.Pattern[str]) -> Tensor:
    if not which.fullmatch(tensor.name):
        return tensor
    return dataclasses.replace(tensor, kind=GGMLQuantizationType.Q4_0)


def _large_vocabulary() -> Vocabulary:
    """Make a tokenizer as large as those of large models, in tokens and in bytes."""
    small = byte_vocabulary()
    fields = []
    for field in small.fields:
        value = field.value
        if isinstance(value, list):
            more = _TOKENS - small.size
            added = {
                "tokenizer.ggml.tokens": (f"word{n:06d}" for n in range(more)),
                "tokenizer.ggml.token_type": (1 for _ in range(more)),
                "tokenizer.ggml.merges": (f"word{n // 7:06d} {n % 97:02d}" for n in range(more)),
            }[field.key]
            field = dataclasses.replace(field, value=[*value, *added])  # noqa: PLW2901
        fields.append(field)
    return dataclasses.replace(small, size=_TOKENS, fields=tuple(fields))
