"""What an operator pins is evaluated at load, for everybody, and after each restart."""

from __future__ import annotations

import asyncio
import os
import signal

from appliance.domain import ChatPrompt, Client, ClientKind, Message, RequestId, StopOptions
from appliance.runtime.router import Job
from tests.integration.bench import GREEDY, Bench, running

SYSTEM = "You are a careful assistant of a small clinic and you answer in one short sentence."


async def cached(b: Bench, client: str) -> int:
    """Ask something under the pinned prompt; tell how much of it was not evaluated."""
    messages = (
        Message(role="system", content=SYSTEM),
        Message(role="user", content=f"Hello, I am {client}."),
    )
    prepared = await b.router.prepare(b.version, ChatPrompt(messages=messages))
    stream = b.stream(
        Job(
            request_id=RequestId(client),
            prompt_ids=prepared.token_ids,
            seed=1,
            sampling=GREEDY,
            stop=StopOptions(max_tokens=2),
            client=Client(id=client, kind=ClientKind.LOOPBACK),
        )
    )
    await b.ended(stream)
    assert stream.final is not None
    return stream.final.usage.cached_tokens


def test_a_pinned_prompt_is_there_for_every_client_and_after_a_restart() -> None:
    async def run() -> None:
        async with running(pinned_systems=(SYSTEM,)) as b:
            # It is of the lowest class: what comes while it is evaluated may go before it.
            found = [await cached(b, f"first {number}") for number in range(5)]
            os.kill(b.worker_pid, signal.SIGKILL)
            await b.lost(1)
            later = [await cached(b, f"later {number}") for number in range(5)]
            assert found[-1] > 20
            assert found[-2:] == [found[-1]] * 2
            assert later[-1] == found[-1]

    asyncio.run(run())
