"""Have what is written down served again, when the program starts.

What this room does: loads the active version of a model, or else its standby.
What it knows: nothing is loaded yet, and nothing here needs the hub.
What it never does: write anything down; it says what must be undone.
"""

from __future__ import annotations

import logging

from appliance import logs
from appliance.domain import Digest
from appliance.errors import ApplianceError
from appliance.sync.acts import Site
from appliance.sync.deployment import Serving
from appliance.sync.records import Memory


async def serve_recorded(site: Site, memory: Memory, serving: Serving) -> str:
    """Serve a model as it is written down; returns why its active version must be undone, or "".

    It must be where it can't be loaded and its standby could. Where a deployment is under way, that
    one is carried on, whatever it finds.
    """
    reason = await _made_active(site, memory, serving.model, serving.active)
    if not reason:
        if serving.standby:
            await stand_by_recorded(site, memory, serving)
        return ""
    _log("version_not_served", serving.model, reason)
    if not serving.standby or serving.model in memory.under_way:
        return ""
    worse = await _made_active(site, memory, serving.model, serving.standby)
    if worse:
        _log("version_not_served", serving.model, worse)
        return ""
    return f"can't be loaded: {reason}"


async def _made_active(site: Site, memory: Memory, model: str, digest: Digest) -> str:
    """Load a version and make it the active one; returns why that failed, or ""."""
    offer = memory.offers.get(digest)
    if offer is None:
        return "what it is made of is not known any more"
    try:
        await site.host.load(await site.hosted(offer), digest)  # it served: whatever room there is
        await site.host.switch(model, digest, None)
    except ApplianceError as error:
        return str(error)
    return ""


async def stand_by_recorded(site: Site, memory: Memory, serving: Serving) -> None:
    """Have the standby of a model that is written down stand by, or none."""
    offer = memory.offers.get(serving.standby)
    try:
        hosted = await site.hosted(offer) if offer is not None else None
        await site.host.stand_by(serving.model, hosted)
    except ApplianceError as error:
        _log("standby_not_held", serving.model, str(error))


def _log(name: str, model: str, reason: str) -> None:
    logs.event(name, level=logging.WARNING, model=model, reason=reason)
