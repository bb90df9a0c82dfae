"""Read which model and which of its LoRA adapters a request means.

What this room does: takes the names that clients of other servers use: the field 'adapter',
MODEL:ADAPTER as the model's name, or the adapter's name alone.
What it knows: what is served now. Names of models and adapters hold no colon.
What it never does: decide whether that adapter takes requests (`runtime.adapters` does).
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.domain import ModelStatus
from appliance.errors import InvalidRequest


def meant(model: str, adapter: str, statuses: Iterable[ModelStatus]) -> tuple[str, str]:
    """Find the names of model and adapter ("" for none); an unknown model's name stays as it is.

    1. The name of a model is one.
    2. MODEL:ADAPTER names both.
    3. The name of an adapter that just one model has names both.

    Raises:
        InvalidRequest: the two fields contradict each other, or several models have that adapter.
    """
    served = tuple(statuses)
    names = {name for s in served for name in (s.version.model, s.version.label)}
    if not model or model in names:  # 1
        return model, adapter
    base, colon, named = model.rpartition(":")
    if colon and base in names:  # 2
        return base, _agreed(named, adapter)
    owners = [s.version.label for s in served if any(model == a.adapter.name for a in s.adapters)]
    if len(owners) > 1:
        choices = " or ".join(f"{owner}:{model}" for owner in owners)
        raise InvalidRequest(field="model", reason=f"is ambiguous; write {choices}")
    if owners:  # 3
        return owners[0], _agreed(model, adapter)
    return model, adapter


def _agreed(named: str, adapter: str) -> str:
    if adapter and adapter != named:
        reason = f"is '{adapter}' and contradicts 'model', which names '{named}'"
        raise InvalidRequest(field="adapter", reason=reason)
    return named
