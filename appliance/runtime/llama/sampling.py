"""Cut distributions with llama.cpp's own samplers.

What this room does: one chain of samplers per generation, over a row of logits.
What it knows: a failed sampler is a falsy pointer; a chain owns the samplers in it.
What it never does: draw, or apply a temperature: that is `runtime/sampler.py`.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib
import numpy as np

from appliance.runtime.llama.context import Pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class SamplerChain:
    """llama.cpp's samplers that cut a distribution; temperature and the draw itself are ours."""

    def __init__(
        self, *, size: int, top_k: int, typical_p: float, top_p: float, min_p: float
    ) -> None:
        """Chain those that do something, in llama.cpp's usual order, for rows of this size."""
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._candidates = np.zeros(size, dtype=_CANDIDATE)
        self._ids = np.arange(size, dtype=np.int32)
        self._data: Pointer = ctypes.cast(self._candidates.ctypes.data, lib.llama_token_data_p)
        self._array = lib.llama_token_data_array()
        if top_k > 0:
            self._add(lib.llama_sampler_init_top_k(top_k))
        if typical_p < 1.0:
            self._add(lib.llama_sampler_init_typical(typical_p, 1))
        if top_p < 1.0:
            self._add(lib.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0.0:
            self._add(lib.llama_sampler_init_min_p(min_p, 1))

    def _add(self, sampler: Pointer) -> None:
        assert sampler, "llama.cpp could not make a sampler"
        lib.llama_sampler_chain_add(self._chain, sampler)

    def apply(
        self, logits: NDArray[np.float32], ids: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Reduce logits to the (ids, logits) still in play, in llama.cpp's order.

        ids None: the logits are those of the whole vocabulary.
        """
        candidates = self._candidates[: len(logits)]
        candidates["id"] = self._ids if ids is None else ids
        candidates["logit"] = logits
        array = self._array
        array.data = self._data
        array.size = len(candidates)
        array.selected = -1
        array.sorted = False
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        left = np.ctypeslib.as_array(
            ctypes.cast(array.data, ctypes.POINTER(ctypes.c_uint8)),
            shape=(array.size * _CANDIDATE.itemsize,),
        ).view(_CANDIDATE)
        return left["id"].copy(), left["logit"].copy()

    def close(self) -> None:
        """Free the samplers."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None
