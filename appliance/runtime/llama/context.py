"""Hold one context of llama.cpp: fill its batch, decode, read what came, move sequences.

What this room does: wraps the calls of llama-cpp-python's low-level binding that a step needs, with
numpy views in place of a ctypes call per token; finds what this memory lets us do to sequences.
What it knows: llama.h at llama-cpp-python 0.3.36. A context that can't be made comes back as None;
it belongs to one thread.
What it never does: check what a client sent (that happened before), schedule, or log.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import llama_cpp.llama_cpp as lib
import numpy as np

from appliance.domain import MemoryKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.runtime.llama.model import Model

# ctypes gives pointers no type that says what they point to.
Pointer: TypeAlias = Any

SEQUENCES_MAX = 256  # llama-cparams.h: LLAMA_MAX_SEQ
_POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_FLASH_ATTENTION = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class DecodeCode(enum.Enum):
    """What llama_decode returned (llama.h: llama_decode)."""

    OK = 0
    NO_ROOM = 1  # no cells for the batch; nothing has changed
    ABORTED = 2
    INVALID = -1  # the batch contradicts the cache; nothing has changed
    FATAL = -2  # and everything below: the context is not to be trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """What a context is asked for; the context tells what it got. Sizes in tokens or cells.

    outputs_max: rows of logits of one step, one for each sequence at least.
    """

    cells: int
    batch_tokens: int
    sequences_max: int
    threads_decode: int
    threads_prefill: int
    embedding: bool
    outputs_max: int = 0
    cache_type_k: int = lib.GGML_TYPE_F16
    cache_type_v: int = lib.GGML_TYPE_F16
    flash_attention: str = "auto"
    kv_unified: bool = True


class Adapter:
    """A LoRA adapter loaded for one model. Made by `Model.load_adapter`."""

    def __init__(self, pointer: Pointer) -> None:
        """Own a `llama_adapter_lora *`."""
        self.pointer = pointer

    def close(self) -> None:
        """Free it; no context may use it any more. Idempotent."""
        if self.pointer:
            lib.llama_adapter_lora_free(self.pointer)
            self.pointer = None


class Context:
    """One context with its memory and a batch filled through numpy. One thread uses it.

    `kv_unified`: all sequences share `cells` and may share single cells; else each sequence has
    `sequence_tokens_max` cells of its own. `memory_kind` is WHOLE until `probe_memory` found more.
    """

    def __init__(self, model: Model, options: ContextOptions) -> None:
        """Ask for the options and read back what came; `pointer` is None on failure."""
        assert 0 < options.sequences_max <= SEQUENCES_MAX
        params = lib.llama_context_default_params()
        params.n_ctx = options.cells
        params.n_batch = options.batch_tokens
        params.n_ubatch = options.batch_tokens  # one graph a step, and whole inputs if not causal
        params.n_seq_max = options.sequences_max
        params.n_threads = options.threads_decode
        params.n_threads_batch = options.threads_prefill
        params.kv_unified = options.kv_unified
        # Layers with a sliding window get as many cells as the others: in a smaller cache, cells
        # that several sequences share are never free again, and no ledger could count them.
        params.swa_full = True
        params.type_k = options.cache_type_k
        params.type_v = options.cache_type_v
        params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
        params.embeddings = options.embedding
        params.no_perf = True
        if not options.embedding:
            # As many rows of logits as are wanted, where the default reserves one per batch token;
            # llama.cpp asserts one for each sequence (llama-context.cpp: output_reserve).
            params.n_outputs_max = max(options.outputs_max, options.sequences_max)
        self._model = model
        self.kv_unified = options.kv_unified
        self.memory_kind = MemoryKind.WHOLE
        self.pointer = lib.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            return
        self._memory = lib.llama_get_memory(self.pointer)  # None for encoders
        self.cells = int(lib.llama_n_ctx(self.pointer))
        self.sequence_tokens_max = int(lib.llama_n_ctx_seq(self.pointer))
        self.batch_tokens = min(
            int(lib.llama_n_batch(self.pointer)), int(lib.llama_n_ubatch(self.pointer))
        )
        self.sequences_max = int(lib.llama_n_seq_max(self.pointer))
        self.pooling = _POOLINGS.get(int(lib.llama_pooling_type(self.pointer)), "none")
        ranks = self.pooling == "rank"
        self._pooled_size = model.ranks_count if ranks else model.embedding_size
        self._batch = _Batch(self.batch_tokens)
        self._adapter: tuple[Adapter | None, float] = (None, 1.0)

    def set_threads(self, count: int) -> None:
        """Evaluate with this many threads from the next decode on."""
        lib.llama_set_n_threads(self.pointer, count, count)

    @property
    def has_cache(self) -> bool:
        """Say whether there is a KV cache: an encoder has none, and can't generate."""
        return bool(self._memory)

    @property
    def row_size(self) -> int:
        """The length of a row of logits."""
        return self._model.vocabulary.size

    def put(self, at: int, token_ids: Sequence[int], seq_id: int, position: int) -> int:
        """Write consecutive tokens of a sequence into the batch; returns the next free index."""
        return self._batch.put(at, token_ids, seq_id, position)

    def put_singles(
        self, token_ids: Sequence[int], seq_ids: Sequence[int], positions: Sequence[int]
    ) -> int:
        """Write one token each of many sequences from index 0; all of them have outputs."""
        return self._batch.put_singles(token_ids, seq_ids, positions)

    def want_row(self, at: int) -> None:
        """Ask for the logits of the token at this index."""
        self._batch.outputs[at] = 1

    def want_rows(self, start: int, end: int) -> None:
        """Ask for an output of every token from start to before end."""
        self._batch.outputs[start:end] = 1

    def use_adapter(self, adapter: Adapter | None, scale: float = 1.0) -> None:
        """Apply this adapter, or none, in every decode from now on.

        A change makes llama.cpp plan its graphs anew in the next decode (llama-context.cpp:
        set_adapters_lora); the one in use already costs nothing.
        """
        if self._adapter == (adapter, scale):
            return
        if adapter is None:
            code = lib.llama_set_adapters_lora(self.pointer, None, 0, None)
        else:
            adapters = (lib.llama_adapter_lora_p_ctypes * 1)(
                ctypes.cast(adapter.pointer, lib.llama_adapter_lora_p_ctypes)
            )
            scales = (ctypes.c_float * 1)(scale)
            code = lib.llama_set_adapters_lora(self.pointer, adapters, 1, scales)
        assert code == 0, f"llama_set_adapters_lora returned {code}"
        self._adapter = (adapter, scale)

    def decode(self, count: int) -> DecodeCode:
        """Evaluate the first `count` entries of the batch; blocks until done, without the GIL."""
        assert 0 < count <= self.batch_tokens
        self._batch.struct.n_tokens = count
        code = int(lib.llama_decode(self.pointer, self._batch.struct))
        return DecodeCode(max(code, DecodeCode.FATAL.value))

    def logits(self, rows: int) -> NDArray[np.float32]:
        """View the logits of the last decode, (rows, n_vocab) float32, in the batch's order.

        The memory is llama.cpp's and is written again by the next decode.
        """
        pointer = lib.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.row_size))

    def embedding(self, seq_id: int) -> NDArray[np.float32]:
        """Copy what one sequence of the last decode was pooled to.

        (embedding_size,) float32; of a reranker (ranks_count,), what its head says.
        """
        pointer = lib.llama_get_embeddings_seq(self.pointer, seq_id)
        assert pointer, f"sequence {seq_id} has no embedding"
        size = self._pooled_size
        return np.ctypeslib.as_array(pointer, shape=(size,)).astype(np.float32, copy=True)

    def remove(self, seq_id: int) -> None:
        """Free the cells that only this sequence holds."""
        if self._memory:
            removed = lib.llama_memory_seq_rm(self._memory, seq_id, -1, -1)
            assert removed, f"sequence {seq_id} could not be removed"

    def copy(self, source: int, target: int) -> None:
        """Let the target share every cell of the source; moves no data in a unified cache."""
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Let the target share the first tokens of the source, beyond those it already holds.

        Moves no data. Only in a unified cache that can be cut: in a partitioned one llama.cpp
        aborts the process (llama-kv-cache.cpp: seq_cp). The target must hold nothing else.
        """
        assert self.memory_kind is MemoryKind.CUTTABLE
        assert self.kv_unified
        held = self.position_max(target) + 1  # a cell given twice would be counted twice
        if held < tokens:
            lib.llama_memory_seq_cp(self._memory, source, target, held, tokens)

    def cut(self, seq_id: int, tokens: int) -> bool:
        """Keep only the first tokens of a sequence; False: this memory can't, nothing changed."""
        if tokens <= 0:
            self.remove(seq_id)
            return True
        if self.memory_kind is MemoryKind.CUTTABLE:
            return bool(lib.llama_memory_seq_rm(self._memory, seq_id, tokens, -1))
        # Never asked of llama.cpp: with a sliding window it says yes, and has lost the window.
        return self.position_max(seq_id) < tokens

    def save_state(self, seq_id: int) -> NDArray[np.uint8]:
        """Copy all that the memory holds of one sequence, (bytes,) uint8; blocks for the copy."""
        data = np.empty(self.state_bytes(seq_id), np.uint8)
        written = lib.llama_state_seq_get_data_ext(
            self.pointer, _pointer(data, ctypes.c_uint8), data.size, seq_id, 0
        )
        assert written == data.size, f"a state of {data.size} bytes came as {written}"
        return data

    def restore_state(self, seq_id: int, data: NDArray[np.uint8]) -> int:
        """Give a sequence what `save_state` returned: of the same model, cache types and layout.

        What the sequence held before is lost. Returns the bytes read: all, or 0 where there are too
        few cells or the data is of another kind; then the sequence is empty.
        """
        assert 0 <= seq_id < self.sequences_max
        assert data.dtype == np.uint8
        read = int(
            lib.llama_state_seq_set_data_ext(
                self.pointer, _pointer(data, ctypes.c_uint8), data.size, seq_id, 0
            )
        )
        if read == data.size:
            return read
        self.remove(seq_id)
        return 0

    def probe_memory(self) -> None:
        """Find what may be done to sequences: from the model, and by trying; clears the memory.

        As llama-server does (common.cpp: common_context_can_seq_rm). What an architecture says of
        itself alone would let a new one pass, and a sliding window alone passes the trial.
        """
        if not self._memory or self._model.has_whole_memory:
            return
        self.clear()
        self.want_rows(0, self.put(0, [0, 0], 0, 0))
        if self.decode(2) is DecodeCode.OK:
            cut = lib.llama_memory_seq_rm(self._memory, 0, 1, -1)
            if cut and self.position_max(0) == 0:
                self.memory_kind = MemoryKind.CUTTABLE
        self.clear()

    def clear(self) -> None:
        """Free all cells."""
        if self._memory:
            lib.llama_memory_clear(self._memory, True)  # noqa: FBT003 - ctypes takes no keywords

    def close(self) -> None:
        """Free the context and its memory; nothing of it may be used afterwards."""
        lib.llama_free(self.pointer)
        self.pointer = None

    def position_max(self, seq_id: int) -> int:
        """Find the last position that a sequence holds, -1 if it is empty."""
        if not self._memory:
            return -1
        return int(lib.llama_memory_seq_pos_max(self._memory, seq_id))

    def state_bytes(self, seq_id: int) -> int:
        """Measure the state of one sequence, with a header of a fixed size."""
        return int(lib.llama_state_seq_get_size_ext(self.pointer, seq_id, 0))


class _Batch:
    """A llama_batch over numpy arrays of our own; each entry belongs to one sequence."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._seq_ids = np.zeros(size, dtype=np.int32)
        self._seq_counts = np.ones(size, dtype=np.int32)
        self.outputs = np.zeros(size, dtype=np.int8)
        step = self._seq_ids.itemsize
        addresses = self._seq_ids.ctypes.data + step * np.arange(size, dtype=np.uint64)
        self._seq_pointers = addresses.astype(np.uint64)
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._seq_counts, ctypes.c_int32),
            seq_id=_pointer(self._seq_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self.outputs, ctypes.c_int8),
        )

    def put(self, at: int, token_ids: Sequence[int], seq_id: int, position: int) -> int:
        end = at + len(token_ids)
        self._tokens[at:end] = token_ids
        self._seq_ids[at:end] = seq_id
        self._positions[at:end] = np.arange(position, position + end - at, dtype=np.int32)
        self.outputs[at:end] = 0
        return end

    def put_singles(
        self, token_ids: Sequence[int], seq_ids: Sequence[int], positions: Sequence[int]
    ) -> int:
        count = len(token_ids)
        self._tokens[:count] = token_ids
        self._seq_ids[:count] = seq_ids
        self._positions[:count] = positions
        self.outputs[:count] = 1
        return count


def _pointer(array: NDArray[Any], kind: type[Any]) -> Pointer:
    return array.ctypes.data_as(ctypes.POINTER(kind))
