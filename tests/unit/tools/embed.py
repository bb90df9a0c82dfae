"""Embed sentences with llama.cpp itself, in a process that may crash.

What this room does: the main of a child process: MODEL as argument, a JSON list of sentences on
stdin, a JSON list of L2-normalised vectors on stdout.
What it knows: the low-level API of llama_cpp.
What it never does: go through any code of the appliance.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np

TOKENS = 512


def embed(path: str, sentences: list[str]) -> list[list[float]]:
    """Return one vector for each sentence, pooled as the file says."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        path.encode(), llama_cpp.llama_model_default_params()
    )
    assert model, "llama.cpp refused the file"
    params = llama_cpp.llama_context_default_params()
    params.embeddings, params.n_threads, params.n_threads_batch = True, 1, 1
    params.n_ctx = params.n_batch = params.n_ubatch = TOKENS
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, "llama.cpp made no context"
    assert llama_cpp.llama_pooling_type(context) == llama_cpp.LLAMA_POOLING_TYPE_MEAN
    vocab, size = llama_cpp.llama_model_get_vocab(model), llama_cpp.llama_model_n_embd(model)
    vectors = []
    for sentence in sentences:
        text, ids = sentence.encode(), (llama_cpp.llama_token * TOKENS)()
        count = llama_cpp.llama_tokenize(vocab, text, len(text), ids, TOKENS, True, False)  # noqa: FBT003
        assert llama_cpp.llama_encode(context, llama_cpp.llama_batch_get_one(ids, count)) == 0
        found = llama_cpp.llama_get_embeddings_seq(context, 0)
        vector = np.ctypeslib.as_array(found, (size,)).astype(np.float64)
        vectors.append((vector / np.linalg.norm(vector)).tolist())
    return vectors


if __name__ == "__main__":
    json.dump(embed(sys.argv[1], json.load(sys.stdin)), sys.stdout)
