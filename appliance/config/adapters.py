"""Hold what the configuration says of LoRA adapters.

What this room does: the table `models.adapters`.
What it knows: an adapter belongs to the model in whose table it stands.
What it never does: read a file.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.config.section import Section


class Adapter(Section):
    """One LoRA adapter of the model above, loaded with it. Repeat the table for each."""

    name: Annotated[
        str,
        Meta(
            max_length=128,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            description="Name clients use, as 'adapter', as the model's name, or as MODEL:NAME.",
        ),
    ]
    path: Annotated[str, Meta(min_length=1, description="The GGUF file of the adapter.")]
    scale: Annotated[
        float, Meta(ge=-16, le=16, description="How strongly it is applied; 1 is as trained.")
    ] = 1.0
