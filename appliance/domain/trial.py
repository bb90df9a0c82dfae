"""Say what runs beside what is served: traffic on trial, measurements, standbys, switches.

What this room does: frozen values that the router makes and that whoever judges versions reads.
What it knows: percentages are of clients, shares of requests; counts and times, never a text.
What it never does: decide, or name a client.
"""

from __future__ import annotations

import enum

from appliance.domain.served import Digest, ModelVersion
from appliance.domain.value import Value, check_range

_PERCENT_MAX = 100.0


# --- traffic --------------------------------------------------------------------------------------


class Traffic(Value):
    """Who gets a candidate: `percent` of the clients, and copies of `shadow_share` of the requests.

    A client that is in at one percentage stays in at every higher one. `salt` shuffles who is in;
    empty: the candidate's digest does, so that not the same clients are first each time.
    """

    candidate: Digest | None = None
    percent: float = 0.0
    shadow_share: float = 0.0
    salt: str = ""

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check_range("percent", self.percent, 0.0, _PERCENT_MAX)
        check_range("shadow_share", self.shadow_share, 0.0, 1.0)


class SwitchReport(Value):
    """What a switch of the active version did.

    flip_ms: from the command to the first moment at which a new request went to `to`, and every
    request with nothing sent had been sent after it. moved_count of those; left_count go on where
    they are: they have sent something, or name their version.
    """

    model: str
    previous: Digest
    to: Digest
    utc_ms: int
    flip_ms: float
    moved_count: int
    left_count: int
    reason: str


class DrillReport(Value):
    """What a drill of the way back measured; `reason` is empty if it went well.

    load_ms: to load the standby, 0.0 if it was. accepted_ms: from the command to a request accepted
    by the standby; first_token_ms: to that request's first token.
    """

    version: str
    level: StandbyLevel
    utc_ms: int
    load_ms: float
    accepted_ms: float
    first_token_ms: float
    reason: str = ""


# --- standby --------------------------------------------------------------------------------------


class StandbyLevel(enum.Enum):
    """How near a standby is to serving; each level is also the ones before it."""

    DISK = "h0"
    CACHED = "h1"  # in the page cache, as mincore says
    LOCKED = "h2"  # mapped, and locked in memory
    LOADED = "h3"  # a worker has it, warm and idle
    PROVEN = "h4"  # and a drill went well

    @property
    def rank(self) -> int:
        """Count the levels below."""
        return tuple(StandbyLevel).index(self)


class StandbyStatus(Value):
    """How a standby is held now, and why not higher. resident_ratio: of its file, 0 to 1."""

    version: ModelVersion
    level: StandbyLevel
    reason: str
    since_utc_ms: int
    resident_ratio: float = 0.0
    locked_bytes: int = 0
    rollback_ms: float | None = None  # as the last drill measured


# --- measurements ---------------------------------------------------------------------------------


class Sample(Value):
    """One request as it ended. `error` is the code it ended in, empty if it ended well.

    Cancelled requests are left out, as are those that their clients were too slow for. token_gap_ms
    is the mean time between two tokens of a choice; None where fewer than two came. is_shadow: a
    copy that nobody waited for; it ran at the lowest priority, so its times say little.
    """

    error: str = ""
    first_token_ms: float | None = None
    token_gap_ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_empty: bool = False
    is_looping: bool = False
    is_constrained: bool = False
    is_unfinished_schema: bool = False
    is_shadow: bool = False


class Window(Value):
    """The last requests of one version, oldest first, and what was counted with them.

    since_utc_ms: when measuring began. dropped_count: samples older than the window has room for.
    compared_count: copies whose answer was held beside the one the user got; agreed_ratio: how much
    of the answers was the same up to the first difference, on average.
    """

    samples: tuple[Sample, ...] = ()
    since_utc_ms: int = 0
    dropped_count: int = 0
    worker_losses: int = 0
    shadows_dropped: int = 0
    compared_count: int = 0
    identical_count: int = 0
    agreed_ratio: float = 0.0
