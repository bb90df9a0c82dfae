"""API keys, users and classes, through both faces of an appliance that requires keys."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import grpc.aio
import openai
import pytest

from appliance.access.keys import new_key
from appliance.api.proto import inference_pb2 as pb
from appliance.config import Access, Client
from appliance.domain import ModelVersion
from appliance.runtime.tickets import Job, Ticket
from tests.integration.grpc_calls import (
    chat_input,
    expect_failure,
    inference,
    on_channel,
    text_input,
)
from tests.integration.rest_calls import Answer, call, chat_body, text_body
from tests.integration.stack import Stack

KEY, DIGEST = new_key()
BATCH_KEY, BATCH_DIGEST = new_key()
CLIENTS = (
    Client(name="billing", key_sha256=DIGEST, weight=2.0),
    Client(name="nightly", key_sha256=BATCH_DIGEST, priority_max="batch"),
)
CHAT = "/v1/chat/completions"
LONG = pb.StopOptions(max_tokens=900, ignore_eos=True)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run an appliance whose TCP listeners need a key."""
    running = Stack(
        tmp_path_factory.mktemp("locked"), access=Access(require_key=True), clients=CLIENTS
    )
    running.start()
    yield running
    running.stop()


def _with(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _rest(stack: Stack, body: object, key: str = "", path: str = CHAT) -> Answer:
    return call(stack.rest_address, "POST", path, body, _with(key) if key else {})


def _jobs(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Watch what the router is asked for."""
    seen: list[Job] = []
    admit = stack.router.admit

    def noting(version: ModelVersion, job: Job, *, again: bool = False) -> Ticket:
        seen.append(job)
        return admit(version, job, again=again)

    monkeypatch.setattr(stack.router, "admit", noting)
    return seen


@pytest.mark.parametrize("key", ["", "wrong"])
def test_rest_needs_a_key_and_says_how(locked: Stack, key: str) -> None:
    refused = [
        _rest(locked, chat_body(), key),
        _rest(locked, b"not even JSON", key),
        call(locked.rest_address, "GET", "/v1/models", None, _with(key) if key else {}),
        call(locked.rest_address, "GET", "/metrics", None, _with(key) if key else {}),
    ]
    for answer in refused:
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    for page in ("/healthz", "/readyz"):
        assert call(locked.rest_address, "GET", page).status == 200
    assert _rest(locked, chat_body(), KEY).status == 200


def test_grpc_over_tcp_needs_a_key_and_the_socket_does_not(locked: Stack) -> None:
    async def ask(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> pb.ChatResponse:
        request = pb.ChatRequest(input=chat_input("Hi"))
        return await inference(channel).Chat(request, metadata=metadata)

    failure = expect_failure(locked.grpc_tcp, ask)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    wrong = ("authorization", "Bearer wrong")
    for target in (locked.grpc_tcp, locked.grpc_target):
        failure = expect_failure(target, lambda channel: ask(channel, wrong))
        assert failure.code is grpc.StatusCode.UNAUTHENTICATED
    right = ("authorization", f"Bearer {KEY}")
    assert on_channel(locked.grpc_tcp, lambda channel: ask(channel, right)).choices
    assert on_channel(locked.grpc_target, ask).choices


def test_openais_own_client_brings_its_key(locked: Stack) -> None:
    with openai.OpenAI(base_url=f"{locked.rest_url}/v1", api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == "demo"
    with (
        openai.OpenAI(base_url=f"{locked.rest_url}/v1", api_key="no", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_class_above_the_keys_highest_is_refused_and_none_named_is_its_own(
    locked: Stack,
) -> None:
    answer = _rest(locked, chat_body(priority="normal"), BATCH_KEY)
    assert (answer.status, answer.error["code"]) == (403, "PERMISSION_DENIED")
    assert answer.error["message"] == "'nightly' may not prioritise 'normal'"
    own = _rest(locked, chat_body(service_tier="auto"), BATCH_KEY)
    assert (own.status, own.json["service_tier"]) == (200, "flex")

    async def ask(channel: grpc.aio.Channel) -> pb.ChatResponse:
        request = pb.ChatRequest(input=chat_input("Hi", priority=pb.PRIORITY_INTERACTIVE))
        metadata = (("authorization", f"Bearer {BATCH_KEY}"),)
        return await inference(channel).Chat(request, metadata=metadata)

    failure = expect_failure(locked.grpc_tcp, ask)
    assert failure.code is grpc.StatusCode.PERMISSION_DENIED
    assert failure.metadata["object"] == "interactive"


def test_client_weight_class_and_salt_reach_the_worker(
    locked: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _jobs(locked, monkeypatch)
    body = text_body(priority="batch", cache_salt="s", user="ann")
    assert _rest(locked, body, KEY, "/v1/completions").status == 200

    async def ask(channel: grpc.aio.Channel) -> pb.StreamEvent:
        given = text_input("Hi", priority=pb.PRIORITY_INTERACTIVE, cache_salt="s", user="ann")
        stub = inference(channel)
        events = [
            response.event
            async for response in stub.GenerateStream(pb.GenerateStreamRequest(input=given))
        ]
        return events[0]

    assert on_channel(locked.grpc_target, ask).accepted.priority == pb.PRIORITY_INTERACTIVE
    rest, over_grpc = (
        (job.client.id, job.client.user, job.client.weight, job.priority.value, job.cache_salt)
        for job in jobs
        if job.client is not None
    )
    assert rest == ("billing", "ann", 2.0, "batch", "s")
    assert over_grpc == ("local/ann", "", 1.0, "interactive", "s")


def test_a_tier_is_said_back_whole_and_streamed(stack: Stack) -> None:
    for given, said in (("priority", "priority"), ("auto", "default"), ("flex", "flex")):
        whole = _rest(stack, chat_body(service_tier=given, max_tokens=1))
        assert whole.json["service_tier"] == said
        streamed = _rest(stack, chat_body(service_tier=given, max_tokens=1, stream=True))
        assert {event["service_tier"] for event in streamed.events} == {said}
    assert "service_tier" not in _rest(stack, chat_body(max_tokens=1)).json


def test_a_user_cancels_only_what_is_its_own(stack: Stack) -> None:
    given = text_input("Go on", request_id="of-ann", stop=LONG, user="ann")

    async def work(channel: grpc.aio.Channel) -> list[bool]:
        stub = inference(channel)
        call = stub.GenerateStream(pb.GenerateStreamRequest(input=given))
        async for response in call:
            if response.event.HasField("delta"):
                break
        found = []
        for user in ("", "bob", "ann"):
            cancel = pb.CancelRequestRequest(request_id="of-ann", user=user)
            found.append((await stub.CancelRequest(cancel)).found)
        return found

    assert on_channel(stack.grpc_target, work) == [False, False, True]
    stack.wait_idle()


def test_a_user_or_class_that_is_none_is_refused_by_both_faces(stack: Stack) -> None:
    answer = _rest(stack, chat_body(user="a b"))
    assert (answer.status, answer.error["param"]) == (400, "user")
    embedding = {"model": "demo", "input": "x", "user": "a b"}
    assert _rest(stack, embedding, path="/v1/embeddings").error["param"] == "user"

    async def ask(channel: grpc.aio.Channel, **members: object) -> pb.ChatResponse:
        return await inference(channel).Chat(pb.ChatRequest(input=chat_input("Hi", **members)))

    failure = expect_failure(stack.grpc_target, lambda channel: ask(channel, user="a b"))
    assert failure.violations[0][0] == "user"
    failure = expect_failure(stack.grpc_target, lambda channel: ask(channel, priority=9))
    assert failure.violations == (("priority", "9 is not a class"),)


def test_a_wrong_key_stands_in_the_audit(locked: Stack) -> None:
    assert _rest(locked, chat_body(), "wrong").status == 401
    rows = locked.audited("authenticate")
    assert ("loopback", "*", "UNAUTHENTICATED") in rows
