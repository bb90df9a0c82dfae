"""Say what is asked: prompts, options, constraints, tools, and whole requests.

What this room does: everything that decides an answer, checked at birth.
What it knows: the limits that belong to a word itself (a probability is at most 1). Limits that an
operator sets live in `config`, and are applied in `api/generate`.
What it never does: I/O, clocks, or anything of a transport.
"""

from __future__ import annotations

import enum
from typing import NewType, TypeAlias

import msgspec

from appliance.domain.value import Value, check, check_range

RequestId = NewType("RequestId", str)

SEED_MAX = 2**63 - 1
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
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
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
            check_range(field, getattr(self, field), low, high)
        if self.seed is not None:
            check_range("seed", self.seed, 0, SEED_MAX)
        check(
            ok=len(self.logit_bias) <= LOGIT_BIAS_MAX,
            field="logit_bias",
            reason=f"has {len(self.logit_bias)} entries; the limit is {LOGIT_BIAS_MAX}",
        )
        for token_id, bias in self.logit_bias.items():
            check(ok=token_id >= 0, field="logit_bias", reason=f"token id {token_id} is negative")
            check_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0)


class StopOptions(Value):
    """When generation ends. max_tokens None: as far as the context goes."""

    max_tokens: int | None = None
    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        check(
            ok=len(self.strings) <= STOP_STRINGS_MAX,
            field="stop",
            reason=f"has {len(self.strings)} strings; the limit is {STOP_STRINGS_MAX}",
        )
        for text in self.strings:
            check(ok=text != "", field="stop", reason="must not hold an empty string")
            check(
                ok=len(text) <= STOP_STRING_CHARS_MAX,
                field="stop",
                reason=f"a string has {len(text)} characters; the limit is {STOP_STRING_CHARS_MAX}",
            )
        check(
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
        check_range("n", self.n, 1, CHOICES_MAX)
        if self.top_logprobs is not None:
            check_range("top_logprobs", self.top_logprobs, 0, TOP_LOGPROBS_MAX)


class ConstraintKind(enum.Enum):
    """The language in which a constraint on the output is written."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICES = "choices"
    GBNF = "gbnf"
    LARK = "lark"
    TOOL_CALLS = "tool_calls"  # made here only, of the tools' schemas; no client may send one


class Trigger(Value):
    """From where on a constraint holds: after `opens`, if one of `heads` follows it.

    at_start: and nothing but space came before.
    """

    opens: str
    heads: tuple[str, ...] = ("",)
    at_start: bool = False


class Constraint(Value):
    """A language the output must belong to.

    `text`: a schema as JSON, a regex, a JSON list of choices, or a grammar. trigger None: it holds
    from the beginning. shown_ids: control tokens whose text is shown, since it is read.
    """

    kind: ConstraintKind
    text: str = ""
    trigger: Trigger | None = None
    shown_ids: tuple[int, ...] = ()


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


class InfillFile(Value):
    """A file, or a piece of one, that may help to fill in the middle of another."""

    text: str
    name: str = ""


class InfillPrompt(Value, tag="infill"):
    """What stands before and after the text that is wanted; all of it is only ever text."""

    prefix: str
    suffix: str
    files: tuple[InfillFile, ...] = ()


class RankPrompt(Value, tag="rank"):
    """A query and a document as one input of a reranker; both are only ever text."""

    query: str
    document: str


Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt | InfillPrompt


class Priority(enum.Enum):
    """The class of a request: a higher one never waits for a lower one, which still progresses."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """Count the classes above this one."""
        return list(Priority).index(self)


CACHE_SALT_CHARS_MAX = 128


class GenerateRequest(Value):
    """Everything that decides an answer. `deadline_ms` is monotonic; None: none.

    priority None: normal, or the client's highest class if that is lower.
    adapter: the name of a LoRA adapter loaded for the model; "": none.
    cache_salt: prompts share computed prefixes only with those of the same salt and client.
    """

    request_id: RequestId
    model: str
    prompt: Prompt
    sampling: SamplingOptions = SamplingOptions()
    stop: StopOptions = StopOptions()
    output: OutputOptions = OutputOptions()
    constraint: Constraint | None = None
    deadline_ms: float | None = None
    priority: Priority | None = None
    adapter: str = ""
    cache_salt: str = ""

    def __post_init__(self) -> None:
        size = len(self.cache_salt)
        check(
            ok=size <= CACHE_SALT_CHARS_MAX,
            field="cache_salt",
            reason=f"has {size} characters; the limit is {CACHE_SALT_CHARS_MAX}",
        )


class EmbedRequest(Value):
    """Texts or token lists to embed; one vector comes back for each, in order."""

    request_id: RequestId
    model: str
    inputs: tuple[TextPrompt | TokenPrompt, ...]
    normalize: bool = True
    deadline_ms: float | None = None


class RerankRequest(Value):
    """Documents to score against a query; the best `top_n` come back, None: all, best first."""

    request_id: RequestId
    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        if self.top_n is not None:
            check_range("top_n", self.top_n, 1, 2**31 - 1)
