"""The gRPC face, through its own generated client, over the real socket."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from appliance.api.grpc_server import GrpcServer
from appliance.api.proto import inference_pb2 as pb
from appliance.api.proto import model_pb2, model_pb2_grpc
from appliance.clock import monotonic_ms
from appliance.config import Grpc
from appliance.errors import ConfigError
from tests.integration.grpc_calls import (
    chat_input,
    expect_failure,
    inference,
    on_channel,
    text_input,
)
from tests.integration.stack import Stack

LONG = pb.StopOptions(max_tokens=900, ignore_eos=True)


async def _collect(
    call: grpc.aio.UnaryStreamCall[pb.GenerateStreamRequest, pb.GenerateStreamResponse],
) -> list[pb.StreamEvent]:
    return [response.event async for response in call]


def test_a_stream_begins_with_accepted_ends_with_final_and_counts_without_gaps(
    stack: Stack,
) -> None:
    async def work(channel: grpc.aio.Channel) -> list[pb.StreamEvent]:
        request = pb.GenerateStreamRequest(input=text_input("One two three"))
        return await _collect(inference(channel).GenerateStream(request))

    events = on_channel(stack.grpc_target, work)
    assert [event.seq for event in events] == list(range(len(events)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "final"
    assert kinds.count("accepted") == kinds.count("final") == 1
    tokens = [token for event in events for token in event.delta.token_ids]
    assert len(tokens) == events[-1].final.usage.completion_tokens
    ends = [e.delta.finish_reason for e in events if e.delta.finish_reason]
    assert ends == list(events[-1].final.finish_reasons)
    assert events[0].accepted.version == "demo@2"


def test_the_whole_answer_is_the_stream_put_together(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> tuple[pb.ChatResponse, list[pb.StreamEvent]]:
        stub = inference(channel)
        whole = await stub.Chat(pb.ChatRequest(input=chat_input("Hello!")))
        stream = stub.ChatStream(pb.ChatStreamRequest(input=chat_input("Hello!")))
        return whole, [response.event async for response in stream]

    whole, events = on_channel(stack.grpc_target, work)
    assert whole.choices[0].text == "".join(event.delta.text for event in events)
    streamed = [token for event in events for token in event.delta.token_ids]
    assert list(whole.choices[0].token_ids) == streamed
    assert whole.usage == events[-1].final.usage
    assert whole.timings.total_ms >= whole.timings.first_token_ms >= whole.timings.queue_ms >= 0


def test_a_seed_is_reported_and_gives_the_same_tokens_again(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> tuple[pb.GenerateResponse, pb.GenerateResponse]:
        stub = inference(channel)
        first = await stub.Generate(
            pb.GenerateRequest(input=text_input("a b c", sampling=pb.SamplingOptions()))
        )
        again = pb.SamplingOptions(seed=first.seed)
        second = await stub.Generate(pb.GenerateRequest(input=text_input("a b c", sampling=again)))
        return first, second

    first, second = on_channel(stack.grpc_target, work)
    assert first.seed == second.seed
    assert first.choices == second.choices


def test_zero_is_a_seed_and_a_temperature(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> pb.GenerateResponse:
        sampling = pb.SamplingOptions(seed=0, temperature=0)
        return await inference(channel).Generate(
            pb.GenerateRequest(input=text_input("x", sampling=sampling))
        )

    assert on_channel(stack.grpc_target, work).seed == 0


def test_logprobs_come_with_alternatives_and_their_bytes(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> pb.ChatResponse:
        output = pb.OutputOptions(top_logprobs=3)
        return await inference(channel).Chat(
            pb.ChatRequest(input=chat_input("Hello!", output=output))
        )

    choice = on_channel(stack.grpc_target, work).choices[0]
    assert [token.token_id for token in choice.logprobs] == list(choice.token_ids)
    for token in choice.logprobs:
        assert len(token.top) == 3
        assert token.logprob <= 0
        assert token.top[0].logprob == max(other.logprob for other in token.top)
        assert token.token_id == token.top[0].token_id


def test_several_choices_are_separate_and_all_end(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> pb.ChatResponse:
        sampling = pb.SamplingOptions(seed=5)
        return await inference(channel).Chat(
            pb.ChatRequest(input=chat_input("Hi", sampling=sampling, output=pb.OutputOptions(n=3)))
        )

    response = on_channel(stack.grpc_target, work)
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert all(choice.finish_reason for choice in response.choices)
    drawn = sum(len(choice.token_ids) for choice in response.choices)
    assert drawn == response.usage.completion_tokens


def test_echo_puts_the_prompt_in_front(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> pb.GenerateResponse:
        output = pb.OutputOptions(echo=True)
        return await inference(channel).Generate(
            pb.GenerateRequest(input=text_input("One two", output=output))
        )

    assert on_channel(stack.grpc_target, work).choices[0].text.startswith("One two")


def test_a_demanded_tool_call_is_made_with_valid_arguments(stack: Stack) -> None:
    tool = pb.Tool(
        name="get_weather",
        description="Weather of a city",
        parameters_json='{"type":"object","properties":{"city":{"type":"string","maxLength":9}},'
        '"required":["city"],"additionalProperties":false}',
    )
    choice = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)

    async def work(channel: grpc.aio.Channel) -> pb.ChatResponse:
        given = chat_input(
            "Weather in Paris?",
            tools=[tool],
            tool_choice=choice,
            stop=pb.StopOptions(max_tokens=120),
        )
        return await inference(channel).Chat(pb.ChatRequest(input=given))

    answer = on_channel(stack.grpc_target, work).choices[0]
    assert answer.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert [call.name for call in answer.tool_calls] == ["get_weather"]
    assert '"city"' in answer.tool_calls[0].arguments_json
    assert answer.text == ""


def test_choices_constrain_the_whole_output(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> pb.ChatResponse:
        constraint = pb.Constraint(choices=pb.Choices(texts=["maybe", "never"]))
        return await inference(channel).Chat(
            pb.ChatRequest(input=chat_input("Yes or no?", constraint=constraint))
        )

    assert on_channel(stack.grpc_target, work).choices[0].text in ("maybe", "never")


@pytest.mark.parametrize(
    ("constraint", "texts"),
    [
        (pb.Constraint(gbnf='root ::= "a" ("b" | "c")'), ("ab", "ac")),
        (pb.Constraint(lark='start: "a" %json {"enum": [1, 2]}'), ("a1", "a2")),
    ],
)
def test_a_grammar_holds_the_whole_output(
    stack: Stack, constraint: pb.Constraint, texts: tuple[str, ...]
) -> None:
    async def work(channel: grpc.aio.Channel) -> pb.ChatResponse:
        given = chat_input("Well?", constraint=constraint)
        return await inference(channel).Chat(pb.ChatRequest(input=given))

    assert on_channel(stack.grpc_target, work).choices[0].text in texts


def test_tokens_turn_back_into_their_text(stack: Stack) -> None:
    text = "Hello, 世界! 42"

    async def work(
        channel: grpc.aio.Channel,
    ) -> tuple[pb.TokenizeResponse, pb.DetokenizeResponse]:
        stub = inference(channel)
        tokens = await stub.Tokenize(pb.TokenizeRequest(model="demo", text=text))
        back = await stub.Detokenize(pb.DetokenizeRequest(model="demo", token_ids=tokens.token_ids))
        return tokens, back

    tokens, back = on_channel(stack.grpc_target, work)
    assert len(tokens.pieces) == len(tokens.token_ids)
    assert b"".join(tokens.pieces).decode() == text
    assert back.text == text
    assert back.version == tokens.version == "demo@2"


def test_cancel_request_ends_a_running_stream_with_cancelled(stack: Stack) -> None:
    given = text_input("Go on", request_id="to-cancel", stop=LONG)

    async def work(channel: grpc.aio.Channel) -> tuple[bool, bool]:
        stub = inference(channel)
        call = stub.GenerateStream(pb.GenerateStreamRequest(input=given))
        async for response in call:
            if response.event.HasField("delta"):
                break
        cancel = pb.CancelRequestRequest(request_id="to-cancel")
        found = (await stub.CancelRequest(cancel)).found
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in call:
                pass
        assert raised.value.code() is grpc.StatusCode.CANCELLED
        return found, (await stub.CancelRequest(cancel)).found

    assert on_channel(stack.grpc_target, work) == (True, False)
    stack.wait_idle()


def test_another_client_cannot_cancel_a_request(stack: Stack) -> None:
    given = text_input("Go on", request_id="not-yours", stop=LONG)

    async def over_tcp() -> bool:
        async with grpc.aio.insecure_channel(stack.grpc_tcp) as channel:
            cancel = pb.CancelRequestRequest(request_id="not-yours")
            return (await inference(channel).CancelRequest(cancel)).found

    async def work(channel: grpc.aio.Channel) -> bool:
        call = inference(channel).GenerateStream(pb.GenerateStreamRequest(input=given))
        async for response in call:
            if response.event.HasField("delta"):
                break
        found = await over_tcp()
        call.cancel()
        return found

    assert on_channel(stack.grpc_target, work) is False
    stack.wait_idle()


def test_dropping_a_call_cancels_its_request(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        call = inference(channel).GenerateStream(
            pb.GenerateStreamRequest(input=text_input("Go on", stop=LONG))
        )
        async for response in call:
            if response.event.HasField("delta"):
                break
        call.cancel()

    on_channel(stack.grpc_target, work)
    stack.wait_idle()


def test_a_request_id_in_flight_is_refused_a_second_time(stack: Stack) -> None:
    given = text_input("Go on", request_id="twice", stop=LONG)

    async def work(channel: grpc.aio.Channel) -> None:
        stub = inference(channel)
        call = stub.GenerateStream(pb.GenerateStreamRequest(input=given))
        async for response in call:
            if response.event.HasField("accepted"):
                break
        try:
            await stub.Generate(pb.GenerateRequest(input=given))
        finally:
            call.cancel()

    failure = expect_failure(stack.grpc_target, work)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.violations[0][0] == "request_id"
    stack.wait_idle()


def test_a_deadline_is_honoured_while_generating(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        request = pb.GenerateRequest(input=text_input("Go on", stop=LONG))
        await inference(channel).Generate(request, timeout=0.2)

    failure = expect_failure(stack.grpc_target, work)
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    stack.wait_idle()


def test_errors_carry_google_rpc_details(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> None:
        await inference(channel).Chat(pb.ChatRequest(input=chat_input("Hi", model="nobody")))

    failure = expect_failure(stack.grpc_target, work)
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert (failure.reason, failure.domain) == ("MODEL_NOT_SERVED", "appliance")
    assert failure.metadata == {"model": "nobody"}
    assert failure.resource == ("model", "nobody")


def test_models_are_listed_and_got_by_name_or_version(stack: Stack) -> None:
    async def work(
        channel: grpc.aio.Channel,
    ) -> tuple[model_pb2.Model, model_pb2.Model, model_pb2.Model]:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        listed = await stub.List(model_pb2.ListRequest())
        by_name = await stub.Get(model_pb2.GetRequest(model="demo"))
        by_label = await stub.Get(model_pb2.GetRequest(model="demo@2"))
        return listed.models[0], by_name.model, by_label.model

    listed, by_name, by_label = on_channel(stack.grpc_target, work)
    assert {listed.name, by_name.name, by_label.name} == {"demo"}
    assert listed.state == model_pb2.VERSION_STATE_READY
    assert listed.facts.architecture == "llama"
    assert listed.facts.vocabulary_size > 0


def test_health_is_per_model_and_unknown_names_are_not_found(stack: Stack) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING

    async def work(channel: grpc.aio.Channel) -> list[int]:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ("", "appliance.v1.InferenceService", "demo", "demo@2")
        checks = [await stub.Check(health_pb2.HealthCheckRequest(service=n)) for n in names]
        listed = await stub.List(health_pb2.HealthListRequest())
        assert set(names) - {"demo"} <= set(listed.statuses)
        return [check.status for check in checks]

    assert on_channel(stack.grpc_target, work) == [serving] * 4

    async def unknown(channel: grpc.aio.Channel) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))

    assert expect_failure(stack.grpc_target, unknown).code is grpc.StatusCode.NOT_FOUND


def test_watching_an_unknown_name_says_so_and_goes_on(stack: Stack) -> None:
    async def work(channel: grpc.aio.Channel) -> int:
        stub = health_pb2_grpc.HealthStub(channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        response = await call.read()
        assert not call.done()
        call.cancel()
        return int(response.status)

    status = on_channel(stack.grpc_target, work)
    assert status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize("service", ["grpc.reflection.v1alpha", "grpc.reflection.v1"])
def test_reflection_lists_every_service(stack: Stack, service: str) -> None:
    async def work(channel: grpc.aio.Channel) -> set[str]:
        call = channel.stream_stream(
            f"/{service}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await call.done_writing()
        response = await call.read()
        assert isinstance(response, reflection_pb2.ServerReflectionResponse)
        return {entry.name for entry in response.list_services_response.service}

    assert on_channel(stack.grpc_target, work) == {
        "appliance.v1.DeploymentService",
        "appliance.v1.InferenceService",
        "appliance.v1.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }


def test_the_socket_is_for_its_owner_and_group(stack: Stack) -> None:
    path = Path(stack.grpc_target.removeprefix("unix:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.parametrize("tcp", ["0.0.0.0:9000", "192.168.1.1:9000", "example.org:1", "127.0.0.1"])
def test_tcp_beyond_loopback_is_refused(stack: Stack, tmp_path: Path, tcp: str) -> None:
    parts = (stack.service, stack.streams, stack.adapters, stack.deployments)
    server = GrpcServer(*parts, Grpc(tcp=tcp), tmp_path, clock=monotonic_ms)

    async def start() -> None:
        try:
            await server.start()
        finally:
            await server.stop(0)

    with pytest.raises(ConfigError) as raised:
        asyncio.run(start())
    assert raised.value.key == "grpc.tcp"


def test_a_socket_somebody_answers_on_is_not_taken(stack: Stack) -> None:
    runtime_dir = Path(stack.grpc_target.removeprefix("unix:")).parent
    parts = (stack.service, stack.streams, stack.adapters, stack.deployments)
    server = GrpcServer(*parts, Grpc(), runtime_dir, clock=monotonic_ms)
    with pytest.raises(ConfigError, match="another process answers"):
        asyncio.run(server.start())
