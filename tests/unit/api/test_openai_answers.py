"""Answers are written the way OpenAI's clients read them."""

from __future__ import annotations

import json
import math

import msgspec

from appliance.api.openai_answers import (
    ChoiceParts,
    Head,
    TextLogprobs,
    chat_completion,
    embedding_list,
    encode,
)
from appliance.api.openai_chunks import ChatChunks, TextChunks
from appliance.domain import (
    Accepted,
    ChoiceEnd,
    Delta,
    EmbedResult,
    Event,
    Final,
    FinishReason,
    Priority,
    Progress,
    RequestId,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallMade,
    Usage,
)

HEAD = Head(id="a", created=1, model="m@1")
USAGE = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
CALL = ToolCall(id="c", name="f", arguments="{}")
FINAL = Final(usage=USAGE, timings=Timings(), finish_reasons=(FinishReason.STOP,))
ACCEPTED = Accepted(request_id=RequestId("r"), version="m@1", seed=1, prompt_tokens=3)


def _token(text: bytes, logprob: float | None = -1.0) -> TokenLogprob:
    return TokenLogprob(token_id=1, text_bytes=text, logprob=logprob, top=((1, text, -1.0),))


def test_offsets_count_characters_though_tokens_split_them() -> None:
    tokens = [_token(b"a"), _token("é".encode()[:1]), _token("é".encode()[1:]), _token(b"b")]
    whole = TextLogprobs().take(tokens)
    assert whole["text_offset"] == [0, 1, 1, 2]
    assert whole["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b"]
    pieces = TextLogprobs()
    offsets = [pieces.take([token])["text_offset"][0] for token in tokens]
    assert offsets == whole["text_offset"]


def test_minus_infinity_is_a_number_of_json() -> None:
    part = ChoiceParts(logprobs=[_token(b"a", -math.inf)], finish_reason=FinishReason.STOP)
    body = json.loads(encode(chat_completion(HEAD, [part], USAGE, logprobs=True)))
    assert body["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


def test_a_call_without_text_has_no_content() -> None:
    part = ChoiceParts(calls=[CALL], finish_reason=FinishReason.TOOL_CALLS)
    message = chat_completion(HEAD, [part], USAGE, logprobs=False)["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_vectors_are_numbers_or_base64() -> None:
    result = EmbedResult(
        version="m@1", size=2, vectors=(b"\x00\x00\x00\x3f\x00\x00\x80\xbf",), prompt_tokens=2
    )
    assert embedding_list(result, as_base64=False)["data"][0]["embedding"] == [0.5, -1.0]
    assert embedding_list(result, as_base64=True)["data"][0]["embedding"] == "AAAAPwAAgL8="


def test_a_chat_stream_tells_each_choice_its_role_once() -> None:
    chunks = ChatChunks(HEAD, 2, logprobs=False, usage=False)
    events: list[Event] = [
        ACCEPTED,
        Progress(prompt_tokens_done=1, prompt_tokens_total=3),
        Delta(choice=1, text="x"),
        Delta(choice=0, text="y"),
        Delta(choice=1, text="", token_ids=(5,)),
        ToolCallMade(choice=0, index=0, call=CALL),
        ChoiceEnd(choice=0, finish_reason=FinishReason.TOOL_CALLS),
        ChoiceEnd(choice=1, finish_reason=FinishReason.STOP),
        FINAL,
    ]
    written = [chunk["choices"][0] for event in events for chunk in chunks.turn(event)]
    roles = [choice["index"] for choice in written if "role" in choice["delta"]]
    assert roles == [1, 0]
    assert [choice["finish_reason"] for choice in written][-2:] == ["tool_calls", "stop"]
    assert written[4]["delta"]["tool_calls"][0]["index"] == 0


def test_a_choice_that_says_nothing_has_a_role_all_the_same() -> None:
    chunks = ChatChunks(HEAD, 1, logprobs=False, usage=False)
    written = chunks.turn(ChoiceEnd(choice=0, finish_reason=FinishReason.LENGTH))
    assert written[0]["choices"][0]["delta"]["role"] == "assistant"


def test_the_usage_of_several_prompts_is_added_up() -> None:
    chunks = TextChunks(HEAD, 1, logprobs=False, usage=True)
    for prompt in (0, 1):
        chunks.turn(prompt, ACCEPTED)
        chunks.turn(prompt, FINAL)
    (last,) = chunks.last()
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 10
    assert chunks.turn(0, Delta(choice=0, text="x"))[0]["usage"] is None


def test_the_tier_that_served_it_is_said_only_to_who_names_one() -> None:
    assert "service_tier" not in HEAD.accepted(ACCEPTED).object("x", [])
    head = Head(id="a", created=1, says_tier=True)
    for priority, tier in (
        (Priority.INTERACTIVE, "priority"),
        (Priority.NORMAL, "default"),
        (Priority.BATCH, "flex"),
    ):
        accepted = head.accepted(msgspec.structs.replace(ACCEPTED, priority=priority))
        assert accepted.object("x", [])["service_tier"] == tier


def test_progress_is_a_chunk_only_for_who_asks_for_it() -> None:
    progress = Progress(prompt_tokens_done=7, prompt_tokens_total=9, cached_tokens=5)
    shown = {"total": 9, "cache": 5, "processed": 7}
    assert ChatChunks(HEAD, 1, logprobs=False, usage=True).turn(progress) == []
    assert TextChunks(HEAD, 1, logprobs=False, usage=True).turn(0, progress) == []
    chat = ChatChunks(HEAD, 1, logprobs=False, usage=True, progress=True).turn(progress)
    assert [(c["choices"], c["prompt_progress"], c["usage"]) for c in chat] == [([], shown, None)]
    text = TextChunks(HEAD, 1, logprobs=False, usage=False, progress=True).turn(1, progress)
    assert [(c["choices"], c["prompt_progress"]) for c in text] == [([], {"prompt": 1, **shown})]
