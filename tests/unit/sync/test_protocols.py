"""Whoever stands behind a Protocol of deployments has what it asks for; mypy reads this, too."""

from __future__ import annotations

import inspect

from appliance.runtime.host import Host
from appliance.sync.acts import Book
from appliance.sync.beliefs import Beliefs
from appliance.sync.holding import Holding
from appliance.sync.host import Blobs, Examiner, ModelHost, Trust
from appliance.sync.journal import Journal


def as_host(one: Host) -> ModelHost:
    return one


def as_examiner(one: Host) -> Examiner:
    return one


def as_blobs(one: Holding) -> Blobs:
    return one


def as_trust(one: Beliefs) -> Trust:
    return one


def as_book(one: Journal) -> Book:
    return one


def test_every_protocol_is_small_and_satisfied() -> None:
    pairs = {
        ModelHost: Host,
        Examiner: Host,
        Blobs: Holding,
        Trust: Beliefs,
        Book: Journal,
    }
    for protocol, behind in pairs.items():
        methods = [
            name
            for name, _ in inspect.getmembers(protocol, inspect.isfunction)
            if not name.startswith("_")
        ]
        assert 0 < len(methods) <= 6
        assert [name for name in methods if not hasattr(behind, name)] == []
