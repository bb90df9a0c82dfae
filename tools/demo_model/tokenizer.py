"""Train the byte-level BPE tokenizer and load it again.

What this room does: BPE over the generated corpus, with the pre-tokenizer that llama.cpp calls
"qwen2" (digits singly, letters by word, so Chinese runs merge freely); the control tokens.
What it knows: ids 0 to 255 need no order of their own: llama.cpp reads the strings, and they are
the byte-level alphabet.
What it never does: normalise. Text comes back byte for byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.demo_model import corpus
from tools.demo_model.chat import render_prompt

VOCABULARY_SIZE = 2048
PRE_TOKENIZER = "qwen2"  # the name under which llama.cpp knows the expression below
# llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_QWEN2.
_EXPRESSION = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TOOL_START, TOOL_END = "<tool_call>", "</tool_call>"
CONTROL_TOKENS = (PAD, TURN_START, TURN_END)
VISIBLE_TOKENS = (TOOL_START, TOOL_END)
_SAMPLE_COUNT = 40_000


def _sample(seed: int) -> Iterator[str]:
    for example in itertools.islice(corpus.examples(seed, held_out=False), _SAMPLE_COUNT):
        text = render_prompt(example.messages, example.tools) + example.expected
        for special in (*CONTROL_TOKENS, *VISIBLE_TOKENS):
            text = text.replace(special, "\n")
        yield text


def train_tokenizer(seed: int, path: Path) -> Tokenizer:
    """Train on text of the training set only and write the result to `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_EXPRESSION), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[*CONTROL_TOKENS, *VISIBLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(seed), trainer)
    tokenizer.save(str(path))
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Load what `train_tokenizer` wrote."""
    return Tokenizer.from_file(str(path))
