"""Who is sent to which version, and which changes of that are refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain import Digest, ModelVersion, Origin, Role, Traffic
from appliance.errors import DeploymentRefused, ModelNotServed
from appliance.runtime.roles import Roles, Row, is_in, place

CLIENTS = st.text(max_size=20)
PERCENTS = st.floats(0, 100)


def version(number: int, model: str = "demo") -> ModelVersion:
    return ModelVersion(
        model=model,
        version=str(number),
        digest=Digest(f"sha256:{model}-{number}"),
        blob_bytes=1,
        origin=Origin.HUB,
        key_id="k",
        signature="s",
    )


OLD, NEW, THIRD = (version(number) for number in (1, 2, 3))


def table(*versions: ModelVersion) -> Roles:
    """Load these; the first one is active."""
    roles = Roles()
    for index, one in enumerate(versions):
        roles.add(one, active=index == 0)
    return roles


def on_trial(percent: float, shadow_share: float = 0.0) -> Traffic:
    return Traffic(candidate=NEW.digest, percent=percent, shadow_share=shadow_share)


def anything(_: Digest) -> bool:
    return True


def test_what_is_loaded_beside_the_active_version_is_a_candidate_without_clients() -> None:
    roles = table(OLD, NEW)
    assert (roles.role(OLD), roles.role(NEW)) == (Role.ACTIVE, Role.CANDIDATE)
    asked = {roles.route("demo", str(n), takes=anything) for n in range(100)}
    assert asked == {OLD.digest}
    assert roles.pinned("demo@2") == NEW.digest
    assert roles.pinned("demo@3") is None


def test_a_model_without_an_active_version_is_not_served_until_one_is_switched_to() -> None:
    roles = Roles()
    roles.add(OLD, active=False)
    with pytest.raises(ModelNotServed):
        roles.route("demo", "a", takes=anything)
    assert roles.switch("demo", OLD.digest, None).after == Row(active=OLD.digest)
    assert roles.route("demo", "a", takes=anything) == OLD.digest


@given(CLIENTS, PERCENTS, PERCENTS)
def test_a_client_that_is_in_stays_in_while_the_percentage_rises(
    client: str, one: float, other: float
) -> None:
    roles = table(OLD, NEW)
    went = []
    for percent in sorted((one, other)):
        roles.direct("demo", on_trial(percent))
        went.append(roles.route("demo", client, takes=anything))
    assert went != [NEW.digest, OLD.digest]


@given(CLIENTS)
def test_nobody_is_in_at_0_percent_and_everybody_at_100(client: str) -> None:
    assert 0.0 <= place("demo", NEW.digest, client) < 100.0


def test_a_percentage_of_clients_is_that_percentage() -> None:
    inside = sum(place("demo", NEW.digest, f"client-{n}") < 10 for n in range(10_000))
    assert 900 <= inside <= 1100


def test_each_candidate_begins_with_other_clients() -> None:
    clients = [f"client-{n}" for n in range(1000)]
    first = {c for c in clients if is_in("demo", on_trial(10), c)}
    third = Traffic(candidate=THIRD.digest, percent=10)
    assert len(first & {c for c in clients if is_in("demo", third, c)}) < len(first) / 3


def test_a_candidate_that_can_not_take_a_request_is_passed_over() -> None:
    roles = table(OLD, NEW)
    roles.direct("demo", on_trial(100))
    assert roles.route("demo", "a", takes=anything) == NEW.digest
    assert roles.route("demo", "a", takes=lambda digest: digest != NEW.digest) == OLD.digest


def test_a_switch_makes_a_standby_of_who_served_and_goes_back_the_same_way() -> None:
    roles = table(OLD, NEW)
    there = roles.switch("demo", NEW.digest, OLD.digest)
    assert there.after == Row(active=NEW.digest, standby=OLD.digest)
    assert "demo@2" in there.reason
    assert roles.role(OLD) is Role.STANDBY
    back = roles.switch("demo", OLD.digest, NEW.digest)
    assert back.after == Row(active=OLD.digest, standby=NEW.digest)
    assert roles.switch("demo", OLD.digest, NEW.digest).after == back.after  # said twice


def test_a_switch_that_expects_another_version_changes_nothing() -> None:
    roles = table(OLD, NEW, THIRD)
    before = roles.row("demo")
    with pytest.raises(DeploymentRefused) as refused:
        roles.switch("demo", NEW.digest, THIRD.digest)
    assert f"{OLD.digest} is active" in str(refused.value)
    with pytest.raises(DeploymentRefused):
        roles.switch("demo", Digest("sha256:unknown"), OLD.digest)
    assert roles.row("demo") == before


def test_a_switch_ends_every_trial() -> None:
    roles = table(OLD, NEW, THIRD)
    roles.direct("demo", on_trial(50, 0.5))
    assert roles.switch("demo", NEW.digest, OLD.digest).after.traffic == Traffic()


def test_a_version_that_clients_are_sent_to_stays() -> None:
    roles = table(OLD, NEW)
    roles.direct("demo", on_trial(1))
    for digest in (OLD.digest, NEW.digest):
        with pytest.raises(DeploymentRefused):
            roles.check_removal(digest)
    roles.direct("demo", on_trial(0, 0.5))
    roles.check_removal(NEW.digest)
    assert roles.remove(NEW.digest).after == Row(active=OLD.digest)
    assert roles.remove(OLD.digest).after == Row()
    assert roles.row("demo") == Row()


def test_a_standby_need_not_be_loaded() -> None:
    roles = table(OLD, NEW)
    roles.switch("demo", NEW.digest, OLD.digest)
    assert roles.remove(OLD.digest).after == Row(active=NEW.digest, standby=OLD.digest)
    with pytest.raises(DeploymentRefused):
        roles.switch("demo", OLD.digest, NEW.digest)


@pytest.mark.parametrize(
    "traffic",
    [
        Traffic(percent=5),
        Traffic(shadow_share=0.1),
        Traffic(candidate=Digest("sha256:none"), percent=5),
        Traffic(candidate=version(9, "other").digest, percent=5),
        Traffic(candidate=OLD.digest, percent=5),
    ],
)
def test_only_what_is_loaded_beside_the_active_version_is_on_trial(traffic: Traffic) -> None:
    roles = table(OLD, NEW)
    roles.add(version(9, "other"), active=True)
    before = roles.row("demo")
    with pytest.raises(DeploymentRefused):
        roles.direct("demo", traffic)
    assert roles.row("demo") == before


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_said_somebody_loaded_serves_every_client(seed: int) -> None:
    """Random changes: each is refused whole, or leaves a table that holds together."""
    draw = random.Random(seed)
    roles, loaded = table(OLD), {OLD.digest: OLD}
    for _ in range(60):
        one, other = (draw.choice((OLD, NEW, THIRD)) for _ in range(2))
        before = roles.row("demo")
        try:
            act = draw.randrange(5)
            if act == 0 and one.digest not in loaded:
                roles.add(one, active=False)
                loaded[one.digest] = one
            elif act == 1 and len(loaded) > 1:
                roles.check_removal(one.digest)
                roles.remove(one.digest)
                loaded.pop(one.digest)
            elif act == 2:
                roles.direct("demo", Traffic(candidate=one.digest, percent=draw.randrange(101)))
            elif act == 3:
                roles.switch("demo", one.digest, other.digest)
            elif act == 4:
                roles.keep_standby("demo", one.digest)
        except (DeploymentRefused, ModelNotServed):
            assert roles.row("demo") == before
        row = roles.row("demo")
        assert row.active in loaded
        assert row.traffic.candidate is None or row.traffic.candidate in loaded
        assert row.traffic.candidate != row.active
        for client in ("a", "b", "c"):
            assert roles.route("demo", client, takes=anything) in loaded
        roles_held = [roles.role(one) for one in loaded.values()]
        assert roles_held.count(Role.ACTIVE) == 1


def test_an_active_version_that_rests_stays_in_its_row_until_another_is_active() -> None:
    roles = table(OLD)
    roles.rest("demo")
    roles.remove(OLD.digest)
    assert roles.row("demo") == Row(active=OLD.digest, rests=True)
    assert roles.rests(OLD.digest)
    assert roles.resting() == {"demo"}
    roles.add(NEW, active=False)
    assert roles.route("demo", "c", takes=anything) == OLD.digest
    roles.direct("demo", on_trial(100))
    assert roles.route("demo", "c", takes=anything) == NEW.digest
    roles.remove(NEW.digest)
    assert roles.rests(OLD.digest)
    roles.add(OLD, active=False)
    roles.wake("demo")
    assert roles.row("demo") == Row(active=OLD.digest)
    roles.rest("demo")
    roles.add(NEW, active=False)
    assert roles.switch("demo", NEW.digest, OLD.digest).after == Row(
        active=NEW.digest, standby=OLD.digest
    )
