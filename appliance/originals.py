"""Ask a model file of a publisher's own, and keep what its answers tell of it for a health pack.

What this room does: loads a file in a worker of its own and asks it, greedily; writes down what was
likely at each token (`Expectation.likely`), so that an appliance can tell how far a candidate lies
from this original.
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
from appliance.observe.metrics import Metrics
from appliance.runtime.host import Host
from appliance.runtime.router import Router
from appliance.runtime.standby import Standbys

LIKELY_COUNT = 5
DRIFT_USUAL = 0.16  # nats; see docs/adr/0023
_DIGITS = 4
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


def measured(pack: HealthPack, answers: Sequence[Answer], drift_max: float) -> HealthPack:
    """Write into a pack what was likely in the original's answers, and how far off one may be.

    Raises:
        DocumentRefused: `drift_max` is out of bounds.
    """
    prompts = tuple(
        msgspec.structs.replace(prompt, likely=_likely(answer))
        for prompt, answer in zip(pack.prompts, answers, strict=True)
    )
    return msgspec.structs.replace(pack, prompts=prompts, drift_max=drift_max)


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
