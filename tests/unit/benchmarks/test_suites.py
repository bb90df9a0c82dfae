"""The rules of what the suites read out of a report, out of a page and out of a text."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gauges import KV_USED, STEPS, Gauges
from benchmarks.json_check import violation
from benchmarks.suites.arrivals import gap_metrics
from benchmarks.suites.chats import during
from benchmarks.suites.schemas import BOUNDED, questions, validity
from benchmarks.traffic import Part, Report, Timed


def timed(part: str, sent_s: float, *arrivals_s: float, number: int = 0, text: str = "") -> Timed:
    """Make a request that ended well, its deltas at these times after the load began."""
    after = [one - sent_s for one in arrivals_s]
    return Timed(
        part=part, number=number, sent_s=sent_s, arrivals_s=after, text=text, finish="stop"
    )


def report(*requests: Timed) -> Report:
    return Report(wall_s=10.0, client_cpu_s=0.0, requests=list(requests))


def test_the_worst_gap_is_that_between_the_newcomers_arrival_and_its_first_token() -> None:
    running = timed("running", 0.0, 0.1, 0.2, 0.3, 2.3, 2.4, 9.0)
    found = gap_metrics(report(running, timed("newcomer", 0.35, 2.35)))
    assert found["gap_ms_worst"] == pytest.approx(2000.0)
    assert found["gap_ms_before"] == pytest.approx(100.0)
    assert found["tokens_meanwhile"] == 1.0
    assert found["newcomer_first_token_ms"] == pytest.approx(2000.0)


def test_a_stream_that_says_nothing_more_stood_still_until_the_newcomers_token() -> None:
    found = gap_metrics(report(timed("running", 0.0, 0.1), timed("newcomer", 0.2, 5.2)))
    assert found["gap_ms_worst"] == pytest.approx(5000.0)
    assert found["tokens_meanwhile"] == 0.0


def test_only_tokens_that_come_while_chats_arrive_are_counted() -> None:
    running = timed("running", 0.0, 0.5, 1.0, 1.1, 1.3, 3.0)
    found = during(report(running, timed("chats", 0.9), timed("chats", 1.4)))
    assert found["gap_ms"] == pytest.approx(150.0)
    assert (found["chats_sent"], found["chats_answered"]) == (2.0, 2.0)
    assert during(report(running))["gap_ms"] == pytest.approx(350.0)


def test_a_page_of_gauges_is_summed_over_labels() -> None:
    page = b"\n".join(
        (
            b"# HELP appliance_kv_cells_used KV cells that are held.",
            b'appliance_kv_cells_used{model="a"} 5',
            b'appliance_kv_cells_used{model="b"} 7.5',
            b'appliance_step_seconds_bucket{model="a",le="+Inf"} 9',
            b'appliance_step_seconds_count{model="a"} 12',
        )
    )
    gauges = Gauges(page)
    assert (gauges[KV_USED], gauges[STEPS], gauges["appliance_none"]) == (12.5, 12.0, 0.0)


@pytest.mark.parametrize(
    ("text", "schema", "reason"),
    [
        ('{"a": 1}', {"type": "object", "required": ["a"]}, ""),
        ('{"a": 1', {}, "not JSON"),
        ("{}", {"type": "object", "required": ["a"]}, "misses"),
        ('{"b": 1}', {"properties": {}, "additionalProperties": False}, "does not know"),
        ('{"a": "x"}', {"properties": {"a": {"type": "integer"}}}, "no integer"),
        ("true", {"type": "integer"}, "no integer"),
        ("1", {"enum": [True]}, "not allowed"),
        ("false", {"enum": ["no", False]}, ""),
        ("[1, 2, 3]", {"maxItems": 2}, "3 items"),
        ("[1, 2]", {"items": {"maximum": 1}}, "out of bounds"),
        ('"abcd"', {"maxLength": 3}, "4 characters"),
        ('"ab1"', {"pattern": "^[a-z]+$"}, "does not match"),
        ('"unknown"', {"anyOf": [{"type": "null"}, {"const": "unknown"}]}, ""),
        ("2", {"anyOf": [{"type": "null"}, {"const": 3}]}, "none of anyOf"),
    ],
)
def test_a_text_is_held_to_its_schema(text: str, schema: dict[str, Any], reason: str) -> None:
    found = violation(text, schema)
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_keyword_that_is_not_checked_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="uniqueItems"):
        violation("[]", {"uniqueItems": True})


def test_an_answer_that_was_cut_off_is_not_judged_and_a_broken_one_counts() -> None:
    part = Part(output_tokens=1, schemas=({"type": "integer"}, {"type": "string"}))
    cut_off = timed("all", 0.0, 1.0, text="12")
    cut_off.finish = "length"
    answers = (
        cut_off,
        timed("all", 0.0, 1.0, number=1, text='"yes"'),
        timed("all", 0.0, 1.0, number=2, text='"no number"'),
    )
    assert validity(report(*answers), part) == {
        "finished": 2.0,
        "refused": 0.0,
        "valid_percent": 50.0,
    }


def test_the_demo_model_is_asked_what_it_was_held_out_from() -> None:
    asked = questions()
    assert len(asked) > 50
    assert len(BOUNDED) == 8
