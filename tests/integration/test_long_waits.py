"""What a client is told while it waits: how far its prompt has come, and when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import grpc.aio
import openai
import pytest

from appliance.api.proto import inference_pb2 as pb
from appliance.config import Engine, Limits
from tests.integration.grpc_calls import Failure, failure_of, inference, on_channel, text_input
from tests.integration.rest_calls import call, chat_body, text_body
from tests.integration.rest_calls import call as call_rest
from tests.integration.stack import Stack

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROMPT = "one two three four five " * 40
STEP_TOKENS = 32


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run an appliance that takes a long prompt in small steps, and tells of each."""
    running = Stack(
        tmp_path_factory.mktemp("slow"),
        engine=Engine(context_tokens=1024, sequences_max=16, batch_tokens=STEP_TOKENS, threads=1),
        limits=Limits(progress_ms=0),
    )
    running.start()
    yield running
    running.stop()


def test_comments_tell_how_far_a_prompt_has_come_and_clients_skip_them(slow: Stack) -> None:
    body = text_body(PROMPT, max_tokens=4, stream=True)
    answer = call(slow.rest_address, "POST", TEXT, body)
    remarks = [block for block in answer.body.decode().split("\n\n") if block.startswith(":")]
    done = [int(remark.removeprefix(": progress ").split("/")[0]) for remark in remarks]
    total = int(remarks[0].split("/")[1])
    assert len(done) >= 2
    assert done == sorted(set(done))
    assert done[-1] < total
    assert "".join(event["choices"][0]["text"] for event in answer.events)
    with openai.OpenAI(base_url=f"{slow.rest_url}/v1", api_key="none") as client:
        chunks = client.completions.create(
            model="demo", prompt=PROMPT, max_tokens=4, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == "".join(event["choices"][0]["text"] for event in answer.events)


def test_chunks_tell_it_in_llama_servers_words_to_who_asks(slow: Stack) -> None:
    options = {"include_progress": True, "include_usage": True}
    body = chat_body(PROMPT, max_tokens=4, stream=True, stream_options=options)
    answer = call(slow.rest_address, "POST", CHAT, body)
    assert b"\n\n:" not in answer.body
    told = [event for event in answer.events if "prompt_progress" in event]
    usage = answer.events[-1]["usage"]
    assert len(told) >= 2
    for event in told:
        assert event["choices"] == []
        assert event["prompt_progress"]["total"] == usage["prompt_tokens"]
    assert told[-1]["prompt_progress"]["processed"] == usage["prompt_tokens"]
    cached = {event["prompt_progress"]["cache"] for event in told}
    assert cached == {usage["prompt_tokens_details"]["cached_tokens"]}


def test_progress_over_grpc_counts_cached_tokens_as_the_usage_does(slow: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> list[pb.StreamEvent]:
        call = inference(channel).GenerateStream(pb.GenerateStreamRequest(input=text_input(PROMPT)))
        return [response.event async for response in call]

    events = on_channel(slow.grpc_target, work)
    told = [event.progress for event in events if event.HasField("progress")]
    assert len(told) >= 2
    assert {progress.cached_tokens for progress in told} == {events[-1].final.usage.cached_tokens}
    assert told[-1].prompt_tokens_done == events[-1].final.usage.prompt_tokens


def test_what_was_computed_before_is_told_as_cached(slow: Stack) -> None:
    prompt = "six seven eight nine ten " * 40
    for salt, shared in (("a", False), ("a", True), ("b", False)):
        body = text_body(
            prompt,
            max_tokens=1,
            cache_salt=salt,
            stream=True,
            stream_options={"include_progress": True, "include_usage": True},
        )
        events = call(slow.rest_address, "POST", TEXT, body).events
        usage = events[-1]["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert (cached > usage["prompt_tokens"] // 2) == shared
        assert (cached == 0) != shared
        assert events[0]["prompt_progress"]["cache"] == cached

    async def work(channel: grpc.aio.Channel) -> list[pb.StreamEvent]:
        given = text_input(prompt, cache_salt="a", user="somebody-else")
        call = inference(channel).GenerateStream(pb.GenerateStreamRequest(input=given))
        return [response.event async for response in call]

    assert on_channel(slow.grpc_target, work)[-1].final.usage.cached_tokens == 0


def test_what_would_start_past_its_deadline_is_refused_at_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    queued, begun = 40, 12
    engine = Engine(context_tokens=1024, sequences_max=1, threads=1)
    stack = Stack(tmp_path_factory.mktemp("queue"), engine=engine)
    stack.start()

    def waiting() -> int:
        return stack.router.models()[0].waiting_count

    async def ask(channel: grpc.aio.Channel, index: int) -> pb.GenerateResponse:
        stop = pb.StopOptions(max_tokens=60, ignore_eos=True)
        given = text_input(f"{index} go on", stop=stop)
        return await inference(channel).Generate(pb.GenerateRequest(input=given))

    async def work(channel: grpc.aio.Channel) -> Failure:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(ask(channel, index)) for index in range(queued)]
            await asyncio.to_thread(stack.wait_for, lambda: waiting() > queued - begun)
            await asyncio.to_thread(stack.wait_for, lambda: waiting() <= queued - begun)
            request = pb.GenerateRequest(input=text_input("late"))
            try:
                await inference(channel).Generate(request, timeout=0.1)
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
            body = text_body(timeout=0.05)
            answer = await asyncio.to_thread(call_rest, stack.rest_address, "POST", TEXT, body)
            assert (answer.status, answer.error["code"]) == (504, "DEADLINE_EXCEEDED")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-should-retry"] == "true"
            for call in calls:
                call.cancel()
        return failure

    try:
        failure = on_channel(stack.grpc_tcp, work)  # one client with REST
    finally:
        stack.stop()
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failure.metadata["phase"] == "queue"
    assert failure.retry_s is not None
    assert failure.retry_s >= 0.5


def test_a_time_limit_ends_a_request_and_is_bounded(stack: Stack) -> None:
    body = chat_body(max_tokens=900, ignore_eos=True, timeout=0.1)
    answer = call(stack.rest_address, "POST", CHAT, body)
    assert (answer.status, answer.error["code"]) == (504, "DEADLINE_EXCEEDED")
    stack.wait_idle()
    assert call(stack.rest_address, "POST", CHAT, chat_body(timeout=60)).status == 200
    for timeout in (0, -1, 3600.5):
        for path, given in (
            (CHAT, chat_body(timeout=timeout)),
            (TEXT, text_body(timeout=timeout)),
            ("/v1/embeddings", {"model": "demo", "input": "x", "timeout": timeout}),
        ):
            answer = call(stack.rest_address, "POST", path, given)
            assert (answer.status, answer.error["param"]) == (400, "timeout")
            assert "at most 3600 s" in answer.error["message"]
