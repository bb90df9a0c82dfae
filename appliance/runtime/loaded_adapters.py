"""Hold the LoRA adapters that a worker has loaded, and put the one of a step on the context.

What this room does: loads and frees between steps, on the thread that owns the context; keeps the
context on the adapter of the step.
What it knows: llama.cpp reads the whole file while it loads, so no step can run meanwhile; how long
that was is told. The daemon has read the file just before, to check and sign it, so its bytes come
from memory.
What it never does: check what an adapter is (`adapter_head` did), or free one that a ticket names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.errors import InvalidRequest
from appliance.runtime import wire
from appliance.runtime.adapters import file_key
from appliance.runtime.llama import Adapter, Context, EngineFault, Model


class LoadedAdapters:
    """The adapters of one worker, by key. "" is none, and is always there."""

    def __init__(self, model: Model, context: Context, clock: Callable[[], float]) -> None:
        """Begin with none. `clock` reads monotonic milliseconds."""
        self._model = model
        self._context = context
        self._clock = clock
        self._adapters: dict[str, tuple[Adapter | None, float]] = {"": (None, 1.0)}
        self._used = ""

    def check(self, key: str) -> None:
        """Refuse a request for an adapter that is not here.

        Raises:
            InvalidRequest: it is not.
        """
        if key not in self._adapters:
            raise InvalidRequest(field="adapter", reason="is not loaded in this worker")

    def load(self, frame: wire.LoadAdapter) -> wire.AdapterLoaded | wire.AdapterFailed:
        """Load an adapter, or say why not; blocks for its bytes."""
        assert frame.key not in self._adapters, f"the adapter {frame.key} was loaded twice"
        began_ms = self._clock()
        path = Path(frame.path)
        try:
            _check_same(path, frame.file_key)
            adapter = self._model.load_adapter(path)
            try:
                _check_same(path, frame.file_key)
            except EngineFault:
                adapter.close()
                raise
        except EngineFault as fault:
            return wire.AdapterFailed(key=frame.key, reason=str(fault))
        self._adapters[frame.key] = (adapter, frame.scale)
        return wire.AdapterLoaded(key=frame.key, blocked_ms=self._clock() - began_ms)

    def unload(self, key: str) -> None:
        """Free an adapter; one that is not there is not an error."""
        if key == self._used:
            self.use("")
        adapter, _ = self._adapters.pop(key, (None, 1.0))
        if adapter is not None:
            adapter.close()

    def use(self, key: str) -> None:
        """Have the next decode apply this adapter; costs something only if it is another one."""
        adapter, scale = self._adapters[key]
        self._context.use_adapter(adapter, scale)
        self._used = key


def _check_same(path: Path, expected: tuple[int, ...]) -> None:
    """Refuse a file that is not the one that was checked and signed.

    Raises:
        EngineFault: it is another one, or is gone.
    """
    try:
        found = file_key(path.stat())
    except OSError as error:
        raise EngineFault(f"the file can't be read: {error.strerror}") from error
    if found != expected:
        raise EngineFault("the file has changed since it was signed")
