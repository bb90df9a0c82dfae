"""Edit, sign and put out the repository's metadata; is handed signers, knows no key's place.

What this room does: every change is first a pending version of a role, gathers signatures until
its threshold is met, and is put out with a new snapshot and timestamp in one step for readers.
What it knows: python-tuf, which nothing else on the hub's side knows.
What it never does: load or make a key, or put out what a reader would refuse.
"""

from __future__ import annotations

from securesystemslib.signer import Signer

from appliance.hub.signing.changes import Change
from appliance.hub.signing.expiring import Due
from appliance.hub.signing.repository import Repository, Settled
from appliance.hub.signing.role_keys import RoleKeys
from appliance.hub.signing.state import Signing, Validity

__all__ = ["Change", "Due", "Repository", "RoleKeys", "Settled", "Signer", "Signing", "Validity"]
