"""The table of who may do what."""

from __future__ import annotations

import pytest

from appliance.access.policy import INFERENCE_VERBS, Verb, authorise
from appliance.domain import Client, ClientKind, Priority
from appliance.errors import PermissionDenied

APPLICATION = {
    *INFERENCE_VERBS,
    Verb.LIST_MODELS,
    Verb.READ_METRICS,
    Verb.LOAD_SHELVED_ADAPTER,
    Verb.UNLOAD_SHELVED_ADAPTER,
}
MAY = {
    ClientKind.LOCAL_SOCKET: set(Verb),
    ClientKind.LOOPBACK: APPLICATION,
    ClientKind.API_KEY: APPLICATION,
}
OBJECTS = {Verb.PRIORITISE: "normal"}


@pytest.mark.parametrize("kind", list(ClientKind))
@pytest.mark.parametrize("verb", list(Verb))
def test_each_kind_of_client_may_do_what_the_table_says(kind: ClientKind, verb: Verb) -> None:
    client = Client(id="c", kind=kind)
    target = OBJECTS.get(verb, "demo")
    if verb in MAY[kind]:
        authorise(client, verb, target)
        return
    with pytest.raises(PermissionDenied) as error:
        authorise(client, verb, target)
    assert error.value.fields == {"client": "c", "verb": verb.value, "object": "demo"}


def test_every_inference_verb_is_open_to_local_programs() -> None:
    assert {verb.value for verb in INFERENCE_VERBS} == {
        "generate",
        "prioritise",
        "embed",
        "rerank",
        "tokenize",
        "detokenize",
        "cancel",
        "resume",
    }


@pytest.mark.parametrize("highest", list(Priority))
@pytest.mark.parametrize("asked", list(Priority))
def test_nobody_asks_for_a_class_above_its_highest(highest: Priority, asked: Priority) -> None:
    client = Client(id="c", kind=ClientKind.API_KEY, priority_max=highest)
    if asked.rank >= highest.rank:
        authorise(client, Verb.PRIORITISE, asked.value)
        return
    with pytest.raises(PermissionDenied, match=f"'c' may not prioritise '{asked.value}'"):
        authorise(client, Verb.PRIORITISE, asked.value)
