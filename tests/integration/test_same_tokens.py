"""The same request gives the same tokens, whichever face it comes through."""

from __future__ import annotations

import grpc.aio
import pytest

from appliance.api.proto import inference_pb2 as pb
from tests.integration.grpc_calls import inference, on_channel
from tests.integration.rest_calls import call
from tests.integration.stack import Stack

PROMPT = "Extract the entities: Anna Weber flew from Berlin to Oslo on Monday."
OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 0},
    {"temperature": 1.3, "seed": 11, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.9, "seed": 2**53 - 1, "repeat_penalty": 1.1, "presence_penalty": 0.4},
    {"temperature": 0.8, "seed": 3, "typical_p": 0.95, "frequency_penalty": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_chat_over_grpc_and_rest(stack: Stack, options: dict[str, float]) -> None:
    async def over_grpc(channel: grpc.aio.Channel) -> pb.ChatResponse:
        given = pb.ChatInput(
            model="demo",
            messages=[pb.Message(role=pb.Message.ROLE_USER, content=PROMPT)],
            sampling=pb.SamplingOptions(**options),  # type: ignore[arg-type]
            stop=pb.StopOptions(max_tokens=48),
            output=pb.OutputOptions(n=2, top_logprobs=0),
        )
        return await inference(channel).Chat(pb.ChatRequest(input=given))

    grpc_answer = on_channel(stack.grpc_target, over_grpc)
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 48,
        "n": 2,
        "logprobs": True,
        **options,
    }
    rest_answer = call(stack.rest_address, "POST", "/v1/chat/completions", body).json
    for ours, theirs in zip(grpc_answer.choices, rest_answer["choices"], strict=True):
        assert ours.text == theirs["message"]["content"]
        tokens = [bytes(token["bytes"]) for token in theirs["logprobs"]["content"]]
        assert [token.text for token in ours.logprobs] == tokens
    assert grpc_answer.usage.completion_tokens == rest_answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_text_over_grpc_and_rest(stack: Stack, options: dict[str, float]) -> None:
    async def over_grpc(channel: grpc.aio.Channel) -> str:
        given = pb.GenerateInput(
            model="demo",
            text=PROMPT,
            sampling=pb.SamplingOptions(**options),  # type: ignore[arg-type]
            stop=pb.StopOptions(max_tokens=48, ignore_eos=True),
        )
        answer = await inference(channel).Generate(pb.GenerateRequest(input=given))
        return answer.choices[0].text

    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 48, "ignore_eos": True, **options}
    rest_answer = call(stack.rest_address, "POST", "/v1/completions", body).json
    assert on_channel(stack.grpc_target, over_grpc) == rest_answer["choices"][0]["text"]
