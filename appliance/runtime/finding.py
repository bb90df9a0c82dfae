"""Find the version for a request: by its label, its model and client, or as the only one there is.

What this room does: reads a name as a client wrote it; passes a candidate over that could not take
the request; refuses a name that means nothing, or another kind of model.
What it knows: the table of roles and the loaded versions, both only to read.
What it never does: wait, change a role, or let a request in.
"""

from __future__ import annotations

from appliance.domain import AdapterState, Digest, ModelKind, ModelVersion
from appliance.errors import ModelNotReady, ModelNotServed
from appliance.runtime.hosting import Hosting
from appliance.runtime.roles import Roles

_RESTING_RETRY_S = 2.0  # about as long as another version takes to load


def find(
    roles: Roles, hosting: Hosting, name: str, kind: ModelKind, *, client: str, adapter: str
) -> ModelVersion:
    """Find the version for a request now.

    name: 'name@version' is that version, whatever its role; 'name' whichever the client is sent to;
    '' the only model of its kind. adapter: a candidate without it is passed over.

    Raises:
        ModelNotServed: there is none of that name and kind, or '' could mean several.
        ModelNotReady: the active version was stopped to make room for another.
    """
    digest = roles.pinned(name)
    if digest is None:
        model = name or _only(roles, hosting, kind)
        digest = roles.route(
            model, client, takes=lambda candidate: _takes(hosting, candidate, adapter)
        )
    if roles.rests(digest):
        raise ModelNotReady(model=name, state="stopped", retry_after_s=_RESTING_RETRY_S)
    served = hosting.get(digest)
    if served is None or served.kind is not kind:
        raise ModelNotServed(model=name)
    return served.version


def _only(roles: Roles, hosting: Hosting, kind: ModelKind) -> str:
    """Find the only model of a kind."""
    models = {served.version.model for served in hosting if served.kind is kind}
    models = {model for model in models if roles.row(model).active is not None}
    models |= roles.resting()
    if len(models) != 1:
        raise ModelNotServed(model="")
    return models.pop()


def _takes(hosting: Hosting, digest: Digest, adapter: str) -> bool:
    served = hosting.get(digest)
    if served is None or not served.answers:
        return False
    loaded = served.adapters.statuses() if adapter else ()
    return not adapter or any(
        one.adapter.name == adapter and one.state is AdapterState.READY for one in loaded
    )
