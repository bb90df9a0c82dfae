"""Score pairs with llama.cpp itself, one at a time, in a process that may crash.

What this room does: the main of a child process: MODEL in, a JSON list of token lists on stdin, a
JSON list of scores out, on stdout.
What it knows: the low-level API of llama_cpp.
What it never does: go through any code of the appliance.
"""

from __future__ import annotations

import json
import sys

import llama_cpp


def scores(path: str, inputs: list[list[int]]) -> list[float]:
    """Evaluate each input in a batch of its own; the first value of the head is the score."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        path.encode(), llama_cpp.llama_model_default_params()
    )
    assert model, "llama.cpp refused the file"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads, params.n_threads_batch, params.embeddings = 1, 1, True
    params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_RANK
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, "llama.cpp made no context"
    found = []
    for token_ids in inputs:
        tokens = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(token_ids))
        assert llama_cpp.llama_encode(context, batch) == 0
        found.append(float(llama_cpp.llama_get_embeddings_seq(context, 0)[0]))
    return found


if __name__ == "__main__":
    json.dump(scores(sys.argv[1], json.load(sys.stdin)), sys.stdout)
