"""Who a request comes from, by its key or its listener."""

from __future__ import annotations

import pytest

from appliance import config, domain
from appliance.access.keys import KEY_CHARS_MAX, USER_CHARS_MAX, Keyring, anonymous, new_key
from appliance.domain import ClientKind, Priority
from appliance.errors import InvalidRequest, Unauthenticated

LOOPBACK, SOCKET = ClientKind.LOOPBACK, ClientKind.LOCAL_SOCKET
KEY, DIGEST = new_key()
OTHER, OTHER_DIGEST = new_key()
CLIENTS = (
    config.Client(name="billing", key_sha256=DIGEST, weight=2.0, priority_max="normal"),
    config.Client(name="search", key_sha256=OTHER_DIGEST),
)


def _ring(*, required: bool = False) -> Keyring:
    return Keyring(config.Access(require_key=required), CLIENTS)


def test_a_key_names_its_client_with_its_share_and_its_highest_class() -> None:
    found = _ring().identify(LOOPBACK, f"Bearer {KEY}", "ann")
    assert found == domain.Client(
        id="billing",
        kind=ClientKind.API_KEY,
        weight=2.0,
        priority_max=Priority.NORMAL,
        user="ann",
    )
    assert _ring().identify(SOCKET, f"bearer {OTHER}", "").id == "search"


@pytest.mark.parametrize(
    "shown",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {DIGEST}",
        "Bearer " + "x" * (KEY_CHARS_MAX + 1),
        "Bearer \udcff",
    ],
)
@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("listener", [LOOPBACK, SOCKET])
def test_a_wrong_key_is_refused_even_where_none_is_needed(
    shown: str, listener: ClientKind, *, required: bool
) -> None:
    with pytest.raises(Unauthenticated):
        _ring(required=required).identify(listener, shown, "")


def test_without_a_key_a_client_is_anonymous_unless_one_is_required() -> None:
    assert _ring().identify(LOOPBACK, "", "").id == "loopback"
    assert _ring(required=True).identify(SOCKET, "", "").id == "local"
    with pytest.raises(Unauthenticated):
        _ring(required=True).identify(LOOPBACK, "", "ann")


def test_where_no_client_is_configured_a_key_means_nothing() -> None:
    found = Keyring(config.Access(), ()).identify(LOOPBACK, "Bearer none", "")
    assert found == domain.Client(id="loopback", kind=LOOPBACK)


def test_a_user_is_told_apart_behind_one_listener() -> None:
    assert anonymous(LOOPBACK, "ann@x.example").id == "loopback/ann@x.example"
    assert anonymous(SOCKET, "u" * USER_CHARS_MAX).id == "local/" + "u" * USER_CHARS_MAX


@pytest.mark.parametrize("user", ["a/b", "a b", "é", "a\n", "u" * (USER_CHARS_MAX + 1)])
@pytest.mark.parametrize("shown", ["", f"Bearer {KEY}"])
def test_a_user_that_cannot_stand_in_an_id_is_refused(user: str, shown: str) -> None:
    with pytest.raises(InvalidRequest, match="user: must be 1 to 128 letters"):
        _ring().identify(LOOPBACK, shown, user)
