"""Read the parameters of the Open Inference Protocol as options of the domain.

What this room does: every known name with the kind of its value; numbers that older clients can
only send as text.
What it knows: nothing of messages: a parameter is a name and a plain value here.
What it never does: drop one: what is unknown is refused with the nearest known name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

import msgspec

from appliance.domain import Priority, SamplingOptions, StopOptions
from appliance.errors import InvalidRequest

Value: TypeAlias = bool | int | float | str

MAX_TOKENS_DEFAULT = 16  # as OpenAI's completions, and as Triton's own text backends
_US = 1_000_000
_PRIORITIES = {priority.value: priority for priority in Priority}


def _real(name: str, given: Value) -> float:
    try:
        return float("" if isinstance(given, bool) else given)
    except ValueError:
        raise InvalidRequest(field=name, reason="must be a number") from None


def _whole(name: str, given: Value) -> int:
    try:
        return int("" if isinstance(given, bool | float) else given)
    except ValueError:
        raise InvalidRequest(field=name, reason="must be a whole number") from None


def _flag(name: str, given: Value) -> bool:
    if not isinstance(given, bool):
        raise InvalidRequest(field=name, reason="must be true or false")
    return given


def _text(name: str, given: Value) -> str:
    if not isinstance(given, str):
        raise InvalidRequest(field=name, reason="must be a text")
    return given


def _texts(name: str, given: Value) -> tuple[str, ...]:
    text = _text(name, given)
    if text.startswith("["):
        try:
            return tuple(msgspec.json.decode(text, type=list[str]))
        except msgspec.MsgspecError:
            reason = "begins with '[' and is not a JSON list of texts"
            raise InvalidRequest(field=name, reason=reason) from None
    return (text,)


def _priority(name: str, given: Value) -> Priority:
    if given not in _PRIORITIES:
        words = ", ".join(_PRIORITIES)
        raise InvalidRequest(field=name, reason=f"must be a text, one of {words}")
    return _PRIORITIES[str(given)]


_SAMPLING: dict[str, Callable[[str, Value], Any]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p"), _real),
    **dict.fromkeys(("repeat_penalty", "frequency_penalty", "presence_penalty"), _real),
    **dict.fromkeys(("top_k", "penalty_last_n", "seed"), _whole),
}
_SHARED: dict[str, Callable[[str, Value], Any]] = {"user": _text, "timeout": _whole}
_GENERATING: dict[str, Callable[[str, Value], Any]] = {
    **_SAMPLING,
    **_SHARED,
    "max_tokens": _whole,
    "stop": _texts,
    "ignore_eos": _flag,
    "stream": _flag,
    "priority": _priority,
    "adapter": _text,
    "cache_salt": _text,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What every request may say of itself."""

    user: str
    timeout_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generating:
    """What a request to generate may say."""

    sampling: SamplingOptions
    stop: StopOptions
    priority: Priority | None
    adapter: str
    cache_salt: str


def read_shared(given: Mapping[str, Value]) -> Shared:
    """Read what every request may say; what else there is, the other readers look at.

    Raises:
        InvalidRequest: one of these is of the wrong kind.
    """
    timeout = given.get("timeout")
    return Shared(
        user=_text("user", given.get("user", "")),
        timeout_s=None if timeout is None else _whole("timeout", timeout) / _US,
    )


def read_generating(given: Mapping[str, Value]) -> Generating:
    """Read the options of a generation.

    Raises:
        InvalidRequest: one is unknown, of the wrong kind or out of range.
    """
    options = _read(given, _GENERATING)
    if options.get("stream"):
        reason = "is not served by ModelInfer; use appliance.v1 GenerateStream"
        raise InvalidRequest(field="stream", reason=reason)
    return Generating(
        sampling=SamplingOptions(**{name: options[name] for name in _SAMPLING if name in options}),
        stop=StopOptions(
            max_tokens=options.get("max_tokens", MAX_TOKENS_DEFAULT),
            strings=options.get("stop", ()),
            ignore_eos=options.get("ignore_eos", False),
        ),
        priority=options.get("priority"),
        adapter=options.get("adapter", ""),
        cache_salt=options.get("cache_salt", ""),
    )


def read_normalize(given: Mapping[str, Value]) -> bool:
    """Read the option of an embedding. Raises as `read_generating`."""
    normalize: bool = _read(given, {**_SHARED, "normalize": _flag}).get("normalize", True)
    return normalize


def check_none(given: Mapping[str, Value]) -> None:
    """Let only pass what every request may say. Raises as `read_generating`."""
    _read(given, _SHARED)


def _read(
    given: Mapping[str, Value], known: Mapping[str, Callable[[str, Value], Any]]
) -> dict[str, Any]:
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            advice = f"; did you mean '{near[0]}'?" if near else ""
            reason = f"'{name[:64]}' is not a known parameter{advice}"
            raise InvalidRequest(field="parameters", reason=reason)
    return {name: known[name](name, value) for name, value in given.items()}
