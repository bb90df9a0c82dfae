"""Cut a byte stream into frames, and frames into bytes.

What this room does: the base of every message; encoding as 4 bytes of big-endian length and one
msgpack value; an incremental decoder that yields whole frames.
What it knows: the protocol's version and the bound on a frame.
What it never does: I/O, pickle, or trust a length before it is checked against the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import dataclass_transform

import msgspec

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 64 * 1024 * 1024
_LENGTH_BYTES = 4


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every message."""


class WireFault(Exception):
    """The peer sent what is not this protocol. Our own bug or a broken process: end it."""


_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """Encode one frame with its length in front.

    Raises:
        WireFault: the frame is larger than FRAME_BYTES_MAX (callers bound their input first).
    """
    body = _encoder.encode(frame)
    if len(body) > FRAME_BYTES_MAX:
        raise WireFault(f"a frame of {len(body)} bytes is larger than {FRAME_BYTES_MAX}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader:
    """Cut a byte stream into frames of one direction. Keeps at most one partial frame."""

    def __init__(self, frame_type: object) -> None:
        """Accept frames of this union only, e.g. `FrameReader(ToWorker)`."""
        self._decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(frame_type)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame that is complete now.

        Raises:
            WireFault: a length over the bound, or a body that is not a frame of this direction.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if size > FRAME_BYTES_MAX:
                raise WireFault(f"a frame of {size} bytes was announced")
            end = _LENGTH_BYTES + size
            if len(self._buffer) < end:
                return
            try:
                frame = self._decoder.decode(self._buffer[_LENGTH_BYTES:end])
            except msgspec.MsgspecError as error:
                raise WireFault(f"not a frame: {error}") from error
            del self._buffer[:end]
            yield frame
