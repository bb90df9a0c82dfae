"""How versions and deployments are shown."""

from __future__ import annotations

import msgspec
import pytest
from rich.console import Console

from appliance.api.proto import deployment_pb2 as pb
from appliance.cli import show_versions as shown
from appliance.cli import versions_client
from appliance.cli.advice import ADVICE, advice_on
from appliance.cli.versions_client import Alert, Deployment, Download, Outlook, Refusal, SyncStatus
from appliance.sync.eligibility import Refusal as Reason
from appliance.sync.states import ENDS, State

NOW = 1_800_000_000_000
DOWNLOAD = Download(
    total_bytes=4 << 20,
    verified_bytes=1 << 20,
    fetched_bytes=1 << 20,
    seeded_bytes=0,
    bytes_per_s=1 << 20,
    stopped_by="",
    seconds_left=3.0,
)
DEPLOYMENT = Deployment(
    id=7,
    model="demo",
    version="2",
    digest="",
    previous_digest="",
    state="shadowing",
    percent=0.0,
    reason="its checks passed",
    cause="",
    undo="",
    created_utc_ms=NOW - 60_000,
    entered_utc_ms=NOW - 5_000,
    deadline_utc_ms=0,
    waiting_for="",
    quantisation="Q4_K_M",
)
SYNC = SyncStatus(
    is_on=True,
    cohort="shops",
    sources=("https://hub",),
    learnt_utc_ms=NOW - 120_000,
    expires_utc_ms=NOW + 1,
    is_stale=False,
    fault="",
    is_linked=True,
    link_reason="",
)


def replaced(**changes: object) -> Deployment:
    return msgspec.structs.replace(DEPLOYMENT, **changes)


def test_there_is_advice_on_every_refusal_and_on_nothing_else() -> None:
    assert set(ADVICE) == {reason.value for reason in Reason}


def test_advice_names_the_command_with_its_words() -> None:
    assert "'appliance forgive demo 3'" in advice_on("quarantined", "demo", "3")


def test_the_ends_are_those_of_the_table_and_every_state_has_its_word() -> None:
    ended = {state.value for state in State if replaced(state=state.value).has_ended}
    assert ended == {state.value for state in ENDS}
    words = {
        name.removeprefix("DEPLOYMENT_STATE_").lower()
        for name in pb.DeploymentState.keys()  # noqa: SIM118 - a wrapper, no dict
    }
    assert words - {"unspecified"} == {state.value for state in State}


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0, "0 s"), (-5, "0 s"), (59_400, "59 s"), (90_000, "1 min"), (2 * 86_400_000, "2 d")],
)
def test_a_span_is_told_in_its_largest_unit(ms: float, said: str) -> None:
    assert shown.span(ms) == said


def test_a_download_is_told_by_verified_bytes_rate_and_time_left() -> None:
    assert shown.download_line(DOWNLOAD) == "1.0 MiB of 4.0 MiB verified, 1.0 MiB/s, 0:03 left"
    still = msgspec.structs.replace(DOWNLOAD, stopped_by="disk full")
    assert shown.download_line(still) == "1.0 MiB of 4.0 MiB verified; waits: disk full"


def test_a_line_says_what_is_waited_for_rather_than_what_was_and_obeys_nothing() -> None:
    assert shown.line_of(DEPLOYMENT) == "demo@2 shadowing: its checks passed"
    waits = replaced(waiting_for="3 of 20 \x1b[31m requests")
    assert (
        shown.line_of(waits) == "demo@2 shadowing: 3 of 20 \N{REPLACEMENT CHARACTER}[31m requests"
    )
    assert shown.state_of(replaced(state="shifting", percent=10.0)) == "shifting 10 %"


def test_the_picture_has_a_row_for_each_and_a_bar_for_each_download() -> None:
    console = Console(width=120, record=True, file=None, quiet=False)
    fetching = replaced(id=8, state="fetching", download=DOWNLOAD)
    with console.capture() as out:
        console.print(shown.picture((fetching, DEPLOYMENT), NOW))
    lines = out.get().splitlines()
    assert lines[1].split()[:5] == ["8", "demo@2", "Q4_K_M", "fetching", "5"]
    assert lines[2].split()[:4] == ["7", "demo@2", "Q4_K_M", "shadowing"]
    assert lines[3].strip().endswith("25%")


def test_a_refusal_is_told_with_its_reason_and_what_to_do() -> None:
    outlook = Outlook(
        model="demo",
        assigned_version="3",
        pinned_version="",
        is_held=False,
        refusal=Refusal(code="quarantined", reason="it failed here", retry_utc_ms=0),
    )
    lines = list(shown.outlook_lines(outlook))
    assert lines[0] == "demo: none serves yet, the hub assigns version 3"
    assert lines[1] == "  demo@3 is not taken: it failed here (quarantined)"
    assert lines[2].startswith("  what to do: 'appliance forgive demo 3'")


def test_what_is_stale_is_said_loudly_and_nothing_without_a_hub() -> None:
    assert list(shown.sync_lines(SYNC, NOW)) == ["hub: cohort shops, learnt 2 min ago, hints come"]
    stale = msgspec.structs.replace(SYNC, is_stale=True, fault="frozen", expires_utc_ms=NOW - 1000)
    assert [line.strip() for line in shown.sync_lines(stale, NOW)][1:] == [
        "STALE: expired 1 s ago; serving goes on",
        "nothing new is learnt: frozen",
    ]
    off = msgspec.structs.replace(SYNC, is_on=False)
    assert list(shown.sync_lines(off, NOW)) == []


def test_what_a_person_should_look_at_is_shown_with_its_age() -> None:
    alert = Alert(
        kind="rollback_drill",
        subject="demo",
        since_utc_ms=NOW - 7_200_000,
        reason="took 900 ms, usual are 20 ms",
    )
    seen = msgspec.structs.replace(SYNC, alerts=(alert,))
    assert list(shown.sync_lines(seen, NOW))[1:] == [
        "  ALERT for 2 h: rollback drill demo: took 900 ms, usual are 20 ms"
    ]


def test_a_message_becomes_the_value_with_its_names() -> None:
    message = pb.Deployment(
        id=2**40, model="demo", state=pb.DEPLOYMENT_STATE_AWAITING_APPROVAL, reason="state"
    )
    value = versions_client.value_of(message, Deployment)
    assert (value.id, value.state, value.reason) == (2**40, "awaiting_approval", "state")
    assert value.download is None
