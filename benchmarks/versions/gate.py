"""Hold damaged and genuine editions of a trained model against the gate that users are behind.

What this room does: makes a health pack from the demo model's task and its original in F16, as a
publisher does, bar included; publishes each edition with it; has each answer in a worker of its
own; asks the appliance's checks. With `--original` the same for another model, which need not know
the task.
What it knows: the pack is made before any edition is looked at, with the usual noise for the bar.
What it never does: tell the checks which edition is which.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
from gguf import LlamaFileType

from appliance import gguf, originals
from appliance.contract.release import Expectation, HealthPack
from appliance.domain import Digest, Loaded
from appliance.hub.publish import Intent
from appliance.sync.health import check, drift_of, gate
from benchmarks.bars import Bar
from benchmarks.versions import damaged
from benchmarks.versions.bench import Bench
from benchmarks.versions.desk import Desk

SUITE, OURS = "gate", "ours"
MODEL = "demo"
MODELS = Path(__file__).resolve().parents[2] / "appliance" / "models" / "demo"
ORIGINAL, SERVED = MODELS / "demo-2.f16.gguf", MODELS / "demo-2.q8_0.gguf"
PROMPTS = 32
PASS_RATIO_MIN = 0.9
_SEEDS = (1, 2, 3)
_FURTHER = "5 % noise, seeds not looked at before"
_FURTHER_SEEDS = range(201, 211)  # the noise for the bar was chosen without them
_NOISE = 0.05
_ONE, _OTHER = "blk.0.ffn_down.weight", "blk.2.ffn_down.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model: its weights before they were quantised, and what a publisher made of them."""

    original: Path
    served: Path
    knows_task: bool = True


Make = Callable[[Subject, Path], None]
_Found: TypeAlias = dict[str, float]
DEMO = Subject(original=ORIGINAL, served=SERVED)


def _noise(seed: int, share: float = _NOISE) -> Make:
    return lambda of, target: damaged.with_noise(of.served, target, share=share, seed=seed)


def _noise_on(share: float) -> Make:
    return lambda of, target: damaged.with_noise(of.original, target, share=share, seed=0)


def _quantised(kind: LlamaFileType) -> Make:
    return lambda of, target: damaged.quantised(of.original, target, kind)


REFUSED: dict[str, Make] = {
    "two tensors exchanged": lambda of, target: damaged.with_exchange(
        of.served, target, _ONE, _OTHER
    ),
    "the template of another family": lambda of, target: damaged.with_template(
        of.served, target, damaged.FOREIGN_TEMPLATE
    ),
    **{f"5 % noise, seed {seed}": _noise(seed) for seed in _SEEDS},
}
PASSED: dict[str, Make] = {
    "Q8_0 of the same weights": _quantised(LlamaFileType.MOSTLY_Q8_0),
    "Q6_K of the same weights": _quantised(LlamaFileType.MOSTLY_Q6_K),
}
# Measured and shown, held against no bar: how far is how much?
SHOWN: dict[str, Make] = {
    "Q5_K_M of the same weights": _quantised(LlamaFileType.MOSTLY_Q5_K_M),
    "Q5_K_S of the same weights": _quantised(LlamaFileType.MOSTLY_Q5_K_S),
    "Q5_0 of the same weights": _quantised(LlamaFileType.MOSTLY_Q5_0),
    "Q5_1 of the same weights": _quantised(LlamaFileType.MOSTLY_Q5_1),
    "Q4_K_M of the same weights": _quantised(LlamaFileType.MOSTLY_Q4_K_M),
    "Q4_0 of the same weights": _quantised(LlamaFileType.MOSTLY_Q4_0),
    **{f"{share:.0%} noise": _noise(1, share) for share in (0.01, 0.02, 0.03, 0.04, 0.1)},
    **{f"the original with {share:.0%} noise": _noise_on(share) for share in (0.02, 0.03, 0.04)},
    **{f"5 % noise, seed {seed}": _noise(seed) for seed in range(4, 9)},
}

BARS: tuple[Bar, ...] = (
    *(
        Bar(suite=SUITE, case=case, metric="refused", side=OURS, at_least=1.0, exact=True)
        for case in (*REFUSED, _FURTHER)
    ),
    *(
        Bar(suite=SUITE, case=case, metric="refused", side=OURS, at_most=0.0, exact=True)
        for case in PASSED
    ),
)


def measure(bench: Bench) -> None:
    """Make the pack, then have each edition checked."""
    of = DEMO if bench.original is None else _another(bench.original, bench.scratch)
    pack = health_pack(of)
    bare = msgspec.structs.replace(
        pack,
        drift_max=0.0,
        prompts=tuple(msgspec.structs.replace(one, likely=()) for one in pack.prompts),
    )
    bench.keep(
        SUITE,
        "the pack, and what measuring adds to it",
        OURS,
        0,
        drift_max_nats=pack.drift_max,
        prompts=float(len(pack.prompts)),
        added_bytes=float(len(msgspec.json.encode(pack)) - len(msgspec.json.encode(bare))),
    )
    for number in bench.rounds(1):
        _round(bench, of, pack, number)


def health_pack(of: Subject = DEMO) -> HealthPack:
    """Make a pack of chats that the model was never trained on, and measure the original on it."""
    prompts = tuple(
        Expectation(prompt=chat["messages"][0]["content"], equals=chat["expected"])
        if of.knows_task
        else Expectation(prompt=chat["messages"][0]["content"], tokens_min=1)
        for chat in map(json.loads, (MODELS / "heldout.jsonl").read_text("utf-8").splitlines())
        if len(chat["messages"]) == 1 and not chat["tools"]
    )[:PROMPTS]
    pack = HealthPack(prompts=prompts, pass_ratio_min=PASS_RATIO_MIN)
    with tempfile.TemporaryDirectory(prefix="noisy-") as scratch:
        return asyncio.run(originals.measured(of.original, pack, Path(scratch)))


def _round(bench: Bench, of: Subject, pack: HealthPack, number: int) -> None:
    desk = Desk(bench.scratch / f"gate-{number}", [MODEL])
    versions = itertools.count(1)

    def found(make: Make) -> _Found:
        path = bench.scratch / "edition.gguf"
        make(of, path)
        metrics = _checked(desk, pack, str(next(versions)), path)
        path.unlink()
        return metrics

    for case, make in (REFUSED | PASSED | ({} if bench.short else SHOWN)).items():
        bench.keep(SUITE, case, OURS, number, **found(make))
    seeds = _FURTHER_SEEDS[: 1 if bench.short else None]
    further = [found(_noise(seed)) for seed in seeds]
    bench.keep(
        SUITE,
        _FURTHER,
        OURS,
        number,
        refused=sum(one["refused"] for one in further) / len(further),
        drift_nats=statistics.mean(one["drift_nats"] for one in further),
        drift_nats_min=min(one["drift_nats"] for one in further),
        drift_nats_max=max(one["drift_nats"] for one in further),
        seeds=float(len(further)),
    )


def _another(original: Path, scratch: Path) -> Subject:
    served = scratch / "served.gguf"
    damaged.quantised(original, served, LlamaFileType.MOSTLY_Q8_0)
    return Subject(original=original, served=served, knows_task=False)


def _checked(desk: Desk, pack: HealthPack, version: str, path: Path) -> _Found:
    release = desk.publish(Intent(model=MODEL, version=version, weights=(path,), health=pack))
    answers = asyncio.run(originals.answers_of(path, release.health.prompts))
    loaded = Loaded(
        digest=Digest(f"sha256:{release.files[0].blob.sha256}"),
        load_ms=0.0,
        memory_bytes=0,
        tokenizer_sha256=gguf.tokenizer_digest(path, gguf.read_head(path)),
    )
    said = gate(release.health, release.facts, loaded, answers, ())
    right = [not check(*pair) for pair in zip(release.health.prompts, answers, strict=True)]
    found = {"refused": float(not said.ok), "right_percent": 100 * sum(right) / len(right)}
    drift = drift_of(release.health, answers)
    return found | ({"drift_nats": drift} if math.isfinite(drift) else {})  # JSON has no infinity
