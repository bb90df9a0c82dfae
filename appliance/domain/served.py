"""Say who asks, and what is served: clients, signed versions, their state, and judgements on them.

What this room does: frozen values that every face lists and that the stores keep.
What it knows: one word has one meaning (see ARCHITECTURE.md, Words).
What it never does: decide who may do what (`access`), or hold a request.
"""

from __future__ import annotations

import enum
from typing import NewType

from appliance.domain.asked import Priority
from appliance.domain.value import Value

Digest = NewType("Digest", str)  # "sha256:" + 64 lower-case hex digits


# --- who ----------------------------------------------------------------------------------------


class ClientKind(enum.Enum):
    """How a client made itself known."""

    LOCAL_SOCKET = "local_socket"
    LOOPBACK = "loopback"
    API_KEY = "api_key"


class Client(Value):
    """Who sends a request. `id` is what audit, fairness and quotas count by.

    weight: its share of the engine beside other clients of a class, which have 1.0.
    priority_max: the highest class it may ask for.
    user: whom a client with a key says it asks for; it stands in the request's log line.
    """

    id: str
    kind: ClientKind
    weight: float = 1.0
    priority_max: Priority = Priority.INTERACTIVE
    user: str = ""

    def owns(self, other: Client) -> bool:
        """Tell whether what `other` asked for may be cancelled or resumed by this client."""
        return (self.id, self.kind) == (other.id, other.kind)


# --- what is served -----------------------------------------------------------------------------


class Origin(enum.Enum):
    """Who signed a version: the hub's publishers, or this device on an admin's word."""

    HUB = "hub"
    LOCAL = "local"


class Role(enum.Enum):
    """What a loaded version is here."""

    ACTIVE = "active"
    STANDBY = "standby"
    CANDIDATE = "candidate"


class ModelVersion(Value):
    """One signed edition of a served name. `signature`: by the key `key_id`, of the statement."""

    model: str
    version: str
    digest: Digest
    blob_bytes: int
    origin: Origin
    key_id: str
    signature: str

    @property
    def label(self) -> str:
        """Name the version the way operators and clients write it: model@version."""
        return f"{self.model}@{self.version}"


class ModelKind(enum.Enum):
    """What a model does. Its file and the configuration tell; it has just one."""

    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


class AdapterVersion(Value):
    """One LoRA adapter of one version, `model` (model@version), signed like a version.

    Its scale is part of the statement, for it is part of what the adapter does to an answer.
    """

    model: str
    name: str
    digest: Digest
    blob_bytes: int
    scale: float
    origin: Origin
    key_id: str
    signature: str

    @property
    def key(self) -> str:
        """Name it so that what was computed with another file or scale is never taken for it."""
        return f"{self.name}@{self.digest}*{self.scale!r}"


class AdapterState(enum.Enum):
    """Whether requests may name a loaded adapter now."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class AdapterStatus(Value):
    """One adapter of a version. load_ms: how long loading it kept the model's streams waiting.

    is_shelved: its file lies in server.adapter_dir, so that applications may unload it.
    """

    adapter: AdapterVersion
    state: AdapterState
    rank: int
    created_utc_ms: int
    is_shelved: bool
    load_ms: float = 0.0
    requests_count: int = 0
    reason: str = ""


class VersionState(enum.Enum):
    """Whether a loaded version answers now."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


class MemoryKind(enum.Enum):
    """What may be done to the sequences that a model remembers."""

    CUTTABLE = "cuttable"  # attention: any prefix may be kept, and in a unified cache shared
    WHOLE = "whole"  # a sliding window, a state, or both: only whole sequences


class CacheLayout(enum.Enum):
    """How the sequences of a model share its cells."""

    UNIFIED = "unified"  # all cells for all, and prefixes may be shared
    PARTITIONED = "partitioned"  # a part of its own for each


class ModelFacts(Value):
    """What the engine read from a loaded file. Token counts and bytes; ids are -1 where absent.

    `partitioned_speedup`: times as fast as a unified cache, as measured; 0.0 where it was not.
    """

    architecture: str
    description: str
    parameters_count: int
    size_bytes: int
    context_tokens: int
    context_train_tokens: int
    embedding_size: int
    vocabulary_size: int
    pooling: str  # "none" for a generating model, else "mean" | "cls" | "last" | "rank"
    bos_token_id: int
    eos_token_id: int
    adds_bos: bool
    has_chat_template: bool
    kv_bytes_per_token: int
    sequences_max: int
    kv_cells: int
    memory_kind: MemoryKind
    cache_layout: CacheLayout = CacheLayout.UNIFIED
    cache_layout_reason: str = ""
    partitioned_speedup: float = 0.0


class ModelStatus(Value):
    """One row of the role table, for every face that lists models. `facts` come with loading."""

    version: ModelVersion
    role: Role
    state: VersionState
    loading_ratio: float
    created_utc_ms: int
    kind: ModelKind = ModelKind.GENERATE
    reason: str = ""
    facts: ModelFacts | None = None
    running_count: int = 0
    waiting_count: int = 0
    worker_pid: int = 0
    worker_restarts: int = 0
    kv_cells_used: int = 0
    kv_cells_total: int = 0
    adapters: tuple[AdapterStatus, ...] = ()


# --- judgement ----------------------------------------------------------------------------------


class Verdict(enum.Enum):
    """What measurements say of a version. Inconclusive holds: it never moves users."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Judgement(Value):
    """A verdict with its reason and the number of requests it rests on."""

    verdict: Verdict
    reason: str
    sample_count: int
