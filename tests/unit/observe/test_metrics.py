"""The rules of the metrics registry and of its text."""

from __future__ import annotations

import math
import re

import pytest

from appliance.observe.families import FAMILIES, Family, Kind
from appliance.observe.metrics import Metrics
from appliance.runtime.wire import EngineGauges

TTFT = "gen_ai_server_time_to_first_token_seconds"
REQUESTS = "appliance_requests_total"
SAMPLE = re.compile(
    r"^(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)"
    r'(?:\{(?P<labels>(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})?'
    r" (?P<value>[+-]?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|Inf))$"
)


def metrics_of(series_max: int = 8) -> Metrics:
    return Metrics(version="0.1.0", series_max=series_max)


def gauges(**changes: float) -> EngineGauges:
    values = dict.fromkeys(EngineGauges.__struct_fields__, 0) | changes
    return EngineGauges(**values)  # type: ignore[arg-type]


def samples(text: str) -> dict[str, float]:
    """Read the lines that are not comments, insisting on the format."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        assert match, line
        key = line.rsplit(" ", 1)[0]
        assert key not in found, f"twice: {key}"
        found[key] = math.inf if match["value"] == "+Inf" else float(match["value"])
    return found


def filled() -> Metrics:
    metrics = metrics_of()
    for family in FAMILIES:
        metrics.record(family.name, 0.25, **dict.fromkeys(family.labels, 'a "b"\\\n'))
    return metrics


def test_guesses_are_counted_by_what_made_them() -> None:
    metrics = metrics_of()
    for step in (1, 2):
        drafted, right = 10 * step, 6 * step
        metrics.step(
            "m@1",
            gauges(
                drafted_total=drafted,
                draft_accepted_total=right,
                model_drafted_total=4 * step,
                model_draft_accepted_total=3 * step,
            ),
        )
    found = samples(metrics.render())
    for name, kind, count in (
        ("appliance_draft_tokens_total", "ngram", 12),
        ("appliance_draft_tokens_total", "model", 8),
        ("appliance_draft_accepted_tokens_total", "ngram", 6),
        ("appliance_draft_accepted_tokens_total", "model", 6),
    ):
        assert found[f'{name}{{model="m@1",kind="{kind}"}}'] == count


def test_every_family_has_help_a_unit_and_a_name_of_its_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.help.endswith("."), family.name
        assert family.unit, family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)


def test_a_name_says_what_prometheus_expects_of_its_kind() -> None:
    for family in FAMILIES:
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER), family.name
        assert not family.name.endswith(("_count", "_sum", "_bucket")), family.name
    with pytest.raises(AssertionError):
        Family(name="appliance:colon_total", kind=Kind.COUNTER, unit="s", help="No.")
    with pytest.raises(AssertionError):
        Family(name="appliance_things", kind=Kind.COUNTER, unit="things", help="No suffix.")


def test_the_text_parses_and_each_family_comes_once_with_help_and_type_in_front() -> None:
    text = filled().render()
    assert text.endswith("\n")
    samples(text)
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert types == [(family.name, family.kind.value) for family in FAMILIES]
    assert re.findall(r"^# HELP (\S+) ", text, re.MULTILINE) == [name for name, _ in types]
    assert r'model="a \"b\"\\\n"' in text


def test_a_family_without_a_series_is_not_shown() -> None:
    assert TTFT not in metrics_of().render()


def test_counters_add_up_and_gauges_are_replaced() -> None:
    metrics = metrics_of()
    metrics.record(REQUESTS, 1, operation="chat", finish_reason="stop")
    metrics.record(REQUESTS, 2, operation="chat", finish_reason="stop")
    metrics.record("appliance_requests_running", 5, model="m@1")
    metrics.record("appliance_requests_running", 3, model="m@1")
    shown = samples(metrics.render())
    assert shown['appliance_requests_total{operation="chat",finish_reason="stop",code=""}'] == 3
    assert shown['appliance_requests_running{model="m@1"}'] == 3
    assert metrics.value(REQUESTS, operation="chat", finish_reason="stop") == 3


def test_buckets_are_cumulative_with_inclusive_bounds() -> None:
    metrics = metrics_of()
    for value in (0.001, 0.0011, 1.0, 1e9):
        metrics.record(TTFT, value, operation="chat", model="m@1")
    shown = samples(metrics.render())
    start = f'{TTFT}_bucket{{operation="chat",model="m@1",le='
    assert shown[start + '"0.001"}'] == 1
    assert shown[start + '"0.005"}'] == 2
    assert shown[start + '"1"}'] == 3
    assert shown[start + '"160"}'] == 3
    assert shown[start + '"+Inf"}'] == 4
    assert shown[f'{TTFT}_count{{operation="chat",model="m@1"}}'] == 4
    assert shown[f'{TTFT}_sum{{operation="chat",model="m@1"}}'] == pytest.approx(1e9 + 1.0021)


def test_series_are_bounded_and_what_is_left_out_is_counted() -> None:
    metrics = metrics_of(series_max=3)
    for number in range(10):
        metrics.record("appliance_requests_running", number, model=f"m{number}")
    metrics.record("appliance_requests_running", 7, model="m0")
    shown = samples(metrics.render())
    assert sum(key.startswith("appliance_requests_running") for key in shown) == 3
    assert shown['appliance_requests_running{model="m0"}'] == 7
    refused = 'appliance_metric_samples_refused_total{metric="appliance_requests_running"}'
    assert shown[refused] == 7


def test_a_long_label_is_cut() -> None:
    metrics = metrics_of()
    metrics.record("appliance_requests_running", 1, model="m" * 1000)
    assert f'{{model="{"m" * 128}"}}' in metrics.render()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_left_out(value: float) -> None:
    metrics = metrics_of()
    metrics.record("appliance_requests_running", value, model="m")
    assert "appliance_requests_running" not in metrics.render()


def test_an_unknown_metric_or_label_is_our_own_bug() -> None:
    metrics = metrics_of()
    with pytest.raises(KeyError):
        metrics.record("appliance_nothing", 1)
    with pytest.raises(AssertionError):
        metrics.record(REQUESTS, 1, colour="red")


def test_a_step_moves_gauges_and_an_idle_one_is_no_step_of_the_histogram() -> None:
    metrics = metrics_of()
    metrics.step(
        "m@1", gauges(running=2, cells_used=64, cells_total=256, decode_tokens=2, step_ms=8)
    )
    metrics.step("m@1", gauges(running=0, cells_used=0, cells_total=256, step_ms=0.1))
    assert metrics.value("appliance_step_seconds", model="m@1") == 1
    assert metrics.value("appliance_engine_tokens_total", model="m@1", phase="decode") == 2
    assert metrics.value("appliance_kv_cells_capacity", model="m@1") == 256
    assert metrics.value("appliance_kv_cache_usage_ratio", model="m@1") == 0


def test_preemptions_of_successive_workers_add_up() -> None:
    metrics = metrics_of()
    for total in (0, 2, 3):
        metrics.step("m@1", gauges(preemptions_total=total))
    metrics.worker_lost("m@1", "SIGKILL")
    for total in (0, 1):
        metrics.step("m@1", gauges(preemptions_total=total))
    assert metrics.value("appliance_preemptions_total", model="m@1") == 4
    assert metrics.value("appliance_worker_restarts_total", model="m@1", cause="SIGKILL") == 1


def test_the_process_is_measured_when_it_is_shown() -> None:
    metrics = metrics_of()
    first = samples(metrics.render())
    second = samples(metrics.render())
    assert first["process_resident_memory_bytes"] > 1e6
    assert 0 < first["process_open_fds"] <= first["process_max_fds"]
    assert second["process_cpu_seconds_total"] >= first["process_cpu_seconds_total"]


def test_a_count_that_somebody_else_keeps_is_shown_as_it_is_and_never_falls() -> None:
    metrics, total = metrics_of(), [3.0]
    metrics.follow("appliance_store_failures_total", lambda: total[0], database="events")
    shown = 'appliance_store_failures_total{database="events"}'
    for count, expected in ((3.0, 3.0), (3.0, 3.0), (7.0, 7.0), (5.0, 7.0)):
        total[0] = count
        assert samples(metrics.render())[shown] == expected


def test_changes_of_threads_are_counted_by_reason() -> None:
    metrics = metrics_of()
    metrics.step("m", gauges(threads_decode=2, threads_prefill=2))
    lost = {"threads_decode": 1, "threads_prefill": 1, "threads_change": "core_lost"}
    metrics.step("m", gauges(**lost))  # type: ignore[arg-type]
    assert metrics.value("appliance_threads", model="m", phase="decode") == 1
    name = "appliance_thread_changes_total"
    assert metrics.value(name, model="m", reason="core_lost") == 1
