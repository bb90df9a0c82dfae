"""Name what the daemon and a worker say to each other.

What this room does: the messages of both directions as tagged structs.
What it knows: the daemon speaks first (`Start`); the worker answers `Hello`, `Loading`, then
`Ready` or `LoadFailed`. After `Ready` it sends one `Step` a step with every stream's news, and one
empty `Step` a second while idle: the step counter is its heartbeat. The daemon returns `Ack` for
the steps it has handled; a worker more than `ack_window_steps` ahead waits, so nothing is dropped
and no buffer grows. Closing the socket ends the process.
What it never does: I/O, or hold anything that the other side must not see.
"""

from __future__ import annotations

from typing import TypeAlias

from appliance.domain import (
    Constraint,
    FinishReason,
    ModelFacts,
    ModelKind,
    Priority,
    SamplingOptions,
    StopOptions,
    TokenLogprob,
)
from appliance.errors import FieldValue
from appliance.runtime.draft import DraftLimits
from appliance.runtime.wire.frame import Frame

# --- daemon → worker ----------------------------------------------------------------------------


class EngineOptions(Frame):
    """How a worker loads and runs its model. Sizes in tokens, cells and milliseconds.

    cells_total is what is wanted; where memory is short the worker takes fewer, but never fewer
    than cells_min, and leaves memory_reserve_bytes to everybody else. cache_type_k and _v are names
    of ggml's types, flash_attention is "auto", "on" or "off", cache_layout "auto", "unified" or
    "partitioned" (see `config`). draft_path: the file of a draft model, "" without one.
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
    prefix_sequences_max: int = 0
    prefix_share: float = 0.5
    prefix_tokens_min: int = 16
    normal_share: float = 0.3
    batch_share: float = 0.1
    ageing_s: float = 30.0
    turn_ms: float = 100.0
    adapter_turn_steps: int = 8
    swap_bytes_max: int = 0
    speculation: DraftLimits | None = None
    kind: ModelKind = ModelKind.GENERATE
    stall_factor: float = 20.0
    cells_min: int = 0
    memory_reserve_bytes: int = 0
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attention: str = "auto"
    cache_layout: str = "auto"
    threads_follow: bool = False
    draft_path: str = ""


class Start(Frame, tag="start"):
    """Load this. The first frame to a worker."""

    protocol_version: int
    engine: EngineOptions


class Submit(Frame, tag="submit"):
    """Generate. `ticket` is unique for the life of the daemon; seed is resolved by the daemon.

    `accepted_ids` holds, per choice, the tokens the daemon already has (a replay): they are
    accepted again by sampler, penalties, constraint and stop strings without being sent again.
    `ended` names the choices that were complete already. `client` is what fairness counts by, and
    `weight` its share beside other clients of the class; prompts share prefixes within one
    `cache_key`; `adapter` is the key of a loaded LoRA adapter, "" none. `is_pin`: its prefix
    stays, and is for everybody.
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
    client: str = ""
    weight: float = 1.0
    priority: Priority = Priority.NORMAL
    adapter: str = ""
    cache_key: str = ""
    is_pin: bool = False


class SubmitEmbed(Frame, tag="submit_embed"):
    """Embed each token list, or score it; the answer is one `Embedded`."""

    ticket: int
    inputs: tuple[tuple[int, ...], ...]
    normalize: bool
    deadline_ms: float | None = None


class Cancel(Frame, tag="cancel"):
    """Forget this ticket; no frame about it follows, apart from any already on the way."""

    ticket: int


class LoadAdapter(Frame, tag="load_adapter"):
    """Load a LoRA adapter, to be named by its key from now on; AdapterLoaded or AdapterFailed.

    `file_key` is what the file was recognised by when it was checked and signed (its inode, size
    and times): another file is refused.
    """

    key: str
    path: str
    scale: float
    file_key: tuple[int, ...]


class UnloadAdapter(Frame, tag="unload_adapter"):
    """Free an adapter that no ticket names any more; nothing is answered."""

    key: str


class Ack(Frame, tag="ack"):
    """The daemon has handled every Step up to this number."""

    step: int


ToWorker: TypeAlias = Start | Submit | SubmitEmbed | Cancel | LoadAdapter | UnloadAdapter | Ack


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


class AdapterLoaded(Frame, tag="adapter_loaded"):
    """The adapter may be named. `blocked_ms`: so long no step could run."""

    key: str
    blocked_ms: float


class AdapterFailed(Frame, tag="adapter_failed"):
    """The adapter can't be loaded; everything else is as before."""

    key: str
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
    """How much of a ticket's prompt is evaluated, in tokens; of `done`, how many were cached."""

    ticket: int
    done: int
    total: int
    cached: int = 0


class Failure(Frame):
    """A ticket ended in an error, named by its code and fields (`errors.from_wire`)."""

    ticket: int
    code: str
    fields: dict[str, FieldValue]


class EngineGauges(Frame):
    """The engine's state after a step, for metrics.

    cells_cached are held for their prefixes alone, beside cells_used. threads_change: why the
    counts of threads changed with this step (`threads.Reason`), or empty. drafted_total counts all
    guesses, model_drafted_total those of a draft model among them.
    """

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
    cells_cached: int = 0
    prefix_tokens_total: int = 0
    evictions_total: int = 0
    swapped_bytes: int = 0
    threads_decode: int = 0
    threads_prefill: int = 0
    threads_change: str = ""
    drafted_total: int = 0
    draft_accepted_total: int = 0
    draft_gain: float = 1.0
    model_drafted_total: int = 0
    model_draft_accepted_total: int = 0


class Step(Frame, tag="step"):
    """Everything one step brought. `started`: tickets whose first prompt token was planned."""

    step: int
    gauges: EngineGauges
    started: tuple[int, ...] = ()
    news: tuple[News, ...] = ()
    prefills: tuple[PrefillNews, ...] = ()
    failures: tuple[Failure, ...] = ()


class Embedded(Frame, tag="embedded"):
    """The vectors of one SubmitEmbed, float32 little-endian, in order; of a reranker, scores."""

    ticket: int
    size: int
    vectors: tuple[bytes, ...]


class TicketFailed(Frame, tag="ticket_failed"):
    """An embedding ticket ended in an error."""

    failure: Failure


FromWorker: TypeAlias = (
    Hello
    | Loading
    | Ready
    | LoadFailed
    | AdapterLoaded
    | AdapterFailed
    | Step
    | Embedded
    | TicketFailed
)
