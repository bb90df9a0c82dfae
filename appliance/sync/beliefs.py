"""Hand what was verified to the agent: learn from whoever answers, read what is remembered.

What this room does: satisfies `host.Trust`: tries the sources in their order, and reads documents
without a hub and without metadata.
What it knows: a source that does not answer is no reason to stop; one that lies is, for the next
might lie better.
What it never does: verify; `trust` did before anything was remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from appliance.contract import names
from appliance.contract.assignment import Assignment
from appliance.contract.standing import Standing
from appliance.errors import ApplianceError, HubUnreachable
from appliance.sync.eligibility import digest_of
from appliance.sync.fetcher import MetadataSource
from appliance.sync.host import Offer
from appliance.sync.remembered import Remembered
from appliance.sync.trust import Trust, Trusted


class Beliefs:
    """What this appliance believes. `latest`: the last refresh that went well. `fault`: why not.

    Belongs to the event loop's thread.
    """

    def __init__(
        self,
        trust: Trust,
        remembered: Remembered,
        cohort: str,
        *,
        models: Callable[[], Collection[str]],
        pinned: Callable[[], Collection[str]],
    ) -> None:
        """`models`: those that are here; `pinned`: digests of releases that must stay readable."""
        self.latest: Trusted | None = None
        self.fault: ApplianceError | None = None
        self.sources: Sequence[MetadataSource] = ()
        self._trust = trust
        self._remembered = remembered
        self.cohort = cohort
        self._models = models
        self._pinned = pinned

    async def refresh(self) -> None:
        """Learn what is new from the first of `sources` that answers.

        Raises:
            SyncError: as `Trust.refresh`; what was known holds.
        """
        silent = HubUnreachable(source="sync", reason="no source is configured")
        for source in self.sources:
            try:
                await self.learn_from(source)
            except HubUnreachable as error:
                silent = error
            else:
                return
        self.fault = silent
        raise silent

    async def learn_from(self, source: MetadataSource) -> None:
        """Learn what is new from one source, such as a bundle. Raises as `refresh`."""
        models, pinned = self._models(), self._pinned()
        try:
            self.latest = await asyncio.to_thread(
                self._trust.refresh, source, self.cohort, models, pinned
            )
        except ApplianceError as error:
            self.fault = error
            raise
        self.fault = None

    def assignment(self) -> Assignment | None:
        """Read what this cohort should run. Raises StoreError."""
        return self._remembered.assignment(self.cohort)

    def standing(self, model: str) -> Standing | None:
        """Read what is withdrawn of a model. Raises StoreError."""
        return self._remembered.standing(model)

    def release(self, model: str, version: str) -> Offer | None:
        """Read a release by its name. Raises StoreError."""
        found = self._remembered.latest_release(model, version)
        if found is None:
            return None
        verified, release = found
        publisher = verified.signer.removeprefix(names.PUBLISHER_ROLE_PREFIX)
        return Offer(release=release, digest=digest_of(verified.sha256), publisher=publisher)
