"""Streams whose connection is cut, and that go on elsewhere without a gap or a duplicate."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import grpc.aio
import openai
import psutil
import pytest

from appliance.access.keys import new_key
from appliance.api.proto import inference_pb2 as pb
from appliance.config import Client, Limits
from tests.integration.daemons import RunningDaemon
from tests.integration.grpc_calls import (
    Failure,
    chat_input,
    expect_failure,
    inference,
    on_channel,
    text_input,
)
from tests.integration.rest_calls import READ_BYTES, Answer, call, chat_body, text_body
from tests.integration.stack import Stack

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KEY, DIGEST = new_key()
OTHER_KEY, OTHER_DIGEST = new_key()
PROMPT = "Once upon a time"
TOKENS = 120
DRAWN = pb.SamplingOptions(temperature=1.0, seed=7)
LONG = pb.StopOptions(max_tokens=TOKENS, ignore_eos=True)
RESUMABLE = {"resumable": True}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run an appliance with two clients."""
    clients = (
        Client(name="ann", key_sha256=DIGEST),
        Client(name="bob", key_sha256=OTHER_DIGEST),
    )
    running = Stack(tmp_path_factory.mktemp("room"), clients=clients)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run an appliance that keeps little, and not for long."""
    running = Stack(tmp_path_factory.mktemp("brief"), limits=Limits(resume_s=0.3, resume_events=64))
    running.start()
    yield running
    running.stop()


# --- gRPC -----------------------------------------------------------------------------------------


def _text(request_id: str, **options: object) -> pb.GenerateInput:
    given = {"sampling": DRAWN, "stop": LONG, "resumable": True, **options}
    return text_input(PROMPT, request_id=request_id, **given)


def _part(target: str, given: pb.GenerateInput, events: int) -> list[pb.StreamEvent]:
    """Read the first events of a stream over a connection that then is closed."""

    async def work(channel: grpc.aio.Channel) -> list[pb.StreamEvent]:
        call = inference(channel).GenerateStream(pb.GenerateStreamRequest(input=given))
        got = []
        async for response in call:
            got.append(response.event)
            if len(got) == events:
                break
        return got

    return on_channel(target, work)


async def _rest(
    channel: grpc.aio.Channel, request_id: str, from_seq: int, user: str = ""
) -> list[pb.StreamEvent]:
    asked = pb.ResumeStreamRequest(request_id=request_id, from_seq=from_seq, user=user)
    return [response.event async for response in inference(channel).ResumeStream(asked)]


def _resumed(target: str, request_id: str, from_seq: int, user: str = "") -> list[pb.StreamEvent]:
    return on_channel(target, lambda channel: _rest(channel, request_id, from_seq, user))


def _refused(target: str, request_id: str, from_seq: int, user: str = "") -> Failure:
    return expect_failure(target, lambda channel: _rest(channel, request_id, from_seq, user))


def _said(events: list[pb.StreamEvent]) -> str:
    return "".join(event.delta.text for event in events if event.HasField("delta"))


def _whole(stack: Stack) -> str:
    """Ask for the text without any disturbance."""

    async def work(channel: grpc.aio.Channel) -> pb.GenerateResponse:
        given = text_input(PROMPT, sampling=DRAWN, stop=LONG)
        return await inference(channel).Generate(pb.GenerateRequest(input=given))

    return on_channel(stack.grpc_target, work).choices[0].text


@pytest.mark.parametrize("seed", range(4))
def test_parts_over_grpc_are_the_undisturbed_stream(room: Stack, seed: int) -> None:
    chance, name = random.Random(seed), f"parts-{seed}"
    got = _part(room.grpc_target, _text(name), chance.randrange(1, TOKENS // 2))
    for _ in range(2):  # cut a second time, and go on twice from the same place
        again = _resumed(room.grpc_target, name, len(got))
        kept = chance.randrange(len(again) + 1)
        got += again[:kept]
    got += _resumed(room.grpc_target, name, len(got))
    assert [event.seq for event in got] == list(range(len(got)))
    assert [event.HasField("final") for event in got] == [False] * (len(got) - 1) + [True]
    assert _said(got) == _whole(room)
    assert _resumed(room.grpc_target, name, 0) == got


def test_a_chat_is_resumed_too_and_a_whole_answer_is_not_a_stream(room: Stack) -> None:
    given = chat_input("Hello!", request_id="chat", resumable=True)

    async def cut(channel: grpc.aio.Channel) -> list[pb.StreamEvent]:
        async for response in inference(channel).ChatStream(pb.ChatStreamRequest(input=given)):
            return [response.event]
        return []

    got = on_channel(room.grpc_target, cut)
    got += _resumed(room.grpc_target, "chat", 1)

    async def refused(channel: grpc.aio.Channel) -> pb.ChatResponse:
        return await inference(channel).Chat(pb.ChatRequest(input=given))

    assert got[0].HasField("accepted")
    assert got[-1].HasField("final")
    failure = expect_failure(room.grpc_target, refused)
    assert failure.violations[0][0] == "resumable"


def test_a_worker_may_die_while_nobody_reads(room: Stack) -> None:
    whole = _whole(room)
    got = _part(room.grpc_target, _text("orphan", sampling=DRAWN), 10)
    os.kill(room.status().worker_pid, signal.SIGKILL)
    got += _resumed(room.grpc_target, "orphan", len(got))
    assert [event.seq for event in got] == list(range(len(got)))
    assert _said(got) == whole
    room.wait_for(lambda: room.router.models()[0].state.value == "ready")


def test_only_its_own_client_reads_on(room: Stack) -> None:
    _part(room.grpc_target, _text("mine", user="ann"), 3)
    for target, user in ((room.grpc_target, ""), (room.grpc_target, "bob"), (room.grpc_tcp, "ann")):
        failure = _refused(target, "mine", 3, user)
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "STREAM_NOT_HELD")
    assert _resumed(room.grpc_target, "mine", 3, "ann")[-1].HasField("final")


def test_a_held_id_is_refused_and_a_cancelled_stream_says_so(room: Stack) -> None:
    endless = pb.StopOptions(max_tokens=900, ignore_eos=True)
    _part(room.grpc_target, _text("busy", stop=endless), 2)

    async def again(channel: grpc.aio.Channel) -> None:
        call = inference(channel).GenerateStream(
            pb.GenerateStreamRequest(input=_text("busy", stop=endless))
        )
        async for _ in call:
            pass

    assert expect_failure(room.grpc_target, again).violations[0][0] == "request_id"

    async def cancel(channel: grpc.aio.Channel) -> bool:
        asked = pb.CancelRequestRequest(request_id="busy")
        return (await inference(channel).CancelRequest(asked)).found

    assert on_channel(room.grpc_target, cancel)
    assert _refused(room.grpc_target, "busy", 2).code is grpc.StatusCode.CANCELLED
    room.wait_idle()


def test_events_that_went_are_named_and_time_runs_out(brief: Stack) -> None:
    endless = pb.StopOptions(max_tokens=900, ignore_eos=True)
    _part(brief.grpc_target, _text("far", stop=endless), 2)
    bound = "resume_events"
    name = "appliance_stream_events_dropped_total"
    brief.wait_for(lambda: brief.metrics.value(name, bound=bound) > 5)
    failure = _refused(brief.grpc_target, "far", 2)
    assert (failure.code, failure.reason) == (grpc.StatusCode.OUT_OF_RANGE, "STREAM_GONE")
    assert int(failure.metadata["first_seq"]) > 2
    brief.wait_for(lambda: not len(brief.streams))
    failure = _refused(brief.grpc_target, "far", 2)
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "STREAM_NOT_HELD")
    brief.wait_idle()


# --- REST -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Numbered:
    """The numbered events of a part of a stream, and how it ended."""

    events: list[tuple[int, str]]
    done: bool

    @property
    def text(self) -> str:
        """What the choices of a completion say."""
        return "".join(json.loads(data)["choices"][0]["text"] for _, data in self.events)


def _numbered(body: bytes) -> Numbered:
    blocks = [block for block in body.decode().split("\n\n") if block]
    done = bool(blocks) and blocks[-1] == "data: [DONE]"
    events = []
    for block in blocks[:-1] if done else blocks:
        first, second = block.split("\n")
        events.append((int(first.removeprefix("id: ")), second.removeprefix("data: ")))
    return Numbered(events, done)


def _cut(stack: Stack, path: str, body: object, events: int, key: str = "") -> tuple[str, Numbered]:
    """Read the first events of a stream over a socket that then is closed; and its request id."""
    data = json.dumps(body).encode()
    shown = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{shown}Content-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(stack.rest_address) as connection:
        connection.sendall(head.encode() + data)
        received = b""
        while received.count(b"\nid: ") <= events and (got := connection.recv(READ_BYTES)):
            received += got
    top, _, rest = received.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in top.decode().split("\r\n")[1:])
    blocks = [part.split(b"\n\n")[0] for part in rest.split(b"id: ")[1:]][:events]
    return headers["x-request-id"], _numbered(b"".join(b"id: %b\n\n" % part for part in blocks))


def _on(stack: Stack, request_id: str, query: str = "", key: str = "", **headers: str) -> Answer:
    given = {**headers, **({"Authorization": f"Bearer {key}"} if key else {})}
    path = f"/v1/streams/{request_id}{query}"
    return call(
        stack.rest_address, "GET", path, None, {k.replace("_", "-"): v for k, v in given.items()}
    )


@pytest.mark.parametrize("seed", range(3))
def test_parts_over_rest_are_the_undisturbed_stream(room: Stack, seed: int) -> None:
    chance = random.Random(seed)
    body = text_body(PROMPT, temperature=1, seed=7, max_tokens=TOKENS, ignore_eos=True)
    whole = call(room.rest_address, "POST", TEXT, body).json["choices"][0]["text"]
    streamed = {**body, "stream": True, "stream_options": RESUMABLE}
    request_id, first = _cut(room, TEXT, streamed, chance.randrange(1, TOKENS // 2))
    at = len(first.events)
    by_id = _numbered(_on(room, request_id, Last_Event_ID=str(at - 1)).body)
    by_seq = _numbered(_on(room, request_id, f"?from_seq={at}").body)
    assert by_id == by_seq
    events = first.events + by_id.events
    assert by_id.done
    assert [seq for seq, _ in events] == list(range(len(events)))
    assert Numbered(events, done=True).text == whole
    assert _numbered(_on(room, request_id).body).events == events


def test_a_chat_keeps_its_role_its_usage_and_its_order(room: Stack) -> None:
    options = {"resumable": True, "include_usage": True, "include_progress": True}
    body = chat_body(stream=True, stream_options=options, n=2, seed=3, temperature=1)
    request_id, first = _cut(room, CHAT, body, 2, KEY)
    answer = _on(room, request_id, "?from_seq=2", KEY)
    assert answer.headers["x-request-id"] == request_id
    events = [json.loads(data) for _, data in (*first.events, *_numbered(answer.body).events)]
    roles = [c["index"] for e in events for c in e["choices"] if "role" in c["delta"]]
    assert sorted(roles) == [0, 1]
    assert events[-1]["usage"]["completion_tokens"] > 0
    assert any("prompt_progress" in event for event in events)


def test_rest_refuses_in_its_own_words(room: Stack) -> None:
    body = text_body(PROMPT, ignore_eos=True, stream=True, stream_options=RESUMABLE, user="u")
    request_id, _ = _cut(room, TEXT, body, 2, KEY)
    for key in ("", OTHER_KEY):
        answer = _on(room, request_id, "?from_seq=2", key)
        assert (answer.status, answer.error["code"]) == (404, "STREAM_NOT_HELD")
    assert _on(room, request_id, "?from_seq=2", "wrong").status == 401
    for query, field in (
        ("?from_seq=x", "from_seq"),
        ("?from_seq=100000", "from_seq"),
        ("?from=1", "from"),
        ("?user=a%20b", "user"),
    ):
        answer = _on(room, request_id, query, KEY)
        assert (answer.status, answer.error["param"]) == (400, field)
    assert _numbered(_on(room, request_id, "?from_seq=2", KEY).body).done
    whole = call(room.rest_address, "POST", TEXT, text_body(stream_options=RESUMABLE))
    assert (whole.status, whole.error["param"]) == (400, "stream_options")


def test_an_anonymous_user_is_named_again(room: Stack) -> None:
    body = text_body(PROMPT, ignore_eos=True, stream=True, stream_options=RESUMABLE, user="u")
    request_id, first = _cut(room, TEXT, body, 2)
    assert _on(room, request_id).status == 404
    again = _numbered(_on(room, request_id, "?user=u").body)
    assert again.events[: len(first.events)] == first.events


def test_openais_own_client_reads_a_numbered_stream(room: Stack) -> None:
    with openai.OpenAI(base_url=f"{room.rest_url}/v1", api_key=KEY) as client:
        chunks = client.completions.create(
            model="demo",
            prompt=PROMPT,
            temperature=0,
            stream=True,
            extra_body={"stream_options": RESUMABLE},
        )
        text = "".join(chunk.choices[0].text for chunk in chunks)
        whole = client.completions.create(model="demo", prompt=PROMPT, temperature=0)
    assert text == whole.choices[0].text


def test_what_is_refused_has_its_status_and_is_not_held(room: Stack) -> None:
    held = room.call(lambda: len(room.streams))
    body = chat_body(model="nobody", stream=True, stream_options=RESUMABLE)
    assert call(room.rest_address, "POST", CHAT, body).status == 404
    assert room.call(lambda: len(room.streams)) == held


def test_rest_says_what_went(brief: Stack) -> None:
    body = text_body(PROMPT, max_tokens=900, ignore_eos=True, stream=True, stream_options=RESUMABLE)
    dropped = "appliance_stream_events_dropped_total"
    before = brief.call(lambda: brief.metrics.value(dropped, bound="resume_events"))
    request_id, _ = _cut(brief, TEXT, body, 2)
    brief.wait_for(lambda: brief.metrics.value(dropped, bound="resume_events") > before + 5)
    answer = _on(brief, request_id, "?from_seq=2")
    assert (answer.status, answer.error["code"]) == (410, "STREAM_GONE")
    brief.wait_for(lambda: not len(brief.streams))
    brief.wait_idle()


# --- the daemon -----------------------------------------------------------------------------------


def test_a_daemon_that_stops_lets_a_cut_stream_be_resumed_and_ended(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    options = ("--set", "server.drain_s=120", "--set", "engine.threads=1")
    with RunningDaemon(tmp_path_factory.mktemp("d"), *options).ready() as daemon:
        endless = pb.StopOptions(max_tokens=900, ignore_eos=True)
        got = _part(daemon.address, _text("late", stop=endless, model=""), 5)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.logged("signal")
        got += _resumed(daemon.address, "late", len(got))
        assert [event.seq for event in got] == list(range(len(got)))
        assert got[-1].HasField("final")
        assert daemon.wait() == 0
        assert daemon.logged("drained")["whole"]


def test_a_daemon_waits_no_longer_than_it_may_for_who_never_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    options = ("--set", "server.drain_s=0.2", "--set", "engine.threads=1")
    with RunningDaemon(tmp_path_factory.mktemp("d"), *options).ready() as daemon:
        children = daemon.children()
        _part(daemon.address, _text("never", stop=pb.StopOptions(ignore_eos=True), model=""), 2)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert not any(psutil.pid_exists(child.pid) for child in children)
