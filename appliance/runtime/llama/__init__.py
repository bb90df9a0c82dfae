"""Be the one door to llama.cpp: load, decode, read logits and embeddings, move sequences."""

from __future__ import annotations

from appliance.runtime.llama.context import (
    SEQUENCES_MAX,
    Adapter,
    Context,
    ContextOptions,
    DecodeCode,
)
from appliance.runtime.llama.model import (
    EngineFault,
    EngineLost,
    Model,
    Vocabulary,
    supports_gpu,
    system_info,
)
from appliance.runtime.llama.sampling import SamplerChain

__all__ = [
    "SEQUENCES_MAX",
    "Adapter",
    "Context",
    "ContextOptions",
    "DecodeCode",
    "EngineFault",
    "EngineLost",
    "Model",
    "SamplerChain",
    "Vocabulary",
    "supports_gpu",
    "system_info",
]
