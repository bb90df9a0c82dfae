"""Load a model through llama.cpp, and read its vocabulary and what it says of itself.

What this room does: one load with its progress; the tokens of a model, read once.
What it knows: a failed load comes back as None, and its reason is in llama.cpp's log.
What it never does: keep llama.cpp's log once the context is made: later it could hold prompt text.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib

from appliance.runtime.infill import InfillTokens
from appliance.runtime.llama.context import Adapter, Context, ContextOptions, Pointer

if TYPE_CHECKING:
    from pathlib import Path

_LOG_LINES_MAX = 20
_LOG_LEVEL_WARN = 3
_PIECE_BYTES_MAX = 4096
_LONG_PIECE_BYTES_MAX = 1024 * 1024
_SPELT = True
_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN


class EngineFault(Exception):
    """llama.cpp could not load the model or make the context; the text is one reason."""


class EngineLost(Exception):
    """The context is not to be trusted any more: the process must end (exit code 70)."""


class Vocabulary:
    """The tokens of a model, read once: pieces as shown, pieces with control tokens spelt out."""

    def __init__(self, model: Pointer) -> None:
        """Read all tokens of a loaded `llama_model *` (some hundred ms for 150 000)."""
        self.pointer = lib.llama_model_get_vocab(model)
        self.size = int(lib.llama_vocab_n_tokens(self.pointer))
        self.bos_id = int(lib.llama_vocab_bos(self.pointer))
        self.eos_id = int(lib.llama_vocab_eos(self.pointer))
        self.sep_id = int(lib.llama_vocab_sep(self.pointer))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self.pointer))
        self.adds_eos = bool(lib.llama_vocab_get_add_eos(self.pointer))
        self.adds_sep = bool(lib.llama_vocab_get_add_sep(self.pointer))
        self.infill = InfillTokens(
            prefix=int(lib.llama_vocab_fim_pre(self.pointer)),
            suffix=int(lib.llama_vocab_fim_suf(self.pointer)),
            middle=int(lib.llama_vocab_fim_mid(self.pointer)),
            repository=int(lib.llama_vocab_fim_rep(self.pointer)),
            separator=int(lib.llama_vocab_fim_sep(self.pointer)),
        )
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
        self.ranks_count = int(lib.llama_model_n_cls_out(self.pointer))
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

    @property
    def has_whole_memory(self) -> bool:
        """Say whether it remembers a window or a state, which can't be cut at a token."""
        return bool(
            lib.llama_model_n_swa(self.pointer) > 0
            or lib.llama_model_is_recurrent(self.pointer)
            or lib.llama_model_is_hybrid(self.pointer)
        )

    def open_trial(self, options: ContextOptions) -> Context | None:
        """Make a context to measure with, before the one that serves; None: too little memory."""
        context = Context(self, options)
        if self._log is not None:
            self._log.clear()  # what it said of this one is no reason why another fails
        return context if context.pointer else None

    def open_context(self, options: ContextOptions) -> Context:
        """Make the one context of this process, and stop listening to llama.cpp's log.

        Raises:
            EngineFault: too little memory, or options that this model can't have.
        """
        context = Context(self, options)
        if not context.pointer:
            raise EngineFault(self._log_reason("llama.cpp can't make a context for it"))
        self._log = None
        if not options.embedding:
            context.probe_memory()
        return context

    def load_adapter(self, path: Path) -> Adapter:
        """Read a LoRA adapter that was checked; blocks for its bytes. Not while decoding.

        Raises:
            EngineFault: llama.cpp refused it.
        """
        self._log = deque(maxlen=_LOG_LINES_MAX)
        pointer = lib.llama_adapter_lora_init(self.pointer, str(path).encode())
        reason = self._log_reason("llama.cpp can't load it")
        self._log = None
        if not pointer:
            raise EngineFault(reason)
        return Adapter(pointer)

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


def supports_gpu() -> bool:
    """Say whether this build of llama.cpp can put layers on a GPU."""
    return bool(lib.llama_supports_gpu_offload())


def system_info() -> str:
    """Name this build's CPU features and backends (llama.h: llama_print_system_info)."""
    return str(lib.llama_print_system_info().decode("utf-8", "replace"))


def _progress(on_progress: Callable[[float], None]) -> Callable[[float, object], bool]:
    def report(ratio: float, _user_data: object) -> bool:
        on_progress(ratio)
        return True  # False would cancel the load

    return report
