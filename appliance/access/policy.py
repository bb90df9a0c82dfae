"""Decide who may do what to which object. Pure.

What this room does: the table roles x verbs, the roles of each kind of client, and `authorise`,
which every face and every command calls before it acts.
What it knows: a Unix socket is guarded by its file mode, so who can open it is the operator of
this machine; a loopback port is open to every local program, so it gets inference and nothing
that changes or reveals the house beyond what an operator laid out for it. What is not in the table
is denied.
What it never does: look anything up, remember, or record (`audit` does).

    role         inference verbs   LIST_MODELS  READ_METRICS   shelved adapters   every other verb
    OPERATOR     yes               yes          yes            yes                yes
    APPLICATION  yes               yes          yes            yes                no

An adapter is shelved if its file lies in server.adapter_dir, which an operator fills, or leaves
unset: then there is none. A path from anybody else than an operator would have the daemon open any
file of this machine.

Objects are names: of a model, a request, a page. One rule looks at them: PRIORITISE names a class,
and nobody may ask for a higher one than the client's own highest.
"""

from __future__ import annotations

import enum

from appliance.domain import Client, ClientKind, Priority
from appliance.errors import PermissionDenied


class Verb(enum.Enum):
    """What can be done to an object. The object's kind stands behind each."""

    GENERATE = "generate"  # model
    EMBED = "embed"  # model
    RERANK = "rerank"  # model
    TOKENIZE = "tokenize"  # model
    DETOKENIZE = "detokenize"  # model
    PRIORITISE = "prioritise"  # class of a request
    CANCEL = "cancel"  # request; a client can name only its own, `generate` sees to it
    AUTHENTICATE = "authenticate"  # "*": only ever recorded, when a key is none of ours
    RESUME = "resume"  # request; likewise, `resume` sees to it
    LIST_MODELS = "list_models"  # model, or "*"
    READ_METRICS = "read_metrics"  # "*"
    READ_STATUS = "read_status"  # "*"
    READ_AUDIT = "read_audit"  # "*"
    REGISTER_VERSION = "register_version"  # model: sign a file of the operator's own
    LOAD_ADAPTER = "load_adapter"  # model:adapter, of any file of this machine
    UNLOAD_ADAPTER = "unload_adapter"  # model:adapter
    LOAD_SHELVED_ADAPTER = "load_shelved_adapter"  # model:adapter, of a file in server.adapter_dir
    UNLOAD_SHELVED_ADAPTER = "unload_shelved_adapter"  # model:adapter, loaded from there
    READ_DEPLOYMENTS = "read_deployments"  # model, or "*": versions of a hub
    ROLLBACK = "rollback"  # model
    APPROVE = "approve"  # model: what is under way
    CANCEL_DEPLOYMENT = "cancel_deployment"  # model: likewise
    PIN_VERSION = "pin_version"  # model
    HOLD_MODEL = "hold_model"  # model
    FORGIVE_VERSION = "forgive_version"  # model
    SYNC = "sync"  # "*": look for news
    IMPORT = "import"  # path of a bundle on this machine
    DRILL = "drill"  # model: rehearse the way back
    SERVE = "serve"  # "*": start the daemon
    STOP = "stop"  # "*": end the daemon


class AccessRole(enum.Enum):
    """What a client is to this house."""

    OPERATOR = "operator"
    APPLICATION = "application"


INFERENCE_VERBS = frozenset(
    {
        Verb.GENERATE,
        Verb.PRIORITISE,
        Verb.EMBED,
        Verb.RERANK,
        Verb.TOKENIZE,
        Verb.DETOKENIZE,
        Verb.CANCEL,
        Verb.RESUME,
    },
)
ALLOWED: dict[AccessRole, frozenset[Verb]] = {
    AccessRole.OPERATOR: frozenset(Verb),
    AccessRole.APPLICATION: INFERENCE_VERBS
    | {
        Verb.LIST_MODELS,
        Verb.READ_METRICS,
        Verb.LOAD_SHELVED_ADAPTER,
        Verb.UNLOAD_SHELVED_ADAPTER,
    },
}
ROLES: dict[ClientKind, frozenset[AccessRole]] = {
    ClientKind.LOCAL_SOCKET: frozenset({AccessRole.OPERATOR}),
    ClientKind.LOOPBACK: frozenset({AccessRole.APPLICATION}),
    ClientKind.API_KEY: frozenset({AccessRole.APPLICATION}),
}


def authorise(client: Client, verb: Verb, object: str) -> None:  # noqa: A002 - who, what, to which
    """Let `client` do `verb` to `object`, or refuse.

    Raises:
        PermissionDenied: no role of the client has the verb, or the class is above its highest.
    """
    allowed = any(verb in ALLOWED[role] for role in ROLES[client.kind])
    if verb is Verb.PRIORITISE:
        allowed = allowed and Priority(object).rank >= client.priority_max.rank
    if not allowed:
        raise PermissionDenied(client=client.id, verb=verb.value, object=object)


def usual_class(client: Client) -> Priority:
    """Choose the class of a request that names none: normal, or the client's highest if lower."""
    return max(Priority.NORMAL, client.priority_max, key=lambda priority: priority.rank)
