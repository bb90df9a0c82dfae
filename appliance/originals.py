"""Ask a model file of a publisher's own, and keep what its answers tell of it for a health pack.

What this room does: loads a file in a worker of its own and asks it, greedily; writes down what was
likely at each token (`Expectation.likely`), so that an appliance can tell how far a candidate lies
from this original; and measures how far a known damage takes the original, which is the bar.
What it knows: the engine that asks here is the one that asks there, so that a distance is of the
weights. A pack holds the five likeliest of the first tokens: of four, a few answers decide.
What it never does: sign, judge, or leave a worker behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.config import Engine, Hosting, Limits, Model
from appliance.contract.release import LIKELY_TOKENS_MAX, Expectation, HealthPack, Likely
from appliance.domain import Answer, Digest, ModelVersion, Origin
from appliance.errors import ApplianceError
from appliance.hub.noise import with_noise
from appliance.observe.metrics import Metrics
from appliance.runtime.host import Host
from appliance.runtime.router import Router
from appliance.runtime.standby import Standbys
from appliance.sync.health import drift_of

LIKELY_COUNT = 5
NOISE_USUAL = 0.03  # of each matrix's standard deviation; see docs/adr/0023
_DIGITS = 4
_DRIFT_MIN = 10.0**-_DIGITS  # 0 would ask for nothing
_SERIES_MAX = 256
_VERSION = ModelVersion(
    model="original",
    version="0",
    digest=Digest(f"sha256:{0:064x}"),
    blob_bytes=1,
    origin=Origin.LOCAL,
    key_id="publisher",
    signature="",
)


async def answers_of(
    path: Path, prompts: Sequence[Expectation], engine: Engine | None = None
) -> tuple[Answer, ...]:
    """Have a file answer prompts, one after another, with the log-probabilities of its tokens.

    Raises:
        ApplianceError: it can't be loaded, or could not answer.
    """
    engine, limits = engine or Engine(), Limits()
    hosting = Hosting(spare_worker=False, standby_level="h0")
    metrics = Metrics(version=_VERSION.version, series_max=_SERIES_MAX)
    router = Router(engine, limits, metrics, hosting=hosting)
    standbys = Standbys(router, hosting, metrics)
    host = Host(router, standbys, (), hosting, limits=limits, memory_reserve_bytes=0)
    size = (await asyncio.to_thread(path.stat)).st_size
    version = msgspec.structs.replace(_VERSION, blob_bytes=size)
    failure: ApplianceError | None = None
    answers: list[Answer] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(router.run())
        try:
            await router.serve(version, path, Model(path=str(path)))
            answers += [
                await host.ask(version.digest, prompt, has_logprobs=True) for prompt in prompts
            ]
        except ApplianceError as error:  # here, for a group would wrap it
            failure = error
        finally:
            await router.close()
    if failure is not None:
        raise failure
    return tuple(answers)


async def measured(
    original: Path, pack: HealthPack, scratch: Path, *, noise: float = NOISE_USUAL
) -> HealthPack:
    """Write into a pack what the original finds likely, and how far `noise` takes it: the bar.

    noise: a share of each matrix's standard deviation. scratch: a directory with room for a copy of
    the original while this lasts; 0.0 needs none, and gives a pack without a bar.

    Raises:
        ApplianceError: it can't be loaded, or could not answer; or its matrices are quantised.
        DocumentRefused: so much noise leaves nothing to compare.
    """
    answers = await answers_of(original, pack.prompts)
    prompts = tuple(
        msgspec.structs.replace(prompt, likely=_likely(answer))
        for prompt, answer in zip(pack.prompts, answers, strict=True)
    )
    pack = msgspec.structs.replace(pack, prompts=prompts, drift_max=0.0)
    if not noise:
        return pack
    noisy = scratch / "noisy.gguf"
    await asyncio.to_thread(with_noise, original, noisy, share=noise)
    found = drift_of(pack, await answers_of(noisy, prompts))
    noisy.unlink()
    return msgspec.structs.replace(pack, drift_max=max(_DRIFT_MIN, round(found, _DIGITS)))


def _likely(answer: Answer) -> tuple[Likely, ...]:
    return tuple(
        Likely(
            ids=tuple(token_id for token_id, _, _ in token.top[:LIKELY_COUNT]),
            logprobs=tuple(
                min(0.0, round(logprob, _DIGITS)) for _, _, logprob in token.top[:LIKELY_COUNT]
            ),
        )
        for token in answer.logprobs[:LIKELY_TOKENS_MAX]
    )
