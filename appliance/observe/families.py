"""Name every metric once: its kind, unit, labels, buckets and what it means.

What this room does: the table that `metrics` keeps series for and that the reference is made of.
What it knows: OpenTelemetry's GenAI names where they exist, written the way Prometheus writes
them; buckets extended at the top, because a CPU is slower than the clusters they were chosen for.
What it never does: hold a value.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """How values of a family add up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its name (with the unit last), and what its values mean."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert ":" not in self.name
        assert (self.kind is Kind.COUNTER) == self.name.endswith("_total"), self.name
        assert (self.kind is Kind.HISTOGRAM) == bool(self.buckets), self.name
        assert list(self.buckets) == sorted(set(self.buckets)), self.name


_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
_PER_TOKEN_S = (
    *(0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0),
)
_DURATION_S = (*(0.01 * 2**power for power in range(14)), 160.0, 320.0, 640.0)
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)


def _counter(name: str, unit: str, meaning: str, *labels: str) -> Family:
    return Family(name=name, kind=Kind.COUNTER, unit=unit, help=meaning, labels=labels)


def _gauge(name: str, unit: str, meaning: str, *labels: str) -> Family:
    return Family(name=name, kind=Kind.GAUGE, unit=unit, help=meaning, labels=labels)


def _seconds(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family(
        name=name, kind=Kind.HISTOGRAM, unit="s", help=meaning, labels=labels, buckets=buckets
    )


FAMILIES: tuple[Family, ...] = (
    _seconds(
        "gen_ai_server_time_to_first_token_seconds",
        "From the arrival of a request to its first token, queue and tokenising included.",
        _FIRST_TOKEN_S,
        "operation",
        "model",
    ),
    _seconds(
        "gen_ai_server_time_per_output_token_seconds",
        "Mean time between the tokens of one request after its first one.",
        _PER_TOKEN_S,
        "operation",
        "model",
    ),
    _seconds(
        "gen_ai_server_request_duration_seconds",
        "From the arrival of a request to its end, whichever way it ended.",
        _DURATION_S,
        "operation",
        "model",
    ),
    _seconds(
        "appliance_request_queue_seconds",
        "From the arrival of a request to the step that took its first prompt token.",
        _FIRST_TOKEN_S,
        "operation",
        "model",
    ),
    _seconds(
        "appliance_step_seconds",
        "Duration of one engine step that evaluated tokens.",
        _STEP_S,
        "model",
    ),
    _counter(
        "appliance_tokens_total",
        "tokens",
        "Tokens of requests by type: input (prompt), output (drawn), cached (of the prompt).",
        "operation",
        "model",
        "type",
    ),
    _counter(
        "appliance_engine_tokens_total",
        "tokens",
        "Tokens the engine evaluated, by phase: prefill or decode; replayed ones count again.",
        "model",
        "phase",
    ),
    _counter(
        "appliance_requests_total",
        "requests",
        "Requests that ended, by how: the finish reason of one that ended well, else the code.",
        "operation",
        "finish_reason",
        "code",
    ),
    _gauge("appliance_requests_running", "requests", "Requests being generated now.", "model"),
    _gauge("appliance_requests_waiting", "requests", "Requests waiting for room.", "model"),
    _gauge("appliance_sequences_used", "sequences", "Sequences that hold KV cells.", "model"),
    _gauge("appliance_kv_cells_used", "cells", "KV cells that are held.", "model"),
    _gauge(
        "appliance_kv_cells_cached",
        "cells",
        "KV cells held for their prefixes alone, beside those that are used.",
        "model",
    ),
    _gauge("appliance_kv_cells_capacity", "cells", "KV cells there are.", "model"),
    _gauge(
        "appliance_kv_cache_usage_ratio", "ratio", "KV cells held, of those there are.", "model"
    ),
    _counter(
        "appliance_preemptions_total",
        "preemptions",
        "Requests put back into the queue to make room.",
        "model",
    ),
    _counter(
        "appliance_prefix_tokens_total",
        "tokens",
        "Tokens taken over from another sequence instead of being evaluated.",
        "model",
    ),
    _counter(
        "appliance_prefix_evictions_total",
        "sequences",
        "Finished sequences given up to make room for others.",
        "model",
    ),
    _counter(
        "appliance_draft_tokens_total",
        "tokens",
        "Tokens that were guessed and checked, by kind: ngram or model.",
        "model",
        "kind",
    ),
    _counter(
        "appliance_draft_accepted_tokens_total",
        "tokens",
        "Guessed tokens that were what the model drew, by kind: ngram or model.",
        "model",
        "kind",
    ),
    _gauge(
        "appliance_draft_gain_ratio",
        "ratio",
        "Tokens per second of the latest steps, as a multiple of those without guesses.",
        "model",
    ),
    _gauge(
        "appliance_swapped_bytes",
        "bytes",
        "Host memory of sequences that had to make way.",
        "model",
    ),
    _gauge(
        "appliance_threads",
        "threads",
        "Threads that evaluate a step of a model, by phase: decode, or prefill if it has prompts.",
        "model",
        "phase",
    ),
    _counter(
        "appliance_thread_changes_total",
        "changes",
        "Changes of a model's threads: core_lost to others, core_free again, or probe for one.",
        "model",
        "reason",
    ),
    _counter(
        "appliance_worker_restarts_total",
        "restarts",
        "Worker processes that ended without being asked to, by cause.",
        "model",
        "cause",
    ),
    _gauge(
        "appliance_standby_level",
        "level",
        "How near the standby of a model is to serving: 0 on disk, 1 in the page cache, 2 locked, "
        "3 loaded, 4 proven by a drill.",
        "model",
    ),
    _gauge(
        "appliance_standby_resident_ratio",
        "ratio",
        "How much of the file of a model's standby is in memory, as mincore says.",
        "model",
    ),
    _gauge(
        "appliance_alert_standing",
        "alerts",
        "1 while something about versions stands that a person should look at, by kind: "
        "rollback_drill, scrub, stranded, release_refused; subject is the model, if it is of one.",
        "kind",
        "subject",
    ),
    _gauge(
        "appliance_rollback_drill_seconds",
        "s",
        "How long the last drill of a model's way back took.",
        "model",
    ),
    _gauge(
        "appliance_chore_timestamp_seconds",
        "s",
        "When a chore was last done, in seconds since 1970: rollback_drill of a model, or scrub.",
        "chore",
        "subject",
    ),
    _counter(
        "appliance_files_damaged_total",
        "files",
        "Kept files that were damaged when they were read again; outcome is repaired or damaged.",
        "outcome",
    ),
    _gauge("appliance_streams_held", "streams", "Resumable streams that are held."),
    _gauge("appliance_streams_held_bytes", "bytes", "Memory of the resumable streams."),
    _counter(
        "appliance_stream_resumes_total",
        "resumes",
        "Attempts to go on reading a stream, by the code of what refused them.",
        "code",
    ),
    _counter(
        "appliance_stream_events_dropped_total",
        "events",
        "Events of resumable streams that went before their time, by the bound that was reached.",
        "bound",
    ),
    _counter(
        "appliance_adapter_changes_total",
        "changes",
        "LoRA adapters that were to be loaded or unloaded, by verb; outcome is ok, the code, or "
        "left if the client did not wait.",
        "model",
        "verb",
        "outcome",
    ),
    _counter(
        "appliance_metric_samples_refused_total",
        "samples",
        "Samples left out because their metric already has as many series as are allowed.",
        "metric",
    ),
    _counter(
        "appliance_store_failures_total",
        "writes",
        "Writes to a local database that failed or were refused, by database.",
        "database",
    ),
    _counter(
        "appliance_audit_records_lost_total",
        "records",
        "Audit records that were never written because too many were waiting.",
    ),
    _gauge("appliance_build_info", "info", "Always 1; the versions are in the labels.", "version"),
    _counter("process_cpu_seconds_total", "s", "CPU time of the daemon itself."),
    _gauge("process_resident_memory_bytes", "bytes", "Resident memory of the daemon itself."),
    _gauge("process_open_fds", "files", "File descriptors the daemon has open."),
    _gauge("process_max_fds", "files", "File descriptors the daemon may have open."),
    _gauge("process_start_time_seconds", "s", "When the daemon started, in seconds since 1970."),
)
