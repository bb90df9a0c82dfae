"""Write random-weight GGUF models, of any llama shape and some others, for tests and benchmarks.

What this room does: shapes, tokenizers and random tensor data become one GGUF file that llama.cpp
loads and decodes; random LoRA adapters for such a file, or any other, likewise. The same arguments
give the same bytes.
What it knows: the layout of llama models and of ggml's quantised blocks.
What it never does: train, or quantise existing weights.
"""

from __future__ import annotations

from tools.gguf_writer.adapter import Lora, write_lora
from tools.gguf_writer.blocks import Quantisation
from tools.gguf_writer.others import WINDOW_TOKENS, Architecture, write_other
from tools.gguf_writer.pooling import write_bert
from tools.gguf_writer.shapes import SHAPES, Shape
from tools.gguf_writer.vocabulary import Vocabulary, byte_vocabulary, read_vocabulary
from tools.gguf_writer.writer import EDITION, Tensor, silent_layers, write_llama

__all__ = [
    "EDITION",
    "SHAPES",
    "WINDOW_TOKENS",
    "Architecture",
    "Lora",
    "Quantisation",
    "Shape",
    "Tensor",
    "Vocabulary",
    "byte_vocabulary",
    "read_vocabulary",
    "silent_layers",
    "write_bert",
    "write_llama",
    "write_lora",
    "write_other",
]
