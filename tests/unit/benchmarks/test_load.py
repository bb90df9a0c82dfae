"""The rules of the load: distinct prompts from a seed, every token timed, a refusal is an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from benchmarks.load import run, run_here, run_load
from benchmarks.traffic import Load, Part, RefusedError, asked

WORDS = ("one", " two", " three")


def part(**changes: Any) -> Part:  # noqa: ANN401 - fields of Part
    fields: dict[str, Any] = {
        "streams": 2,
        "requests": 3,
        "prompt_tokens": 16,
        "output_tokens": len(WORDS),
    }
    return Part(**(fields | changes))


def load(*parts: Part, target: str = "", seed: int = 5, may_fail: bool = False) -> Load:
    return Load(
        way="rest",
        target=target,
        parts=parts or (part(),),
        first_token_id=300,
        last_token_id=31_000,
        seed=seed,
        timeout_s=30.0,
        may_fail=may_fail,
        extra={"cache_prompt": False},
    )


def prompts(one: Load) -> list[list[int]]:
    """List the token ids of every request of a load."""
    streams = [stream for part in asked(one).values() for stream in part]
    return [request.token_ids for stream in streams for request in stream]


@asynccontextmanager
async def server(
    status: int, received: list[dict[str, Any]], *, endless: bool = False
) -> AsyncIterator[str]:
    """Answer like llama-server: one event for each word, usage in the last, then [DONE].

    `endless`: a prompt of 8 tokens gets words until its client goes.
    """

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        received.append(body)
        if status != 200:
            return web.json_response({"error": {"message": "no"}}, status=status)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for word in WORDS:
            event = {"choices": [{"text": word, "finish_reason": None}]}
            await answer.write(f"data: {json.dumps(event)}\n\n".encode())
        while endless and len(body["prompt"]) == 8 and request.transport:
            await answer.write(b'data: {"choices": [{"text": "more"}]}\n\n')
            await asyncio.sleep(0.001)
        end = {"choices": [{"text": "", "finish_reason": "length"}]}
        await answer.write(f"data: {json.dumps(end)}\n\n".encode())
        last = {"choices": [], "usage": {"completion_tokens": len(WORDS)}}
        await answer.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
        return answer

    application = web.Application()
    application.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def test_prompts_differ_from_each_other_and_repeat_with_the_seed() -> None:
    drawn = prompts(load())
    assert drawn == prompts(load())
    assert drawn != prompts(load(seed=6))
    assert len({tuple(prompt) for prompt in drawn}) == 6
    assert all(300 <= token <= 31_000 for prompt in drawn for token in prompt)


def test_a_shared_prefix_is_shared_by_all_requests_of_its_part_and_differs_by_seed() -> None:
    shared = part(shared_tokens=12)
    drawn = prompts(load(shared, part(name="other")))
    assert {tuple(prompt[:12]) for prompt in drawn[:6]} == {tuple(drawn[0][:12])}
    assert len({tuple(prompt) for prompt in drawn}) == 12
    assert drawn[0][:12] != prompts(load(shared, seed=6))[0][:12]
    assert all(len(prompt) == 16 for prompt in drawn)


def test_every_request_is_sent_once_and_every_token_counted() -> None:
    async def scenario() -> None:
        received: list[dict[str, Any]] = []
        async with server(200, received) as target:
            report = await run(load(target=target))
        assert sorted(body["prompt"] for body in received) == sorted(prompts(load()))
        assert all(body["cache_prompt"] is False and body["ignore_eos"] for body in received)
        assert [one.output_tokens for one in report.requests] == [len(WORDS)] * 6
        assert all(one.is_whole and one.text == "one two three" for one in report.requests)
        assert all(len(one.arrivals_s) == len(WORDS) for one in report.requests)
        assert all(one.total_s >= one.arrivals_s[-1] for one in report.requests)

    asyncio.run(scenario())


def test_a_part_begins_after_another_ones_tokens_and_ends_with_another_part() -> None:
    async def scenario() -> None:
        running = part(name="running", streams=1, requests=1, prompt_tokens=8, until="newcomer")
        newcomer = part(name="newcomer", streams=1, requests=2, after="running", after_tokens=6)
        async with server(200, [], endless=True) as target:
            report = await run(load(running, newcomer, target=target))
        (first,) = report.of("running")
        assert not first.is_whole
        assert first.sent_s + first.arrivals_s[5] <= report.of("newcomer")[0].sent_s
        assert all(one.is_whole for one in report.of("newcomer"))

    asyncio.run(scenario())


def test_a_request_is_broken_off_in_time_and_the_load_goes_on() -> None:
    async def scenario() -> None:
        hasty = part(streams=1, requests=2, prompt_tokens=8, within_s=0.05)
        async with server(200, [], endless=True) as target:
            report = await run(load(hasty, target=target))
        assert [one.is_whole for one in report.requests] == [False, False]
        assert all(one.arrivals_s and not one.error for one in report.requests)

    asyncio.run(scenario())


def test_a_refusal_ends_the_load_with_what_the_server_said() -> None:
    async def scenario() -> None:
        async with server(429, []) as target:
            await run(load(target=target))

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(scenario())
    assert caught.group_contains(RefusedError, match="429")


def test_a_refusal_is_an_answer_where_requests_may_fail() -> None:
    async def scenario() -> None:
        async with server(429, []) as target:
            report = await run(load(target=target, may_fail=True))
        assert len(report.requests) == 6
        assert all("429" in one.error and not one.is_whole for one in report.requests)

    asyncio.run(scenario())


def test_a_load_that_fails_says_why_wherever_it_ran() -> None:
    nobody = load(part(streams=1, requests=1), target="http://127.0.0.1:9")
    for place in (run_load, run_here):
        with pytest.raises(RuntimeError, match="ClientConnectorError"):
            place(nobody)
