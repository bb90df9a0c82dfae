"""Hold the configuration as one frozen tree: every key, its default, its unit and its bounds.

What this room does: the tables of the file as structs; a key's description, unit and bounds stand
in its annotation, so that there is one place to change.
What it knows: `configs/appliance.toml` and `docs/reference/config.md` are written from this tree
by `tools/config_reference.py`; tests hold them equal.
What it never does: read anything, or know how two values relate (see `load`).

Zero means "choose for me" wherever a description says so.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_type_hints

from msgspec import Meta

from appliance.config.adapters import Adapter
from appliance.config.clients import Access, Client
from appliance.config.deployments import Deployments
from appliance.config.downloads import Bandwidth, Downloads
from appliance.config.faces import Grpc, Rest
from appliance.config.hosting import Hosting
from appliance.config.hub import Hub
from appliance.config.link import Link
from appliance.config.refresh import Refresh
from appliance.config.scheduling import Scheduling
from appliance.config.section import Section
from appliance.config.store import Store
from appliance.config.versions import Versions

_DAY_S = 86_400.0
_GIB = 1024**3

# ggml's types that llama.cpp can keep a KV cache in.
CacheType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
# How the sequences of a model share its KV cells.
CacheLayout: TypeAlias = Literal["auto", "unified", "partitioned"]


class Server(Section):
    """The daemon itself. Paths may be relative to the working directory."""

    state_dir: Annotated[
        str, Meta(min_length=1, description="Directory of what must survive: databases, keys.")
    ] = "/var/lib/appliance"
    runtime_dir: Annotated[
        str, Meta(min_length=1, description="Directory of what a boot may clear: the socket.")
    ] = "/run/appliance"
    adapter_dir: Annotated[
        str,
        Meta(
            description=(
                "Directory whose LoRA adapters clients on TCP may load and unload by file name; "
                "empty: only the operator may, over the Unix socket."
            ),
        ),
    ] = ""
    drain_s: Annotated[
        float,
        Meta(
            ge=0, le=3600, description="How long running requests may finish after SIGTERM, in s."
        ),
    ] = 30.0
    time_zone: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=r"^[A-Za-z0-9_+/-]*$",
            description=(
                "Time zone of the site for calendars and times of day, as 'Europe/Zurich'; "
                "empty: that of the machine."
            ),
        ),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Least severity that is logged: debug, info, warning or error."),
    ] = "info"


class Model(Section):
    """One file to serve. Repeat the table for each file."""

    path: Annotated[str, Meta(min_length=1, description="The GGUF file.")]
    name: Annotated[
        str,
        Meta(
            max_length=128,
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
            description="Name clients use; empty: the file's own general.name, else its file name.",
        ),
    ] = ""
    context_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=16_777_216,
            description=(
                "Longest prompt and output together, in tokens; 0: the smaller of the context "
                "the model was trained with and engine.context_tokens."
            ),
        ),
    ] = 0
    gpu_layers: Annotated[
        int, Meta(ge=-1, le=4096, description="Layers on the GPU; -1: as many as fit.")
    ] = -1
    pinned_systems: Annotated[
        tuple[str, ...],
        Meta(
            max_length=16,
            description="System prompts whose chats begin quickly: kept evaluated for all clients.",
        ),
    ] = ()
    pinned_texts: Annotated[
        tuple[str, ...],
        Meta(max_length=16, description="Beginnings of text prompts, kept likewise."),
    ] = ()
    adapters: Annotated[
        tuple[Adapter, ...],
        Meta(max_length=64, description="LoRA adapters to load with it; see models.adapters."),
    ] = ()
    draft: Annotated[
        str,
        Meta(
            description=(
                "The GGUF file of a draft model: a much smaller one with the same vocabulary, "
                "which guesses next tokens where that is measured to pay; empty: none."
            )
        ),
    ] = ""
    embedding: Annotated[
        bool,
        Meta(
            description=(
                "Whether the file is an embedding model, not a generating one; a reranker says so "
                "in the file itself."
            )
        ),
    ] = False
    cells_total: Annotated[
        int,
        Meta(ge=0, le=2**31 - 1, description="As engine.cells_total, of this model; 0: that one."),
    ] = 0
    sequences_max: Annotated[
        int, Meta(ge=0, le=256, description="As engine.sequences_max, of this model; 0: that one.")
    ] = 0
    cache_type_k: Annotated[
        Literal["", CacheType],
        Meta(description="As engine.cache_type_k, of this model; empty: that one."),
    ] = ""
    cache_type_v: Annotated[
        Literal["", CacheType],
        Meta(description="As engine.cache_type_v, of this model; empty: that one."),
    ] = ""
    cache_layout: Annotated[
        Literal["", CacheLayout],
        Meta(description="As engine.cache_layout, of this model; empty: that one."),
    ] = ""


class Engine(Section):
    """How workers run. A step is one decode call over the tokens of many requests."""

    context_tokens: Annotated[
        int,
        Meta(ge=64, le=16_777_216, description="Longest prompt and output together, in tokens."),
    ] = 8192
    cells_total: Annotated[
        int,
        Meta(
            ge=0,
            le=2**31 - 1,
            description=(
                "KV cells shared by all requests of a model, in tokens; 0: four times the "
                "model's context, as far as memory goes."
            ),
        ),
    ] = 0
    sequences_max: Annotated[
        int, Meta(ge=1, le=256, description="Sequences decoded together by one worker.")
    ] = 64
    batch_tokens: Annotated[
        int, Meta(ge=16, le=65_536, description="Most tokens in one step, prompts and outputs.")
    ] = 512
    cache_type_k: Annotated[
        CacheType,
        Meta(
            description=(
                "How generating models keep the keys of their KV cache: f32, f16, bf16, q8_0, "
                "q5_1, q5_0, q4_1 or q4_0."
            )
        ),
    ] = "f16"
    cache_type_v: Annotated[
        CacheType,
        Meta(
            description=(
                "How they keep the values, as cache_type_k; a quantised type (q) needs flash "
                "attention."
            )
        ),
    ] = "f16"
    flash_attention: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description=(
                "Whether attention is computed without a matrix of all scores; auto: where the "
                "model and the device can."
            )
        ),
    ] = "auto"
    cache_layout: Annotated[
        CacheLayout,
        Meta(
            description=(
                "How sequences share cells_total: unified, all cells for all, and prefixes are "
                "shared; partitioned, an equal part for each, which bounds the context; auto: "
                "what a measurement at load says, unified where a part would hold less than a "
                "context."
            )
        ),
    ] = "auto"
    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            description=(
                "Threads of all workers together; 0: one for each core the process may use."
            ),
        ),
    ] = 0
    threads_follow: Annotated[
        bool,
        Meta(
            description=(
                "Whether fewer threads are used where they are as fast, or while other programs "
                "take cores; false: always all of them."
            ),
        ),
    ] = True
    step_ms_while_streaming: Annotated[
        float,
        Meta(
            ge=1,
            le=60_000,
            description="Longest step that a prompt may cause while other streams run, in ms; up"
            " to twice as long where that makes a long prompt's tokens a fifth cheaper.",
        ),
    ] = 300.0
    step_ms_max: Annotated[
        float, Meta(ge=1, le=60_000, description="Longest step at all, in ms.")
    ] = 1000.0
    output_reserve_tokens: Annotated[
        int,
        Meta(ge=1, le=65_536, description="KV cells kept for a request's output at admission."),
    ] = 128
    overtakes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=65_536,
            description="Later requests that may start before one that does not fit yet.",
        ),
    ] = 16
    ack_window_steps: Annotated[
        int,
        Meta(
            ge=1, le=1024, description="Steps a worker may be ahead of the daemon before it waits."
        ),
    ] = 16
    load_timeout_s: Annotated[
        float, Meta(gt=0, le=_DAY_S, description="How long loading a file may take, in s.")
    ] = 600.0
    hello_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="How long a new process may take to answer, in s.")
    ] = 30.0
    stall_floor_s: Annotated[
        float,
        Meta(
            gt=0, le=3600, description="Least time without a step before a worker is killed, in s."
        ),
    ] = 10.0
    stall_factor: Annotated[
        float,
        Meta(
            ge=2,
            le=1000,
            description="Times the expected step after which a worker counts as hung.",
        ),
    ] = 20.0
    stop_wait_s: Annotated[
        float,
        Meta(
            gt=0,
            le=60,
            description="Wait after each rung when a process is ended: close, SIGTERM, SIGKILL.",
        ),
    ] = 2.0
    restart_backoff_ms: Annotated[
        float, Meta(ge=0, le=600_000, description="Wait before the first restart, in ms; doubles.")
    ] = 100.0
    restart_backoff_ms_max: Annotated[
        float, Meta(ge=0, le=600_000, description="Longest wait before a restart, in ms.")
    ] = 15_000.0
    restarts_max: Annotated[
        int,
        Meta(ge=0, le=1000, description="Restarts within restarts_window_s; then the model fails."),
    ] = 5
    restarts_window_s: Annotated[
        float, Meta(gt=0, le=_DAY_S, description="Window in which restarts are counted, in s.")
    ] = 600.0
    replays_max: Annotated[
        int,
        Meta(ge=0, le=1000, description="Times one request may be replayed after worker losses."),
    ] = 5
    memory_reserve_bytes: Annotated[
        int,
        Meta(
            ge=0, le=1024 * _GIB, description="Memory left free when a model is loaded, in bytes."
        ),
    ] = 256 * 1024 * 1024


class Limits(Section):
    """Bounds on what clients may ask and on what waits for them."""

    queue_requests: Annotated[
        int, Meta(ge=1, le=65_536, description="Requests waiting for one model.")
    ] = 256
    queue_prompt_tokens: Annotated[
        int, Meta(ge=64, le=2**31 - 1, description="Prompt tokens waiting for one model.")
    ] = 262_144
    stream_events: Annotated[
        int, Meta(ge=64, le=65_536, description="Events a slow reader may leave unread.")
    ] = 1024
    prompt_bytes: Annotated[
        int, Meta(ge=1024, le=_GIB, description="Largest prompt as text, in bytes.")
    ] = 8 * 1024 * 1024
    adapters: Annotated[
        int, Meta(ge=0, le=64, description="LoRA adapters loaded for one model at a time.")
    ] = 16
    adapter_bytes: Annotated[
        int, Meta(ge=1024, le=64 * _GIB, description="Largest file of an adapter, in bytes.")
    ] = _GIB
    adapter_rank: Annotated[int, Meta(ge=1, le=4096, description="Highest rank of an adapter.")] = (
        256
    )
    embed_inputs: Annotated[
        int, Meta(ge=1, le=65_536, description="Inputs of one embedding request.")
    ] = 2048
    infill_files: Annotated[
        int, Meta(ge=0, le=65_536, description="Other files beside the one to fill in.")
    ] = 256
    rerank_documents: Annotated[
        int, Meta(ge=1, le=65_536, description="Documents of one rerank request.")
    ] = 1024
    request_s: Annotated[
        float, Meta(gt=0, le=_DAY_S, description="Longest life of a request, queue included, in s.")
    ] = 3600.0
    resume_events: Annotated[
        int,
        Meta(ge=64, le=1_000_000, description="Last events kept of each resumable stream."),
    ] = 4096
    resume_bytes: Annotated[
        int,
        Meta(
            ge=65_536,
            le=64 * _GIB,
            description="Memory of all resumable streams together, in bytes.",
        ),
    ] = 64 * 1024 * 1024
    resume_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long a resumable stream without a reader is kept, in s.",
        ),
    ] = 60.0
    progress_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=600_000,
            description="Least time between two tellings of how far a long prompt has come, in ms.",
        ),
    ] = 250.0
    text_process_timeout_s: Annotated[
        float,
        Meta(
            gt=0, le=600, description="How long rendering and tokenising one prompt may take, in s."
        ),
    ] = 10.0
    text_process_memory_bytes: Annotated[
        int,
        Meta(
            ge=256 * 1024 * 1024,
            le=1024 * _GIB,
            description="Memory of the process that renders and tokenises, in bytes.",
        ),
    ] = 2 * _GIB
    messages: Annotated[int, Meta(ge=1, le=65_536, description="Messages of one chat.")] = 1024
    tools: Annotated[int, Meta(ge=0, le=4096, description="Tools offered to one chat.")] = 128
    constraint_bytes: Annotated[
        int, Meta(ge=64, le=_GIB, description="Largest schema or expression, in bytes.")
    ] = 65_536
    constraint_ms: Annotated[
        float,
        Meta(
            gt=0,
            le=60_000,
            description=(
                "What a schema or expression may cost to compile, in ms of CPU time; as long "
                "the streams of its model may have to wait for it."
            ),
        ),
    ] = 250.0
    metric_series: Annotated[
        int,
        Meta(
            ge=16, le=65_536, description="Series kept for one metric; samples beyond are counted."
        ),
    ] = 512


class Config(Section):
    """The whole tree."""

    server: Server = Server()
    grpc: Grpc = Grpc()
    rest: Rest = Rest()
    engine: Engine = Engine()
    scheduling: Scheduling = Scheduling()
    hosting: Hosting = Hosting()
    limits: Limits = Limits()
    store: Store = Store()
    versions: Versions = Versions()
    deployments: Deployments = Deployments()
    downloads: Downloads = Downloads()
    bandwidth: Annotated[tuple[Bandwidth, ...], Meta(max_length=64)] = ()
    access: Access = Access()
    link: Link = Link()
    refresh: Refresh = Refresh()
    hub: Hub = Hub()
    clients: Annotated[tuple[Client, ...], Meta(max_length=1024)] = ()
    models: Annotated[tuple[Model, ...], Meta(max_length=64)] = ()


SECTIONS: dict[str, type[Section]] = {
    "server": Server,
    "grpc": Grpc,
    "rest": Rest,
    "engine": Engine,
    "scheduling": Scheduling,
    "hosting": Hosting,
    "limits": Limits,
    "store": Store,
    "versions": Versions,
    "deployments": Deployments,
    "downloads": Downloads,
    "bandwidth": Bandwidth,
    "access": Access,
    "link": Link,
    "refresh": Refresh,
    "hub": Hub,
    "clients": Client,
    "models": Model,
    "models.adapters": Adapter,
}
REPEATED = (
    "bandwidth",
    "clients",
    "models",
    "models.adapters",
)  # tables that stand once for each entry


def describe(section: type[Section], field: str) -> Meta:
    """Read a key's description and bounds, for the reference page and the commented file."""
    hint = get_type_hints(section, include_extras=True)[field]
    found: Meta = hint.__metadata__[0]
    return found
