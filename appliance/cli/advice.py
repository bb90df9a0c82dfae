"""Say what a person can do about a refusal.

What this room does: one sentence for each reason for which a signed version is not taken.
What it knows: the words of `sync.eligibility`; a test holds both lists equal.
What it never does: say why; the appliance does, with the particulars.
"""

from __future__ import annotations

ADVICE: dict[str, str] = {
    "unsigned": "publish it, or assign another version at the hub",
    "not_as_assigned": "assign it again at the hub",
    "local_name": "take its [[models]] out of the configuration, or give it another name there",
    "below_floor": "assign a newer version at the hub",
    "revoked": "assign another version at the hub",
    "appliance_too_old": "upgrade this program",
    "too_little_memory": "give it more memory, or assign a smaller version",
    "no_such_edition": "change its deployments.quantisations in the configuration",
    "quarantined": "'appliance forgive MODEL VERSION' lets it be tried again",
    "attempts_spent": "'appliance forgive MODEL VERSION' lets it be tried again",
    "pinned": "'appliance unpin MODEL' lets any version in again",
    "held": "'appliance release MODEL' lets new versions in again",
    "halted": "'appliance hub halt COHORT --resume' at the hub lets it go on",
    "not_before": "wait; it begins by itself",
    "too_soon": "wait; it is tried again by itself",
    "active": "",
}


def advice_on(code: str, model: str, version: str) -> str:
    """Say what to do about a refusal of a model's version; empty: nothing is to be done."""
    sentence = ADVICE.get(code, "")
    return sentence.replace("MODEL", model).replace("VERSION", version)
