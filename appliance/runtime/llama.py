"""Be the one door to llama.cpp: load, decode, read logits and embeddings, move sequences.

What this room does: wraps the calls of llama-cpp-python's low-level binding that serving needs,
with numpy views in place of a ctypes call per token.
What it knows: llama.h at llama-cpp-python 0.3.36. Load and context failures come back as None, a
failed sampler as a falsy pointer; a context belongs to one thread.
What it never does: check what a client sent (that happened before), schedule, or log. llama.cpp's
own log is kept only while loading, for the reason of a failure: later it could hold prompt text.
"""

from __future__ import annotations

import ctypes
import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import llama_cpp.llama_cpp as lib
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# ctypes gives pointers no type that says what they point to.
Pointer: TypeAlias = Any

_LOG_LINES_MAX = 20
_LOG_LEVEL_WARN = 3
_PIECE_BYTES_MAX = 4096
_LONG_PIECE_BYTES_MAX = 1024 * 1024
_SEQUENCES_MAX = 256  # llama-cparams.h: LLAMA_MAX_SEQ
_POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_FLASH_ATTENTION = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_SPELT = True
_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class EngineFault(Exception):
    """llama.cpp could not load the model or make the context; the text is one reason."""


class DecodeCode(enum.Enum):
    """What llama_decode returned (llama.h: llama_decode)."""

    OK = 0
    NO_ROOM = 1  # no cells for the batch; nothing has changed
    ABORTED = 2
    INVALID = -1  # the batch contradicts the cache; nothing has changed
    FATAL = -2  # and everything below: the context is not to be trusted


class Vocabulary:
    """The tokens of a model, read once: pieces as shown, pieces with control tokens spelt out."""

    def __init__(self, model: Pointer) -> None:
        """Read all tokens of a loaded `llama_model *` (some hundred ms for 150 000)."""
        self.pointer = lib.llama_model_get_vocab(model)
        self.size = int(lib.llama_vocab_n_tokens(self.pointer))
        self.bos_id = int(lib.llama_vocab_bos(self.pointer))
        self.eos_id = int(lib.llama_vocab_eos(self.pointer))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self.pointer))
        ids = range(self.size)
        self.control_ids = tuple(
            token_id
            for token_id in ids
            if lib.llama_vocab_get_attr(self.pointer, token_id) & _CONTROL
        )
        self.end_ids = tuple(
            token_id for token_id in ids if lib.llama_vocab_is_eog(self.pointer, token_id)
        )
        buffer = ctypes.create_string_buffer(_PIECE_BYTES_MAX)
        self.spelt = tuple(self._piece(token_id, buffer) for token_id in ids)
        hidden = frozenset(self.control_ids)
        self.pieces = tuple(
            b"" if token_id in hidden else piece for token_id, piece in enumerate(self.spelt)
        )

    def _piece(self, token_id: int, buffer: ctypes.Array[ctypes.c_char]) -> bytes:
        size = lib.llama_token_to_piece(self.pointer, token_id, buffer, len(buffer), 0, _SPELT)
        if size < 0:
            if -size > _LONG_PIECE_BYTES_MAX:
                raise EngineFault(f"token {token_id} has {-size} bytes")
            return self._piece(token_id, ctypes.create_string_buffer(-size))
        return bytes(buffer.raw[:size])

    @property
    def tokenize_address(self) -> int:
        """Find the address of `llama_tokenize`, for the grammar engine."""
        return ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value or 0  # noqa: SLF001 - not bound otherwise


# llama.cpp calls the last log callback it was given from any thread until the process ends, also
# when the model that set it is gone: so ours live as long.
_KEPT_CALLBACKS: list[object] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """What a context is asked for; the context tells what it got. Sizes in tokens or cells."""

    cells: int
    batch_tokens: int
    sequences_max: int
    threads_decode: int
    threads_prefill: int
    embedding: bool
    cache_type_k: int = lib.GGML_TYPE_F16
    cache_type_v: int = lib.GGML_TYPE_F16
    flash_attention: str = "auto"


class Model:
    """A loaded model. Blocks while loading; freed with the process."""

    def __init__(
        self, path: Path, *, gpu_layers: int, on_progress: Callable[[float], None]
    ) -> None:
        """Map and load a file that was found whole.

        `on_progress` is called from this thread with ratios from 0 to 1.

        Raises:
            EngineFault: llama.cpp refused it.
        """
        self._log: deque[str] | None = deque(maxlen=_LOG_LINES_MAX)
        log_callback = lib.llama_log_callback(self._on_log)
        _KEPT_CALLBACKS.append(log_callback)
        lib.llama_log_set(log_callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self._progress_callback = lib.llama_progress_callback(_progress(on_progress))
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.progress_callback = self._progress_callback
        self.pointer = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise EngineFault(self._log_reason("llama.cpp can't load it"))
        self.vocabulary = Vocabulary(self.pointer)
        self.embedding_size = int(lib.llama_model_n_embd_out(self.pointer))
        self.context_train_tokens = int(lib.llama_model_n_ctx_train(self.pointer))
        self.parameters_count = int(lib.llama_model_n_params(self.pointer))
        self.size_bytes = int(lib.llama_model_size(self.pointer))
        self.has_chat_template = bool(lib.llama_model_chat_template(self.pointer, None))
        self.architecture = self._meta("general.architecture")
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.pointer, buffer, len(buffer))
        self.description = buffer.value.decode("utf-8", errors="replace")

    @property
    def has_encoder(self) -> bool:
        """Say whether it has an encoder beside a decoder, which this engine does not drive."""
        return bool(lib.llama_model_has_encoder(self.pointer))

    def open_context(self, options: ContextOptions) -> Context:
        """Make the one context of this process, and stop listening to llama.cpp's log.

        Raises:
            EngineFault: too little memory, or options that this model can't have.
        """
        context = Context(self, options)
        if not context.pointer:
            raise EngineFault(self._log_reason("llama.cpp can't make a context for it"))
        self._log = None
        return context

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        size = lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace") if size >= 0 else ""

    def _on_log(self, level: int, text: bytes, _user_data: object) -> None:
        if self._log is not None and level >= _LOG_LEVEL_WARN:
            self._log.append(text.decode("utf-8", errors="replace").strip())

    def _log_reason(self, what: str) -> str:
        lines = [line for line in self._log or () if line]
        # The first complaint is the cause; the ones after it only say that loading failed.
        return f"{what}: {lines[0]}" if lines else what


class Context:
    """One context with a unified KV cache and a batch filled through numpy. One thread uses it."""

    def __init__(self, model: Model, options: ContextOptions) -> None:
        """Ask for the options and read back what came; `pointer` is None on failure."""
        assert 0 < options.sequences_max <= _SEQUENCES_MAX
        params = lib.llama_context_default_params()
        params.n_ctx = options.cells
        params.n_batch = options.batch_tokens
        params.n_ubatch = options.batch_tokens  # one graph a step, and whole inputs if not causal
        params.n_seq_max = options.sequences_max
        params.n_threads = options.threads_decode
        params.n_threads_batch = options.threads_prefill
        params.kv_unified = True
        params.type_k = options.cache_type_k
        params.type_v = options.cache_type_v
        params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
        params.embeddings = options.embedding
        params.no_perf = True
        if not options.embedding:
            # A row of logits per sequence at most, where the default reserves one per batch token.
            params.n_outputs_max = options.sequences_max
        self._model = model
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
        self._batch = _Batch(self.batch_tokens)

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
        """Copy the pooled vector of one sequence of the last decode, (embedding_size,) float32."""
        pointer = lib.llama_get_embeddings_seq(self.pointer, seq_id)
        assert pointer, f"sequence {seq_id} has no embedding"
        size = self._model.embedding_size
        return np.ctypeslib.as_array(pointer, shape=(size,)).astype(np.float32, copy=True)

    def remove(self, seq_id: int) -> None:
        """Free the cells that only this sequence holds."""
        if self._memory:
            removed = lib.llama_memory_seq_rm(self._memory, seq_id, -1, -1)
            assert removed, f"sequence {seq_id} could not be removed"

    def copy(self, source: int, target: int) -> None:
        """Let the target share every cell of the source; moves no data in a unified cache."""
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def clear(self) -> None:
        """Free all cells."""
        if self._memory:
            lib.llama_memory_clear(self._memory, True)  # noqa: FBT003 - ctypes takes no keywords

    def position_max(self, seq_id: int) -> int:
        """Find the last position that a sequence holds, -1 if it is empty."""
        if not self._memory:
            return -1
        return int(lib.llama_memory_seq_pos_max(self._memory, seq_id))

    def state_bytes(self, seq_id: int) -> int:
        """Measure the state of one sequence, with a header of a fixed size."""
        return int(lib.llama_state_seq_get_size(self.pointer, seq_id))


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

    def apply(self, row: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Reduce a row of logits to the (ids, logits) still in play, in llama.cpp's order."""
        self._candidates["id"] = self._ids
        self._candidates["logit"] = row
        array = self._array
        array.data = self._data
        array.size = len(self._candidates)
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


def supports_gpu() -> bool:
    """Say whether this build of llama.cpp can put layers on a GPU."""
    return bool(lib.llama_supports_gpu_offload())


def system_info() -> str:
    """Name this build's CPU features and backends (llama.h: llama_print_system_info)."""
    return str(lib.llama_print_system_info().decode("utf-8", "replace"))


def _pointer(array: NDArray[Any], kind: type[Any]) -> Pointer:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def _progress(on_progress: Callable[[float], None]) -> Callable[[float, object], bool]:
    def report(ratio: float, _user_data: object) -> bool:
        on_progress(ratio)
        return True  # False would cancel the load

    return report
