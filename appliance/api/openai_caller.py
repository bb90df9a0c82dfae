"""Read who asks and how urgently out of a body of OpenAI's.

What this room does: `priority`, `service_tier`, `cache_salt`, `user` and `safety_identifier` as
values of the domain; two of them that say different things are refused.
What it knows: OpenAI's tiers, and which class each one is here.
What it never does: decide what a client may ask for (`access.policy`), or trust a name.

| service_tier  | class here        | said back |
|---------------|-------------------|-----------|
| auto          | the client's own  | the tier of the class that served it |
| default       | normal            | default   |
| priority      | interactive       | priority  |
| flex          | batch             | flex      |
"""

from __future__ import annotations

from appliance.api.openai_shapes import CallerBody
from appliance.domain import Priority
from appliance.errors import InvalidRequest

TIERS = {
    "auto": None,
    "default": Priority.NORMAL,
    "priority": Priority.INTERACTIVE,
    "flex": Priority.BATCH,
}
TIER_OF = {priority: tier for tier, priority in TIERS.items() if priority is not None}
PRIORITIES = {priority.value: priority for priority in Priority}


def priority_of(body: CallerBody) -> Priority | None:
    """Read the class asked for; None: none is named."""
    named = _word("priority", body.priority, PRIORITIES)
    tier = _word("service_tier", body.service_tier, TIERS)
    if named is not None and tier is not None and named is not tier:
        reason = f"is '{body.service_tier}' and contradicts 'priority', '{named.value}'"
        raise InvalidRequest(field="service_tier", reason=reason)
    return named or tier


def user_of(user: str | None, safety_identifier: str | None) -> str:
    """Read the name of the client inside ours; "": none."""
    if user and safety_identifier and user != safety_identifier:
        raise InvalidRequest(field="safety_identifier", reason="contradicts 'user'")
    return user or safety_identifier or ""


def _word(
    field: str, given: str | None, known: dict[str, Priority] | dict[str, Priority | None]
) -> Priority | None:
    if given is None:
        return None
    if given not in known:
        words = ", ".join(f"'{word}'" for word in known)
        raise InvalidRequest(field=field, reason=f"must be one of {words}")
    return known[given]
