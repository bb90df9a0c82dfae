"""Hold the words of the appliance as values: who asks, for what, of which version, and what came.

What this room does: frozen value objects, checked at birth, that cross room and process boundaries.
What it knows: the limits that belong to a word itself (a probability is at most 1). Limits that an
operator sets live in `config`, and are applied in `api/generate`.
What it never does: I/O, clocks, or anything of a transport.
"""

from __future__ import annotations

import enum
from typing import Any, NewType, Protocol, TypeAlias, dataclass_transform

import msgspec

from appliance.errors import InvalidRequest

RequestId = NewType("RequestId", str)
Digest = NewType("Digest", str)  # "sha256:" + 64 lower-case hex digits


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every value object: immutable, keyword-only, compared by content."""


# --- who ----------------------------------------------------------------------------------------


class ClientKind(enum.Enum):
    """How a client made itself known."""

    LOCAL_SOCKET = "local_socket"
    LOOPBACK = "loopback"
    API_KEY = "api_key"


class Client(Value):
    """Who sends a request. `id` is what audit, fairness and quotas count by."""

    id: str
    kind: ClientKind


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


class VersionState(enum.Enum):
    """Whether a loaded version answers now."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


class ModelFacts(Value):
    """What the engine read from a loaded file. Token counts and bytes; ids are -1 where absent."""

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


class ModelStatus(Value):
    """One row of the role table, for every face that lists models. `facts` come with loading."""

    version: ModelVersion
    role: Role
    state: VersionState
    loading_ratio: float
    created_utc_ms: int
    reason: str = ""
    facts: ModelFacts | None = None
    running_count: int = 0
    waiting_count: int = 0
    worker_pid: int = 0
    worker_restarts: int = 0
    kv_cells_used: int = 0
    kv_cells_total: int = 0


# --- what is asked ------------------------------------------------------------------------------


def _check(*, ok: bool, field: str, reason: str) -> None:
    if not ok:
        raise InvalidRequest(field=field, reason=reason)


def _check_range(field: str, value: float, low: float, high: float) -> None:
    """Refuse what is out of range; NaN is in none, and an integer may have any size."""
    _check(
        ok=low <= value <= high,
        field=field,
        reason=f"must be a number from {low:g} to {high:g}, not {str(value)[:_SHOWN_CHARS]}",
    )


SEED_MAX = 2**63 - 1
_SHOWN_CHARS = 64
LOGIT_BIAS_MAX = 1024
STOP_STRINGS_MAX = 16
STOP_STRING_CHARS_MAX = 256
STOP_TOKENS_MAX = 64
CHOICES_MAX = 16
TOP_LOGPROBS_MAX = 20
TEMPERATURE_MAX = 10.0
PENALTY_MAX = 10.0


class SamplingOptions(Value):
    """How the next token is drawn. The defaults draw from the model's own distribution.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and typical_p 1 mean off. repeat_penalty
    looks at prompt and output, frequency and presence at the output only (OpenAI's meaning);
    all three within the last `penalty_last_n` tokens. seed None: one is drawn and reported.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 256
    logit_bias: dict[int, float] = {}
    seed: int | None = None

    def __post_init__(self) -> None:
        for field, low, high in (
            ("temperature", 0.0, TEMPERATURE_MAX),
            ("top_k", 0, 2**31 - 1),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("typical_p", 0.0, 1.0),
            ("repeat_penalty", 0.01, PENALTY_MAX),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
            ("penalty_last_n", 0, 65536),
        ):
            _check_range(field, getattr(self, field), low, high)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, SEED_MAX)
        _check(
            ok=len(self.logit_bias) <= LOGIT_BIAS_MAX,
            field="logit_bias",
            reason=f"has {len(self.logit_bias)} entries; the limit is {LOGIT_BIAS_MAX}",
        )
        for token_id, bias in self.logit_bias.items():
            _check(ok=token_id >= 0, field="logit_bias", reason=f"token id {token_id} is negative")
            _check_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0)


class StopOptions(Value):
    """When generation ends. max_tokens None: as far as the context goes."""

    max_tokens: int | None = None
    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        _check(
            ok=len(self.strings) <= STOP_STRINGS_MAX,
            field="stop",
            reason=f"has {len(self.strings)} strings; the limit is {STOP_STRINGS_MAX}",
        )
        for text in self.strings:
            _check(ok=text != "", field="stop", reason="must not hold an empty string")
            _check(
                ok=len(text) <= STOP_STRING_CHARS_MAX,
                field="stop",
                reason=f"a string has {len(text)} characters; the limit is {STOP_STRING_CHARS_MAX}",
            )
        _check(
            ok=len(self.token_ids) <= STOP_TOKENS_MAX,
            field="stop_token_ids",
            reason=f"has {len(self.token_ids)} entries; the limit is {STOP_TOKENS_MAX}",
        )


class OutputOptions(Value):
    """What comes back beside the text. top_logprobs None: none; 0: of the drawn token only."""

    n: int = 1
    top_logprobs: int | None = None
    echo: bool = False

    def __post_init__(self) -> None:
        _check_range("n", self.n, 1, CHOICES_MAX)
        if self.top_logprobs is not None:
            _check_range("top_logprobs", self.top_logprobs, 0, TOP_LOGPROBS_MAX)


class ConstraintKind(enum.Enum):
    """The language in which a constraint on the output is written."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICES = "choices"
    LARK = "lark"  # made here only (a demanded tool call); no client may send one


class Constraint(Value):
    """A language the output must belong to. `text`: a schema as JSON, a regex, or a JSON list."""

    kind: ConstraintKind
    text: str = ""


class ToolCall(Value):
    """One call of a tool, made by the model. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(Value):
    """One turn of a chat. role: system, developer, user, assistant or tool."""

    role: str
    content: str = ""
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class Tool(Value):
    """A function the model may call. `parameters` is a JSON schema as JSON text."""

    name: str
    description: str = ""
    parameters: str = "{}"


class ToolChoiceMode(enum.Enum):
    """Whether the model may, must or must not call a tool."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


class ToolChoice(Value):
    """OpenAI's tool_choice. `name` only with NAMED; not `parallel`: at most one call a choice."""

    mode: ToolChoiceMode = ToolChoiceMode.AUTO
    name: str = ""
    parallel: bool = True


class TextPrompt(Value, tag="text"):
    """A prompt as text; special tokens written in it are not parsed."""

    text: str


class TokenPrompt(Value, tag="tokens"):
    """A prompt as token ids of the model it is for."""

    token_ids: tuple[int, ...]


class ChatPrompt(Value, tag="chat"):
    """A prompt as messages, rendered by the model's own template."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()


Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt


class GenerateRequest(Value):
    """Everything that decides an answer. `deadline_ms` is monotonic; None: none."""

    request_id: RequestId
    model: str
    prompt: Prompt
    sampling: SamplingOptions = SamplingOptions()
    stop: StopOptions = StopOptions()
    output: OutputOptions = OutputOptions()
    constraint: Constraint | None = None
    deadline_ms: float | None = None


class EmbedRequest(Value):
    """Texts or token lists to embed; one vector comes back for each, in order."""

    request_id: RequestId
    model: str
    inputs: tuple[TextPrompt | TokenPrompt, ...]
    normalize: bool = True
    deadline_ms: float | None = None


# --- what comes ---------------------------------------------------------------------------------


class FinishReason(enum.Enum):
    """Why a choice ended well. Everything else is an ApplianceError."""

    STOP = "stop"  # end of turn, a stop string or a stop token
    LENGTH = "length"  # max_tokens, or the context is full
    TOOL_CALLS = "tool_calls"


class TokenLogprob(Value):
    """The natural-log probability of one drawn token, before any sampling option.

    `top` holds (token id, bytes, logprob), best first. `text_bytes` may be part of a character.
    """

    token_id: int
    text_bytes: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


class Usage(Value):
    """Tokens of a request: evaluated for the prompt, drawn over all choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Accepted(Value, tag="accepted"):
    """The first event: the request holds a ticket on a worker. `seed` is the resolved one."""

    request_id: RequestId
    version: str
    seed: int
    prompt_tokens: int


class Progress(Value, tag="progress"):
    """How far a long prompt has come, in tokens; sent at most once a step."""

    prompt_tokens_done: int
    prompt_tokens_total: int


class Delta(Value, tag="delta"):
    """More of one choice. `text` is whole characters; the tokens are those accepted since.

    Text may lag behind its tokens while it could still become a stop string or half a character.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class ToolCallMade(Value, tag="tool_call"):
    """One whole call of a tool by one choice; `index` counts the calls of that choice from 0."""

    choice: int
    index: int
    call: ToolCall


class ChoiceEnd(Value, tag="choice_end"):
    """One choice is complete; others of the same request may go on."""

    choice: int
    finish_reason: FinishReason


class Timings(Value):
    """Durations of one request in ms; the queue ends when the first prompt token is planned."""

    queue_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


class Final(Value, tag="final"):
    """The last event of a request that ended well; exactly one, or exactly one error instead."""

    usage: Usage
    timings: Timings
    finish_reasons: tuple[FinishReason, ...]


Event: TypeAlias = Accepted | Progress | Delta | ToolCallMade | ChoiceEnd | Final


class EmbedResult(Value):
    """Vectors as little-endian float32 bytes, in the order of the inputs; each `size` long."""

    version: str
    size: int
    vectors: tuple[bytes, ...]
    prompt_tokens: int


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


class VerdictSource(Protocol):
    """Judge a version against the active one. Supplied by `observe`, consumed by `sync`."""

    def judge(self, candidate: ModelVersion, active: ModelVersion) -> Judgement:
        """Judge from measurements so far; never blocks; missing data is INCONCLUSIVE."""
        ...


JsonObject: TypeAlias = dict[str, Any]
