"""Tool calls come out of the text whole, with no token lost."""

from __future__ import annotations

import pytest

from appliance.api.call_reading import CallReading
from appliance.domain import (
    ChoiceEnd,
    Delta,
    Event,
    Final,
    FinishReason,
    RequestId,
    Timings,
    ToolCallMade,
    Usage,
)

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def _read(text: str, *, parallel: bool = True, size: int = 3) -> list[Event]:
    reading = CallReading("hermes", (), RequestId("r"), 1, parallel=parallel)
    events: list[Event] = []
    for number, begin in enumerate(range(0, len(text), size)):
        delta = Delta(choice=0, text=text[begin : begin + size], token_ids=(number,))
        events += reading.turn(delta)
    events += reading.turn(ChoiceEnd(choice=0, finish_reason=FinishReason.STOP))
    final = Final(
        usage=Usage(prompt_tokens=1, completion_tokens=1),
        timings=Timings(),
        finish_reasons=(FinishReason.STOP,),
    )
    return [*events, *reading.turn(final)]


def _text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def _calls(events: list[Event]) -> list[ToolCallMade]:
    return [event for event in events if isinstance(event, ToolCallMade)]


def _final(events: list[Event]) -> Final:
    final = events[-1]
    assert isinstance(final, Final)
    return final


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_call_is_one_event_and_changes_the_reason(size: int) -> None:
    events = _read(f"So: {CALL}", size=size)
    (made,) = _calls(events)
    assert (made.call.name, made.index) == ("f", 0)
    assert _text(events).strip() == "So:"
    assert _final(events).finish_reasons == (FinishReason.TOOL_CALLS,)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_every_token_is_told_exactly_once(size: int) -> None:
    text = f"a {CALL} b {CALL}"
    events = _read(text, size=size)
    told = [t for event in events if isinstance(event, Delta) for t in event.token_ids]
    assert told == list(range(-(-len(text) // size)))


def test_text_without_a_call_stays_as_it_is() -> None:
    events = _read("1 < 2 and <tool> is no call")
    assert _text(events) == "1 < 2 and <tool> is no call"
    assert _final(events).finish_reasons == (FinishReason.STOP,)


def test_several_calls_are_counted_and_may_be_held_to_one() -> None:
    assert [made.index for made in _calls(_read(CALL + CALL))] == [0, 1]
    assert [made.index for made in _calls(_read(CALL + CALL, parallel=False))] == [0]
