"""Use the official OpenAI client against a running appliance: argv is the base URL.

Runs under whichever version of the client its interpreter finds, so it knows nothing of pytest.
Every check is an assertion; the version is printed at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import openai

Client: TypeAlias = Any  # the types of 2.x and 3.x differ; what counts is what happens

CHAT = [{"role": "user", "content": "Hello!"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 9}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def check_chat(client: Client) -> None:
    """See that whole and streamed answers are the same, and that usage comes if asked for."""
    options = {"model": "demo", "messages": CHAT, "temperature": 0, "max_completion_tokens": 24}
    whole = client.chat.completions.create(**options)
    choice = whole.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.logprobs is None
    assert whole.usage is not None
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def check_logprobs(client: Client) -> None:
    """See logprobs in both shapes."""
    chat = client.chat.completions.create(
        model="demo", messages=CHAT, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
    )
    tokens = chat.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    text = client.completions.create(
        model="demo", prompt="One two", temperature=0, max_tokens=4, logprobs=2, echo=False
    )
    shown = text.choices[0].logprobs
    assert len(shown.tokens) == len(shown.text_offset) == len(shown.token_logprobs)


def check_tools(client: Client) -> None:
    """Demand a call, and send the answer back with its result."""
    messages = [{"role": "user", "content": "Weather in Oslo?"}]
    options = {"model": "demo", "tools": [TOOL], "temperature": 0, "max_tokens": 120}
    answer = client.chat.completions.create(messages=messages, tool_choice="required", **options)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert set(json.loads(call.function.arguments)) == {"city"}
    with client.chat.completions.stream(
        messages=messages, tool_choice="required", **options
    ) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.name == call.function.name
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    client.chat.completions.create(messages=messages, **options)


def check_schema(client: Client) -> None:
    """See that a schema is honoured."""
    answer = client.chat.completions.create(
        model="demo",
        messages=CHAT,
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}},
    )
    assert json.loads(answer.choices[0].message.content)["mood"] in ("good", "bad")


def check_completions(client: Client) -> None:
    """Ask for legacy completions, whole and streamed, with several prompts."""
    options = {"model": "demo", "prompt": ["One", "Two"], "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**options)
    texts = ["", ""]
    for chunk in client.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def check_errors(client: Client) -> None:
    """See that errors arrive as the client's own classes, with their fields."""
    chat = client.chat.completions.create
    missing = _refused(openai.NotFoundError, lambda: chat(model="nobody", messages=CHAT))
    assert missing.code == "model_not_found"
    cold = _refused(
        openai.BadRequestError, lambda: chat(model="demo", messages=CHAT, temperature=-1)
    )
    assert cold.param == "temperature"
    _refused(openai.BadRequestError, lambda: client.embeddings.create(model="demo", input="x"))


def _refused(kind: type[openai.APIStatusError], call: Callable[[], object]) -> Any:  # noqa: ANN401 - an APIStatusError of either version
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")


def check_models(client: Client) -> None:
    """List and retrieve models."""
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"


async def check_async(base_url: str) -> None:
    """Stream with the asynchronous client, and leave early."""
    client: Client
    async with openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=CHAT, stream=True, max_tokens=200
        )
        async for _ in stream:
            break
        await stream.close()


def main() -> None:
    """Run every check."""
    base_url = sys.argv[1]
    with openai.OpenAI(base_url=base_url, api_key="x", max_retries=0) as client:
        for check in (
            check_chat,
            check_logprobs,
            check_tools,
            check_schema,
            check_completions,
            check_errors,
            check_models,
        ):
            check(client)
    asyncio.run(check_async(base_url))
    sys.stdout.write(f"openai {openai.__version__}\n")


if __name__ == "__main__":
    main()
