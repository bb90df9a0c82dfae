"""Move frames between a socket and the thread that works, so that neither waits for the other.

What this room does: one thread that reads, and writes what the socket did not take at once; a
bounded queue to the working thread; the end of the process when the peer is gone.
What it knows: frames, and that the working thread may be inside C for a second.
What it never does: look into a frame, drop one, or let a queue grow without bound.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import sys
import threading
from collections import deque

from appliance.runtime import wire

_READ_BYTES = 256 * 1024
_INBOUND_MAX = 4096
_UNSENT_BYTES_MAX = 16 * 1024 * 1024
_FULL_WAIT_MS = 20  # while the working thread is behind, look again this often
_FLUSH_WAIT_S = 5.0
_EXIT_ASKED = 0
_EXIT_FATAL = 70


class Link:
    """The I/O thread of a worker. When the peer closes, the process ends at once, whatever it does.

    `receive` and `send` are for the one working thread.
    """

    def __init__(self, fd: int) -> None:
        """Take over one end of a connected stream socket, and start the thread."""
        self._socket = socket.socket(fileno=fd)
        self._socket.settimeout(0.0)
        self._reader = wire.FrameReader(wire.ToWorker)
        self._inbound: queue.Queue[wire.Frame] = queue.Queue(_INBOUND_MAX)
        self._backlog: deque[wire.Frame] = deque()  # the frames of one read at most
        self._unsent = bytearray()  # guarded by _sending, as is the socket's sending side
        self._sending = threading.Condition()
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._thread.start()

    def receive(self, wait_s: float = 0.0) -> wire.Frame | None:
        """Take the next frame, waiting up to wait_s for one; None: there is none."""
        try:
            return self._inbound.get(block=wait_s > 0.0, timeout=wait_s or None)
        except queue.Empty:
            return None

    def send(self, frame: wire.Frame) -> None:
        """Write a frame, or leave what does not fit into the socket to the I/O thread.

        Blocks while more than `_UNSENT_BYTES_MAX` are waiting to be written. Writing here and not
        there spares a change of threads in each step.
        """
        data = wire.encode(frame)
        with self._sending:
            self._sending.wait_for(lambda: len(self._unsent) <= _UNSENT_BYTES_MAX)
            if not self._unsent:
                data = data[self._try_send(data) :]
            self._unsent += data
        if data:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Write what is left and stop; waits for that up to five seconds."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(_FLUSH_WAIT_S)

    def _run(self) -> None:
        try:
            self._pump()
        except (ConnectionError, wire.WireFault) as error:
            lost = isinstance(error, ConnectionError)
            if not lost:
                sys.stderr.write(f"worker: the daemon sent what is not a frame: {error}\n")
            os._exit(_EXIT_ASKED if lost else _EXIT_FATAL)
        except Exception:  # noqa: BLE001 - the top of a thread: the process must not live on
            sys.excepthook(*sys.exc_info())
            os._exit(_EXIT_FATAL)

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not (self._closing and not self._unsent):
            events = select.POLLIN if not self._backlog else 0
            events |= select.POLLOUT if self._unsent else 0
            poll.register(self._socket, events)  # POLLHUP is reported unasked
            ready = dict(poll.poll(_FULL_WAIT_MS if self._backlog else None))
            happened = ready.get(self._socket.fileno(), 0)
            if happened & select.POLLIN:
                self._read()
            elif happened & (select.POLLHUP | select.POLLERR):
                os._exit(_EXIT_ASKED)
            self._deliver()
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._unsent:
                self._write()

    def _read(self) -> None:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            os._exit(_EXIT_ASKED)
        self._backlog.extend(self._reader.feed(data))

    def _deliver(self) -> None:
        while self._backlog:
            try:
                self._inbound.put_nowait(self._backlog[0])
            except queue.Full:
                return
            self._backlog.popleft()

    def _write(self) -> None:
        with self._sending:
            del self._unsent[: self._try_send(self._unsent)]
            self._sending.notify_all()

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except ConnectionError:
            os._exit(_EXIT_ASKED)
