"""The clock is believed as far as what was signed allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ClockUntrusted, Untrusted
from appliance.sync.clock_rules import believable_utc_ms, expired, trusted_now

TIMES = st.integers(min_value=0, max_value=4_000_000_000_000)


@given(TIMES, TIMES, TIMES)
def test_time_is_never_before_what_was_signed_or_built(
    system: int, signed: int, built: int
) -> None:
    now = trusted_now(system_utc_ms=system, signed_utc_ms=signed, built_utc_ms=built)
    assert now.utc_ms == max(system, signed, built)
    assert now.is_behind == (system < max(signed, built))


@given(TIMES, TIMES)
def test_an_issue_time_beyond_the_life_of_the_root_is_an_error(issued: int, end: int) -> None:
    assert believable_utc_ms(issued, root_expires_utc_ms=end) == (issued if issued <= end else 0)


@given(TIMES, TIMES, TIMES)
def test_only_where_the_root_has_expired_too_the_clock_is_suspected(
    now: int, root: int, timestamp: int
) -> None:
    error = expired("timestamp.json is expired", now, {"root": root, "timestamp": timestamp})
    assert isinstance(error, ClockUntrusted) == (root <= now and timestamp <= now)


def test_an_expired_role_alone_is_the_sources_fault() -> None:
    error = expired("timestamp.json is expired", 2000, {"root": 5000, "timestamp": 1000})
    assert isinstance(error, Untrusted)
    assert "frozen" in str(error)
    assert isinstance(expired("Final root.json is expired", 2000, {"root": 1000}), ClockUntrusted)
    assert isinstance(expired("snapshot.json is expired", 2000, {}), Untrusted)
