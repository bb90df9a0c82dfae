"""The table of who may do what."""

from __future__ import annotations

import pytest

from appliance.access.policy import INFERENCE_VERBS, Verb, authorise
from appliance.domain import Client, ClientKind
from appliance.errors import PermissionDenied

MAY = {
    ClientKind.LOCAL_SOCKET: set(Verb),
    ClientKind.LOOPBACK: {*INFERENCE_VERBS, Verb.LIST_MODELS, Verb.READ_METRICS},
    ClientKind.API_KEY: set[Verb](),
}


@pytest.mark.parametrize("kind", list(ClientKind))
@pytest.mark.parametrize("verb", list(Verb))
def test_each_kind_of_client_may_do_what_the_table_says(kind: ClientKind, verb: Verb) -> None:
    client = Client(id="c", kind=kind)
    if verb in MAY[kind]:
        authorise(client, verb, "demo")
        return
    with pytest.raises(PermissionDenied) as error:
        authorise(client, verb, "demo")
    assert error.value.fields == {"client": "c", "verb": verb.value, "object": "demo"}


def test_every_inference_verb_is_open_to_local_programs() -> None:
    assert {verb.value for verb in INFERENCE_VERBS} == {
        "generate",
        "embed",
        "tokenize",
        "detokenize",
        "cancel",
    }
