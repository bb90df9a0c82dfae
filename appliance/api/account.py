"""Keep the account of one request: when what happened, how much it was, and how it ended.

What this room does: the durations and counts of a request from its arrival on; its one canonical
log line and its metrics, written once when the request is closed.
What it knows: the names in `observe.families`; that a request has exactly one end.
What it never does: see a prompt or a completion; block; change how the request goes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from appliance.domain import Client, Delta, Event, Final, ModelVersion, Priority, RequestId
from appliance.observe.metrics import Metrics

_MS = 1000.0
CANCELLED = "REQUEST_CANCELLED"


class Operation(enum.Enum):
    """What was asked for, in OpenTelemetry's words where it has them."""

    CHAT = "chat"
    TEXT = "text_completion"
    EMBED = "embeddings"
    RERANK = "rerank"


class Account:
    """One request. Call `close` exactly once, whichever way it ended."""

    def __init__(
        self,
        operation: Operation,
        client: Client,
        request_id: RequestId,
        *,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """Begin at the arrival of the request. `clock` is monotonic, in milliseconds."""
        self._operation = operation
        self._client = client
        self._request_id = request_id
        self._metrics = metrics
        self._clock = clock
        self._arrived_ms = clock()
        self._prepared_ms: float | None = None
        self._first_token_ms: float | None = None
        self._last_token_ms = 0.0
        self._version: ModelVersion | None = None
        self._choices = 1
        self._priority = Priority.NORMAL
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._final: Final | None = None
        self._reasons: tuple[str, ...] = ()
        self._code = ""

    def found(self, version: ModelVersion) -> None:
        """Note the version that will answer."""
        self._version = version

    def prepared(
        self, prompt_tokens: int, choices: int = 1, priority: Priority = Priority.NORMAL
    ) -> None:
        """Note that the request is ready for its ticket."""
        self._prepared_ms = self._clock()
        self._prompt_tokens = prompt_tokens
        self._choices = choices
        self._priority = priority

    def note(self, event: Event) -> None:
        """Take in one event on its way to the client."""
        if isinstance(event, Delta):
            if event.token_ids:
                self._last_token_ms = self._clock()
                if self._first_token_ms is None:
                    self._first_token_ms = self._last_token_ms
                self._completion_tokens += len(event.token_ids)
        elif isinstance(event, Final):
            self._final = event
            self._reasons = tuple(reason.value for reason in event.finish_reasons)

    def done(self) -> None:
        """Note that an answer that is not streamed is complete."""
        self._reasons = ("stop",)

    def failed(self, code: str) -> None:
        """Note the error the request ended in."""
        self._code = code

    def close(self) -> None:
        """Write the log line and the metrics."""
        if not self._reasons and not self._code:
            self._code = CANCELLED
        total_ms = self._clock() - self._arrived_ms
        self._record(total_ms)
        queue_ms = self._queue_ms()
        first_ms = self._first_ms()
        self._metrics.event(
            "request",
            request_id=self._request_id,
            operation=self._operation.value,
            client=self._client.id,
            client_kind=self._client.kind.value,
            user=self._client.user,
            priority=self._priority.value,
            model=self._version.label if self._version is not None else "",
            choices=self._choices,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            queue_ms=None if queue_ms is None else round(queue_ms, 1),
            first_token_ms=None if first_ms is None else round(first_ms, 1),
            total_ms=round(total_ms, 1),
            reason=self._code or ",".join(self._reasons),
        )

    def _queue_ms(self) -> float | None:
        """From the arrival to the first planned token, once the request ended well."""
        if self._final is None or self._prepared_ms is None:
            return None
        return self._prepared_ms - self._arrived_ms + self._final.timings.queue_ms

    def _first_ms(self) -> float | None:
        return None if self._first_token_ms is None else self._first_token_ms - self._arrived_ms

    def _record(self, total_ms: float) -> None:
        operation = self._operation.value
        for reason in self._reasons[:1] or ("",):
            self._metrics.record(
                "appliance_requests_total",
                1,
                operation=operation,
                finish_reason="" if self._code else reason,
                code=self._code,
            )
        if self._version is None:
            return
        labels = {"operation": operation, "model": self._version.label}
        durations = (
            ("gen_ai_server_request_duration_seconds", total_ms),
            ("gen_ai_server_time_to_first_token_seconds", self._first_ms()),
            ("appliance_request_queue_seconds", self._queue_ms()),
            ("gen_ai_server_time_per_output_token_seconds", self._per_token_ms()),
        )
        for name, duration_ms in durations:
            if duration_ms is not None:
                self._metrics.record(name, duration_ms / _MS, **labels)
        cached = self._final.usage.cached_tokens if self._final is not None else 0
        tokens = (
            ("input", self._prompt_tokens),
            ("output", self._completion_tokens),
            ("cached", cached),
        )
        for kind, count in tokens:
            if count:
                self._metrics.record("appliance_tokens_total", count, **labels, type=kind)

    def _per_token_ms(self) -> float | None:
        """Mean time between tokens of a lone choice; with several they come side by side."""
        if self._first_token_ms is None or self._completion_tokens <= self._choices:
            return None
        gaps = self._completion_tokens / self._choices - 1
        return (self._last_token_ms - self._first_token_ms) / gaps
