"""Read the bodies that load and unload LoRA adapters over REST.

What this room does: vLLM's bodies, with our additions: `model` and `scale`.
What it knows: vLLM's API reference of its endpoints for LoRA.
What it never does: look at a path (`api.adapters` does).
"""

from __future__ import annotations

from appliance.api.json_body import convert, members_of
from appliance.api.openai_shapes import Shape
from appliance.config import Adapter
from appliance.errors import InvalidRequest


class LoadBody(Shape):
    """POST /v1/load_lora_adapter. `base_model_name` is vLLM's word for our `model`."""

    lora_name: str
    lora_path: str
    model: str | None = None
    base_model_name: str | None = None
    scale: float = 1.0
    load_inplace: bool | None = None


class UnloadBody(Shape):
    """POST /v1/unload_lora_adapter. Names are all it takes; vLLM's number has no meaning here."""

    lora_name: str
    model: str | None = None
    lora_int_id: int | None = None


def read_load(body: bytes) -> tuple[str, Adapter]:
    """Read which model ("" for the only one) is to have which adapter.

    Raises:
        InvalidRequest: names the field that is missing, unknown, wrong, or contradicts another.
    """
    asked = convert(members_of(body), LoadBody)
    if asked.load_inplace:
        reason = "is not served: unload the adapter, then load the new file"
        raise InvalidRequest(field="load_inplace", reason=reason)
    model = asked.model or asked.base_model_name or ""
    if asked.base_model_name not in (None, model):
        raise InvalidRequest(field="base_model_name", reason="contradicts 'model'")
    return model, Adapter(name=asked.lora_name, path=asked.lora_path, scale=asked.scale)


def read_unload(body: bytes) -> tuple[str, str]:
    """Read which model ("" for the only one that has it) is to lose which adapter.

    Raises:
        InvalidRequest: as `read_load`.
    """
    asked = convert(members_of(body), UnloadBody)
    return asked.model or "", asked.lora_name
