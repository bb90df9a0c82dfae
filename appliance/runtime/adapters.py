"""Keep the LoRA adapters of one served version: load, drain, unload, and load again when needed.

What this room does: says which adapters requests may name; has each new worker load them before it
is given a request; unloads one only when no request names it any more.
What it knows: one version's adapters, the frames about them, and how many tickets name each.
What it never does: look into a file, or end a request: an adapter that is to go takes no new ones
and waits for those it has.

| state    | event → next                                                                         |
|----------|--------------------------------------------------------------------------------------|
| LOADING  | AdapterLoaded → READY · AdapterFailed, worker ended while loading it → gone, refused |
| READY    | unload → DRAINING · worker ended → READY, loaded again                               |
|          | (FAILED if that is refused, or ends the worker twice)                                |
| DRAINING | no ticket names it → gone                                                            |
| FAILED   | unload → gone                                                                        |
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.domain import AdapterState, AdapterStatus, AdapterVersion, Value
from appliance.errors import (
    AdapterNotLoaded,
    AdapterUnloadable,
    ApplianceError,
    InvalidRequest,
    TooManyAdapters,
)
from appliance.runtime import wire

_LOSSES_MAX = 2  # ends of the worker while it loads an adapter again
_ENDED = "the worker process ended ({}) while it loaded it"


class AdapterFile(Value):
    """An adapter that was checked and signed. `file_key` is what its file is recognised by."""

    path: str
    version: AdapterVersion
    rank: int
    file_key: tuple[int, ...]


def file_key(stat: os.stat_result) -> tuple[int, ...]:
    """Name what a file is recognised by: inode, size, both times."""
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(slots=True, eq=False)
class _Entry:
    file: AdapterFile
    created_utc_ms: int
    is_shelved: bool
    state: AdapterState = AdapterState.LOADING
    was_loaded: bool = False
    is_awaited: bool = False  # this worker was told to load it and has not answered
    losses: int = 0
    load_ms: float = 0.0
    reason: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # no longer LOADING
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: ApplianceError | None = None


class Adapters:
    """The adapters of one version, by name, through all the lives of its worker."""

    def __init__(
        self,
        label: str,
        adapters_max: int,
        *,
        count_of: Callable[[str], int],
        fail: Callable[[str, ApplianceError], None],
    ) -> None:
        """Begin with none.

        `count_of(key)` counts the tickets that name an adapter; `fail(key, error)` ends them.
        """
        self._label = label
        self._adapters_max = adapters_max
        self._count_of = count_of
        self._fail = fail
        self._entries: dict[str, _Entry] = {}
        self._send: Callable[[wire.Frame], None] | None = None

    # --- what others ask ---

    def statuses(self) -> tuple[AdapterStatus, ...]:
        """List the adapters in the order they came."""
        return tuple(self._status(entry) for entry in self._entries.values())

    def key_of(self, name: str) -> str:
        """Find the key that a request's adapter has in frames; "" for none.

        Raises:
            AdapterNotLoaded: there is none of that name, or it takes no requests now.
        """
        if not name:
            return ""
        entry = self._entries.get(name)
        if entry is None or entry.state is not AdapterState.READY:
            raise self._not_loaded(name)
        return entry.file.version.key

    async def load(self, file: AdapterFile, *, is_shelved: bool, utc_ms: int) -> AdapterStatus:
        """Have the worker load an adapter; return when requests may name it. Idempotent.

        Leaving early changes nothing: the worker goes on.

        Raises:
            InvalidRequest: another file, or another scale, has that name.
            TooManyAdapters: as many as are allowed are there.
            AdapterUnloadable: llama.cpp refused it, or the worker ended over it.
        """
        name = file.version.name
        entry = self._entries.get(name)
        if entry is None:
            if len(self._entries) >= self._adapters_max:
                raise TooManyAdapters(model=self._label, limit=self._adapters_max)
            entry = self._entries[name] = _Entry(file, utc_ms, is_shelved)
            self._ask(entry)
        elif entry.file.version.key != file.version.key or entry.state in (
            AdapterState.DRAINING,
            AdapterState.FAILED,
        ):
            reason = f"'{name}' is {entry.state.value}; unload it first, then load the new one"
            raise InvalidRequest(field="name", reason=reason)
        await entry.settled.wait()
        if entry.refusal is not None:
            raise entry.refusal
        return self._status(entry)

    async def unload(self, name: str) -> None:
        """Let an adapter go; return when no request names it and the worker has freed it.

        Leaving early changes nothing: it takes no new requests and goes when it can.

        Raises:
            AdapterNotLoaded: there is none of that name.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise self._not_loaded(name)
        if entry.state is AdapterState.LOADING:
            entry.refusal = self._not_loaded(name)
        entry.state = AdapterState.DRAINING
        self.settle()
        await entry.gone.wait()

    # --- the worker's lives ---

    @property
    def is_restoring(self) -> bool:
        """Tell whether a new worker is still loading what the one before had."""
        return any(entry.was_loaded and entry.is_awaited for entry in self._entries.values())

    def attach(self, send: Callable[[wire.Frame], None]) -> None:
        """Have a new worker load everything, through this from now on."""
        self._send = send
        for entry in self._entries.values():
            if entry.state is not AdapterState.FAILED:
                self._ask(entry)

    def detach(self) -> None:
        """Ask nothing more of the worker."""
        self._send = None

    def judge(self, cause: str) -> None:
        """Note the end of the worker; what it was loading for the first time is not tried again."""
        for entry in tuple(self._entries.values()):
            if entry.is_awaited:
                entry.is_awaited = False
                entry.losses += 1
                if not entry.was_loaded or entry.losses >= _LOSSES_MAX:
                    self._refuse(entry, _ENDED.format(cause))

    def take(self, frame: wire.AdapterLoaded | wire.AdapterFailed) -> None:
        """Take a worker's answer."""
        entry = next(e for e in self._entries.values() if e.file.version.key == frame.key)
        entry.is_awaited = False
        if isinstance(frame, wire.AdapterFailed):
            self._refuse(entry, frame.reason)
        else:
            entry.losses = 0
            entry.load_ms = frame.blocked_ms
            entry.was_loaded = True
            if entry.state is AdapterState.LOADING:
                entry.state = AdapterState.READY
            entry.settled.set()
        self.settle()

    def settle(self) -> None:
        """Free every draining adapter that no ticket names any more."""
        for entry in tuple(self._entries.values()):
            draining = entry.state is AdapterState.DRAINING and not entry.is_awaited
            if draining and not self._count_of(entry.file.version.key):
                if self._send is not None:
                    self._send(wire.UnloadAdapter(key=entry.file.version.key))
                self._remove(entry)

    def fail_all(self, cause: str) -> None:
        """Let everything go: the version is no longer served."""
        self._send = None
        for entry in tuple(self._entries.values()):
            self._refuse(entry, _ENDED.format(cause))
            if entry.file.version.name in self._entries:
                self._remove(entry)

    def _status(self, entry: _Entry) -> AdapterStatus:
        return AdapterStatus(
            adapter=entry.file.version,
            state=entry.state,
            rank=entry.file.rank,
            created_utc_ms=entry.created_utc_ms,
            is_shelved=entry.is_shelved,
            load_ms=entry.load_ms,
            requests_count=self._count_of(entry.file.version.key),
            reason=entry.reason,
        )

    def _ask(self, entry: _Entry) -> None:
        if self._send is None:
            return
        entry.is_awaited = True
        self._send(
            wire.LoadAdapter(
                key=entry.file.version.key,
                path=entry.file.path,
                scale=entry.file.version.scale,
                file_key=entry.file.file_key,
            )
        )

    def _refuse(self, entry: _Entry, reason: str) -> None:
        """Keep an adapter that requests may name as failed; forget one that was never there."""
        entry.reason = reason
        error = AdapterUnloadable(path=entry.file.path, reason=reason)
        if not entry.was_loaded:
            entry.refusal = entry.refusal or error
            self._remove(entry)
            return
        if entry.state is not AdapterState.DRAINING:
            entry.state = AdapterState.FAILED
        self._fail(entry.file.version.key, error)

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry.file.version.name]
        entry.settled.set()
        entry.gone.set()

    def _not_loaded(self, name: str) -> AdapterNotLoaded:
        entry = self._entries.get(name)
        ready = [n for n, e in self._entries.items() if e.state is AdapterState.READY]
        return AdapterNotLoaded(
            model=self._label,
            adapter=name,
            state="not loaded" if entry is None else entry.state.value,
            loaded=", ".join(ready) or "none",
        )
