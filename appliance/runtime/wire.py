"""Carry frames between the daemon and its worker and text processes.

What this room does: the messages of both directions as tagged structs; encoding as 4 bytes of
big-endian length and one msgpack value; an incremental decoder that yields whole frames.
What it knows: the protocol's version and the bound on a frame.
What it never does: I/O, pickle, or trust a length before it is checked against the bound.

The daemon speaks first (`Start`); the process answers `Hello` with its version, then `Loading`
frames, then `Ready` or `LoadFailed`. After `Ready` a worker sends one `Step` a step, holding every
stream's news, and one empty `Step` a second while idle: the step counter is its heartbeat. The
daemon returns `Ack` for the steps it has handled; a worker that is more than `ack_window_steps`
ahead waits, so nothing is dropped and no buffer grows. Closing the socket ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, dataclass_transform

import msgspec

from appliance.domain import (
    Constraint,
    FinishReason,
    ModelFacts,
    Prompt,
    SamplingOptions,
    StopOptions,
    TokenLogprob,
)
from appliance.errors import FieldValue

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 64 * 1024 * 1024
_LENGTH_BYTES = 4


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every message."""


class WireFault(Exception):
    """The peer sent what is not this protocol. Our own bug or a broken process: end it."""


# --- daemon → worker ----------------------------------------------------------------------------


class EngineOptions(Frame):
    """How a worker loads and runs its model. Sizes in tokens, cells and milliseconds.

    cells_total is what is wanted; where memory is short the worker takes fewer, but never fewer
    than cells_min, and leaves memory_reserve_bytes to everybody else.
    """

    path: str
    context_tokens: int
    cells_total: int
    sequences_max: int
    batch_tokens: int
    threads_decode: int
    threads_prefill: int
    gpu_layers: int
    step_ms_while_streaming: float
    step_ms_max: float
    queue_requests_max: int
    output_reserve_tokens: int
    ack_window_steps: int
    overtakes_max: int = 16
    embedding: bool = False
    stall_factor: float = 20.0
    cells_min: int = 0
    memory_reserve_bytes: int = 0


class Start(Frame, tag="start"):
    """Load this. The first frame to a worker."""

    protocol_version: int
    engine: EngineOptions


class Submit(Frame, tag="submit"):
    """Generate. `ticket` is unique for the life of the daemon; seed is resolved by the daemon.

    `accepted_ids` holds, per choice, the tokens the daemon already has (a replay): they are
    accepted again by sampler, penalties, constraint and stop strings without being sent again.
    `ended` names the choices that were complete already.
    """

    ticket: int
    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    sampling: SamplingOptions
    stop: StopOptions
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    deadline_ms: float | None = None
    accepted_ids: tuple[tuple[int, ...], ...] = ()
    ended: tuple[int, ...] = ()


class SubmitEmbed(Frame, tag="submit_embed"):
    """Embed each token list; the answer is one `Embedded`."""

    ticket: int
    inputs: tuple[tuple[int, ...], ...]
    normalize: bool
    deadline_ms: float | None = None


class Cancel(Frame, tag="cancel"):
    """Forget this ticket; no frame about it follows, apart from any already on the way."""

    ticket: int


class Ack(Frame, tag="ack"):
    """The daemon has handled every Step up to this number."""

    step: int


ToWorker: TypeAlias = Start | Submit | SubmitEmbed | Cancel | Ack


# --- worker → daemon ----------------------------------------------------------------------------


class Hello(Frame, tag="hello"):
    """The process runs and speaks this version."""

    protocol_version: int
    pid: int


class Loading(Frame, tag="loading"):
    """How much of the model is loaded, 0 to 1."""

    ratio: float


class Ready(Frame, tag="ready"):
    """The model is loaded and warm."""

    facts: ModelFacts
    step_ms_worst: float  # the predicted time of the largest step this engine may plan


class LoadFailed(Frame, tag="load_failed"):
    """The model can't be loaded; the process ends after this with exit code 78."""

    path: str
    reason: str


class News(Frame):
    """What one step brought for one choice of one ticket."""

    ticket: int
    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


class PrefillNews(Frame):
    """How much of a ticket's prompt is evaluated, in tokens."""

    ticket: int
    done: int
    total: int


class Failure(Frame):
    """A ticket ended in an error, named by its code and fields (`errors.from_wire`)."""

    ticket: int
    code: str
    fields: dict[str, FieldValue]


class EngineGauges(Frame):
    """The engine's state after a step, for metrics and the idle integrity check."""

    running: int
    waiting: int
    sequences_used: int
    cells_used: int
    cells_total: int
    preemptions_total: int
    decode_tokens: int
    prefill_tokens: int
    step_ms: float
    predicted_ms: float
    stall_limit_ms: float


class Step(Frame, tag="step"):
    """Everything one step brought. `started`: tickets whose first prompt token was planned."""

    step: int
    gauges: EngineGauges
    started: tuple[int, ...] = ()
    news: tuple[News, ...] = ()
    prefills: tuple[PrefillNews, ...] = ()
    failures: tuple[Failure, ...] = ()


class Embedded(Frame, tag="embedded"):
    """The vectors of one SubmitEmbed, float32 little-endian, in order."""

    ticket: int
    size: int
    vectors: tuple[bytes, ...]


class TicketFailed(Frame, tag="ticket_failed"):
    """An embedding ticket ended in an error."""

    failure: Failure


FromWorker: TypeAlias = Hello | Loading | Ready | LoadFailed | Step | Embedded | TicketFailed


# --- daemon ⇄ text process ----------------------------------------------------------------------


class OpenVocabulary(Frame, tag="open_vocabulary"):
    """Load the vocabulary and template of a file under a key (the version's digest).

    prompt_bytes_max bounds what a template, or token ids, may write as one text;
    constraint_ms what a constraint may cost to compile, in CPU time.
    """

    ticket: int
    key: str
    path: str
    prompt_bytes_max: int = 8 * 1024 * 1024
    constraint_ms: float = 250.0


class CloseVocabulary(Frame, tag="close_vocabulary"):
    """Forget the vocabulary of that key."""

    ticket: int
    key: str


class Prepare(Frame, tag="prepare"):
    """Turn a prompt into token ids: render, tokenise, check ids and any constraint.

    add_bos: as the model says, for text and chat; never for a TokenPrompt. parse_special: whether
    special tokens written in a TextPrompt are parsed (a Tokenize call may ask; a chat always does,
    for the template's own text only).
    limit_tokens: refuse early what can only be longer; 0: no limit. with_pieces: tell the bytes of
    each token.
    """

    ticket: int
    key: str
    prompt: Prompt
    add_bos: bool = True
    parse_special: bool = False
    constraint: Constraint | None = None
    limit_tokens: int = 0
    with_pieces: bool = True


class Detokenize(Frame, tag="detokenize"):
    """Turn token ids back into text."""

    ticket: int
    key: str
    token_ids: tuple[int, ...]


ToText: TypeAlias = OpenVocabulary | CloseVocabulary | Prepare | Detokenize


class Opened(Frame, tag="opened"):
    """The answer to Open- and CloseVocabulary."""

    ticket: int


class Prepared(Frame, tag="prepared"):
    """The prompt as token ids, ready for a worker.

    `constraint`: the one to enforce (a tool_choice that demands a call becomes one here).
    `tool_grammar`: which syntax of tool calls the template uses, "" for none.
    `pieces`: the bytes of each token, if asked for.
    """

    ticket: int
    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...] = ()
    rendered: str = ""
    constraint: Constraint | None = None
    tool_syntax: str = ""


class Detokenized(Frame, tag="detokenized"):
    """The text of the given ids; bytes that are not UTF-8 are replaced by U+FFFD."""

    ticket: int
    text: str


class TextFailed(Frame, tag="text_failed"):
    """The call of that ticket ended in an error."""

    failure: Failure


FromText: TypeAlias = Hello | Opened | Prepared | Detokenized | TextFailed

AnyFrame: TypeAlias = ToWorker | FromWorker | ToText | FromText

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
        self._decoder: msgspec.msgpack.Decoder[AnyFrame] = msgspec.msgpack.Decoder(frame_type)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[AnyFrame]:
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
