"""Continue a prompt greedily with llama.cpp itself, in a process that may crash.

What this room does: the main of a child process: MODEL, N and perhaps ADAPTER and SCALE in, one
JSON object out, on stdout.
What it knows: the low-level API of llama_cpp.
What it never does: go through any code of the appliance.
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp
import numpy as np


def greedy(path: str, count: int, adapter: str = "", scale: str = "1") -> dict[str, object]:
    """Load the model, decode a prompt and `count` tokens; return ids, text and logit statistics."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        path.encode(), llama_cpp.llama_model_default_params()
    )
    assert model, "llama.cpp refused the file"
    vocab = llama_cpp.llama_model_get_vocab(model)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, "llama.cpp made no context"
    if adapter:
        lora = llama_cpp.llama_adapter_lora_init(model, adapter.encode())
        assert lora, "llama.cpp refused the adapter"
        loras = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
        scales = (ctypes.c_float * 1)(float(scale))
        assert llama_cpp.llama_set_adapters_lora(context, loras, 1, scales) == 0
    text = "<|im_start|>user\nhow are you, 你好?".encode()
    space = (llama_cpp.llama_token * 256)()
    found = llama_cpp.llama_tokenize(vocab, text, len(text), space, 256, True, True)  # noqa: FBT003
    pending, ids = list(space[:found]), []
    size = llama_cpp.llama_vocab_n_tokens(vocab)
    logits = np.zeros(size, np.float32)
    for _ in range(count):
        tokens = (llama_cpp.llama_token * len(pending))(*pending)
        batch = llama_cpp.llama_batch_get_one(tokens, len(pending))
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (size,)).copy()
        pending = [int(np.argmax(logits))]
        ids += pending
    out = ctypes.create_string_buffer(4096)
    written = llama_cpp.llama_detokenize(
        vocab,
        (llama_cpp.llama_token * found)(*space[:found]),
        found,
        out,
        4096,
        False,  # noqa: FBT003
        True,  # noqa: FBT003
    )
    return {
        "prompt": out.raw[:written].decode(),
        "prompt_tokens": found,
        "ids": ids,
        "finite": bool(np.isfinite(logits).all()),
        "deviation": float(logits.std()),
        "template": bool(llama_cpp.llama_model_chat_template(model, None)),
    }


if __name__ == "__main__":
    json.dump(greedy(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]), sys.stdout)
