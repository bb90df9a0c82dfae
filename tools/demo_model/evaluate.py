"""Measure the GGUF files on held-out chats through llama.cpp, and write the model card.

What this room does: greedy answers of a file to held-out chats, compared letter for letter; the
card; the sample of held-out chats that is kept beside the models.
What it knows: the low-level API of llama-cpp-python, one sequence at a time.
What it never does: use PyTorch. What is measured is what is served.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import llama_cpp
import numpy as np

from tools.demo_model import corpus
from tools.demo_model.chat import render_prompt

HELD_OUT_SEED = 8
COUNT = 1000
KEPT_COUNT = 200
_CONTEXT_TOKENS = 512
_ANSWER_TOKENS_MAX = 96

Score = dict[str, tuple[int, int]]  # task and language → right, asked


class Answerer:
    """One loaded file that answers greedily."""

    def __init__(self, path: Path, *, threads: int = 2) -> None:
        """Load the file; blocks."""
        llama_cpp.llama_backend_init()
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        assert self.model, path
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = _CONTEXT_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of a text; `special`: control tokens in it are parsed."""
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(
            self.vocabulary,
            raw,
            len(raw),
            ids,
            len(ids),
            False,  # noqa: FBT003 - C order
            special,
        )
        return list(ids[:count])

    def _piece(self, token_id: int) -> bytes:
        held = ctypes.create_string_buffer(256)
        size = llama_cpp.llama_token_to_piece(
            self.vocabulary,
            token_id,
            held,
            len(held),
            0,
            True,  # noqa: FBT003 - C order
        )
        return held.raw[:size]

    def _best_after(self, ids: list[int], position: int) -> int:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for row, token_id in enumerate(ids):
            batch.token[row] = token_id
            batch.pos[row] = position + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = row == len(ids) - 1
        assert llama_cpp.llama_decode(self.context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary_size,)).argmax())

    def answer(self, prompt: str) -> str:
        """Return the greedy answer to a rendered prompt, up to the end of the turn."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, False)  # noqa: FBT003 - C order
        ids, position, text = self.tokenize(prompt), 0, b""
        for _ in range(_ANSWER_TOKENS_MAX):
            best = self._best_after(ids, position)
            position += len(ids)
            if llama_cpp.llama_vocab_is_eog(self.vocabulary, best):
                break
            text += self._piece(best)
            ids = [best]
        return text.decode(errors="replace")


def held_out_sample(count: int) -> list[corpus.Example]:
    """Draw the held-out chats that every figure rests on."""
    return list(itertools.islice(corpus.examples(HELD_OUT_SEED, held_out=True), count))


def score(path: Path, chats: Iterable[corpus.Example]) -> Score:
    """Count, per task and language, exactly right answers of a file."""
    answerer = Answerer(path)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for example in chats:
        name = f"{example.task} {example.language}"
        asked[name] += 1
        got = answerer.answer(render_prompt(example.messages, example.tools))
        right[name] += got == example.expected
    return {name: (right[name], asked[name]) for name in sorted(asked)}


def exact_share(result: Score) -> float:
    """Return the share of right answers over all tasks."""
    return sum(r for r, _ in result.values()) / sum(a for _, a in result.values())


def write_kept(chats: list[corpus.Example], path: Path) -> None:
    """Write held-out chats with their answers, one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for example in chats:
            row = {
                "task": example.task,
                "language": example.language,
                "messages": list(example.messages),
                "tools": list(example.tools),
                "expected": example.expected,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


_CARD = """\
# The demo model

{description}

Made by `tools/demo_model` from text that the tool itself generates; no other data went in.
Licence: Apache-2.0, as the whole project. Llama architecture, {layers} layers of width {width},
byte-level BPE of {vocabulary} tokens (digits singly), context 1024 tokens. Training: seed {seed},
{steps} steps, {minutes:.0f} minutes on a shared machine with 2 cores.

| file | what it is | bytes | held-out answers exactly right |
|---|---|---|---|
{files}

Measured through llama.cpp on {count} held-out chats by greedy decoding, letter for letter:
`python -m tools.demo_model evaluate FOLDER`. A held-out chat is one whose numbers, names or words
in combination were never trained on (`tools/demo_model/corpus.py`). Of version 2, by task:

| task | language | right | asked |
|---|---|---|---|
{tasks}

Version 1 is an earlier point of the same training, version 3 is version 2 with noise on one tensor
({damaged}): it loads, and answers badly. `heldout.jsonl` holds {kept} of the held-out chats.

To make it again: `pip install -r tools/demo_model/requirements.txt`, then
`python -m tools.demo_model train FOLDER`, `export FOLDER`, `evaluate FOLDER`.
"""


def write_card(results: dict[Path, Score], facts: dict[str, object], path: Path) -> None:
    """Write the card from measured results; `facts` fills the rest of the text."""
    what = {
        "1": "version 1, an earlier checkpoint",
        "2": "version 2",
        "3": "version 3, damaged",
    }
    rows = [
        f"| `{file.name}` | {what[file.name[5]]} | {file.stat().st_size:,} "
        f"| {exact_share(result):.1%} |"
        for file, result in results.items()
    ]
    best = next(r for file, r in results.items() if file.name == "demo-2.q8_0.gguf")
    tasks = [f"| {' | '.join(name.split())} | {r} | {a} |" for name, (r, a) in best.items()]
    filled = _CARD.format(files="\n".join(rows), tasks="\n".join(tasks), **facts)
    path.write_text(textwrap.dedent(filled), encoding="utf-8")
