"""Be the users of the demonstration: ask all the time, and count who answered.

What this room does: some users who ask one thing after another; what came of it, by version.
What it knows: a trial sends some users to the candidate and not the others, so there are several.
What it never does: know that versions change.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator

from appliance import domain
from appliance.cli.client import Client
from appliance.cli.exits import CommandFailed
from appliance.clock import monotonic_ms
from appliance.domain import ChatPrompt, GenerateRequest, Message, SamplingOptions, StopOptions

PROMPTS = (
    "Olivia sold a white phone in Rome. What colour is the phone?",
    "12 m in cm?",
    "Is this review positive, negative or neutral? The kettle is superb. I love it.",
    "3 min是多少s？",
    "What is 38 + 47?",
)
USERS = 12
ANSWER_TOKENS_MAX = 48
PAUSE_S = 0.15


class Answer:
    """One answer: its text, who gave it, and how long it took to be accepted."""

    def __init__(self) -> None:
        self.text = ""
        self.version = ""
        self.accepted_ms = 0.0


class Users:
    """Users who ask until the block is left. failures: why requests failed."""

    def __init__(self, client: Client) -> None:
        """Ask by `client`."""
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self._client = client
        self._enough = asyncio.Event()

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Have every user ask until the block is left; what is being answered ends first."""
        failed: CommandFailed | None = None
        async with asyncio.TaskGroup() as group:
            for number in range(USERS):
                group.create_task(self._ask_on(number))
            try:
                yield
            except CommandFailed as failure:
                failed = failure
            finally:
                self._enough.set()
        if failed is not None:
            raise failed

    async def _ask_on(self, number: int) -> None:
        for prompt in itertools.cycle(PROMPTS[number % len(PROMPTS) :] + PROMPTS):
            try:
                answer = await ask(self._client, prompt, user=f"user-{number}")
                self.answered[answer.version] += 1
            except CommandFailed as failure:
                self.failures.append(failure.sentence)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_S):
                    await self._enough.wait()
            if self._enough.is_set():
                return


async def ask(client: Client, prompt: str, user: str) -> Answer:
    """Ask one thing, greedily. Raises CallFailed."""
    request = GenerateRequest(
        request_id=domain.RequestId(""),
        model="",
        prompt=ChatPrompt(messages=(Message(role="user", content=prompt),)),
        sampling=SamplingOptions(temperature=0.0),
        stop=StopOptions(max_tokens=ANSWER_TOKENS_MAX),
    )
    answer, sent_ms = Answer(), monotonic_ms()
    async for event in client.stream(request, user):
        if isinstance(event, domain.Accepted):
            answer.version = event.version
            answer.accepted_ms = monotonic_ms() - sent_ms
        elif isinstance(event, domain.Delta):
            answer.text += event.text
    return answer
