"""The rules of the load: distinct prompts from a seed, every token timed, a refusal is an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from benchmarks.load import Load, prompts, run

WORDS = ("one", " two", " three")


def load(target: str = "", **changes: Any) -> Load:  # noqa: ANN401 - fields of Load
    fields: dict[str, Any] = {
        "way": "rest",
        "target": target,
        "streams": 2,
        "requests": 3,
        "prompt_tokens": 16,
        "output_tokens": len(WORDS),
        "first_token_id": 300,
        "last_token_id": 31_000,
        "seed": 5,
        "timeout_s": 30.0,
        "extra": {"cache_prompt": False},
    }
    return Load(**(fields | changes))


@asynccontextmanager
async def server(status: int, asked: list[dict[str, Any]]) -> AsyncIterator[str]:
    """Answer like llama-server: one event for each word, usage in the last, then [DONE]."""

    async def complete(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        if status != 200:
            return web.json_response({"error": {"message": "no"}}, status=status)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for word in WORDS:
            event = {"choices": [{"text": word}]}
            await answer.write(f"data: {json.dumps(event)}\n\n".encode())
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


def test_every_request_is_sent_once_and_every_token_counted() -> None:
    async def scenario() -> None:
        asked: list[dict[str, Any]] = []
        async with server(200, asked) as target:
            report = await run(load(target))
        assert sorted(body["prompt"] for body in asked) == sorted(prompts(load()))
        assert all(body["cache_prompt"] is False and body["ignore_eos"] for body in asked)
        assert report.output_tokens == 6 * len(WORDS)
        assert len(report.first_token_ms) == len(report.request_ms) == 6
        assert len(report.gap_ms) == 6 * (len(WORDS) - 1)
        assert min(report.gap_ms) >= 0

    asyncio.run(scenario())


def test_a_refusal_ends_the_load_with_what_the_server_said() -> None:
    async def scenario() -> None:
        async with server(429, []) as target:
            await run(load(target))

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(scenario())
    assert "429" in str(caught.value.exceptions[0])
