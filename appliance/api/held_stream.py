"""Keep the last events of one stream, numbered, so that its client can go on reading elsewhere.

What this room does: a ring of frames with their numbers; the one end; whose turn it is to read.
What it knows: frames are bytes; numbers count from 0 without gaps, whoever reads and how often.
What it never does: look into a frame, count what other streams hold, or keep time (`resume` does).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from appliance.domain import Client, RequestId
from appliance.errors import ClientTooSlow, InvalidRequest, StreamGone, StreamTaken

FRAME_BYTES = 64  # what keeping a frame costs beside its content
STREAM_BYTES = 4096  # what keeping a stream costs beside its frames


class HeldStream:
    """One stream. `bytes` counts what it keeps."""

    def __init__(self, client: Client, request_id: RequestId) -> None:
        """Begin with no event, no reader and no end."""
        self.client = client
        self.request_id = request_id
        self.bytes = STREAM_BYTES
        self.ended = False
        self.error: BaseException | None = None
        self.first_seq = 0
        self._frames: deque[bytes] = deque()
        self._turn = 0  # of the reader who came last
        self._is_read = False
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """Count the events that are kept."""
        return len(self._frames)

    @property
    def next_seq(self) -> int:
        """Name the number of the event that comes next."""
        return self.first_seq + len(self._frames)

    @property
    def is_read(self) -> bool:
        """Tell whether there is a reader now."""
        return self._is_read

    # --- writing ---

    def put(self, frame: bytes) -> None:
        """Append an event."""
        self._frames.append(frame)
        self.bytes += len(frame) + FRAME_BYTES
        self._wake()

    def drop_oldest(self) -> None:
        """Let the oldest event go."""
        self.bytes -= len(self._frames.popleft()) + FRAME_BYTES
        self.first_seq += 1

    def finish(self, error: BaseException | None) -> None:
        """Append the one end; every reader comes to it."""
        self.ended = True
        self.error = error
        self._wake()

    # --- reading ---

    def check(self, from_seq: int) -> None:
        """See that it can be read from there without a gap.

        Raises:
            StreamGone: the event is not kept any more; says what is.
            InvalidRequest: there is no such event yet, and it is not the next one.
        """
        if 0 <= from_seq < self.first_seq:
            raise StreamGone(
                from_seq=from_seq, first_seq=self.first_seq, last_seq=self.next_seq - 1
            )
        if not 0 <= from_seq <= self.next_seq:
            reason = f"is {from_seq}, and the next event is {self.next_seq}"
            raise InvalidRequest(field="from_seq", reason=reason)

    async def read(self, from_seq: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield (number, frame) from there to the end; whoever was reading is sent away.

        Raises:
            StreamTaken: somebody else has begun to read.
            ClientTooSlow: the next event went before it was read.
            ApplianceError: the stream ended in it.
        """
        self._turn += 1
        turn, seq = self._turn, from_seq
        self._is_read = True
        self._wake()
        try:
            while True:
                if turn != self._turn:
                    raise StreamTaken
                if seq < self.first_seq:
                    raise ClientTooSlow(limit_events=len(self._frames))
                if seq < self.next_seq:
                    yield seq, self._frames[seq - self.first_seq]
                    seq += 1
                elif not self.ended:
                    await self._news.wait()
                elif self.error is None:
                    return
                else:
                    raise self.error.with_traceback(None)
        finally:
            if turn == self._turn:
                self._is_read = False

    def _wake(self) -> None:
        """Let every reader look again, and then wait again."""
        self._news.set()
        self._news.clear()
