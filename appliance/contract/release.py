"""Describe one version of a model: its files, what it is, what it needs and how it is tried.

What this room does: the document that a publisher signs, checked at birth.
What it knows: an appliance loads nothing that a release does not name, all or none of it.
What it never does: read a model file; the publisher's tool fills in the facts.
"""

from __future__ import annotations

import enum

from appliance.contract.document import Document, Part, check, check_blob, check_count
from appliance.contract.names import checked

FILES_MAX = 64
PROMPTS_MAX = 64
STEPS_MAX = 20
STEP_PERCENT_MAX = 99
TEXT_CHARS_MAX = 16_384
LIKELY_TOKENS_MAX = 16  # of one answer of the original
LIKELY_MAX = 8
_LOGPROB_MIN = -1000.0
_NAME = "release"
_SUFFIX = ".gguf"


class FileRole(enum.Enum):
    """What a file of a release is for. Split weights are in their order."""

    WEIGHTS = "weights"
    ADAPTER = "adapter"


class BlobRef(Part, frozen=True):
    """A file named by its content: SHA-256 in hex, and its length in bytes."""

    sha256: str
    length: int

    def __post_init__(self) -> None:
        """Refuse what can't name a blob."""
        check_blob(_NAME, "blob", self.sha256, self.length)


class ReleaseFile(Part, frozen=True):
    """One file: its name on the appliance, its content, and the map of its chunks.

    `quantisation`: which of several editions of the same weights it belongs to; an appliance takes
    one edition (`Release.quantisations`, the first is preferred).
    """

    name: str
    role: FileRole
    blob: BlobRef
    chunk_map: BlobRef
    quantisation: str = ""

    def __post_init__(self) -> None:
        """Refuse a name that is none."""
        checked(self.name, "files.name")

    @property
    def adapter_name(self) -> str:
        """Name an adapter the way requests do: as its file, without .gguf."""
        return self.name.removesuffix(_SUFFIX)


class Facts(Part, frozen=True):
    """What the publisher's tool read from the weights; counts, bytes and hex digests."""

    architecture: str
    parameters_count: int
    quantisation: str
    context_train_tokens: int
    tokenizer_sha256: str
    template_sha256: str = ""
    licence: str = ""
    kv_bytes_per_token: int = 0
    memory_bytes: int = 0


class Needs(Part, frozen=True):
    """What an appliance must have: its own version at least, memory in bytes."""

    appliance_min: str = ""
    memory_bytes: int = 0


class Likely(Part, frozen=True):
    """One token of the original's greedy answer: what was likely there, likeliest first.

    `ids` and `logprobs` (natural, before any sampling option) are aligned.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is not aligned, or no logarithm of a probability."""
        field = "health.prompts.likely"
        check_count(_NAME, field, len(self.ids), 1, LIKELY_MAX)
        aligned = len(self.ids) == len(self.logprobs) == len(set(self.ids))
        check(ok=aligned, document=_NAME, field=field, reason="ids and logprobs are not aligned")
        for logprob in self.logprobs:
            check_count(_NAME, field, logprob, _LOGPROB_MIN, 0.0)


class Expectation(Part, frozen=True):
    """One prompt of the health pack, answered greedily, and what the answer must be like.

    All that is given must hold. `matches`: a regular expression found in the answer; `contains`,
    `equals`: text; `tokens_min`: at least so many tokens; `is_json`: the answer parses. `likely`:
    the first tokens of what the original answered, for `HealthPack.drift_max`.
    """

    prompt: str
    is_chat: bool = True
    max_tokens: int = 64
    matches: str = ""
    contains: str = ""
    equals: str = ""
    tokens_min: int = 0
    is_json: bool = False
    likely: tuple[Likely, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a prompt that expects nothing, or what is out of bounds."""
        check_count(_NAME, "health.prompts.max_tokens", self.max_tokens, 1, 4096)
        check_count(_NAME, "health.prompts.prompt", len(self.prompt), 1, TEXT_CHARS_MAX)
        check_count(_NAME, "health.prompts.likely", len(self.likely), 0, LIKELY_TOKENS_MAX)
        expects = self.matches or self.contains or self.equals or self.tokens_min or self.is_json
        check(
            ok=bool(expects or self.likely),
            document=_NAME,
            field="health.prompts",
            reason="expects nothing",
        )


class HealthPack(Part, frozen=True):
    """What a candidate must pass before anyone sees it.

    `pass_ratio_min`: the share of prompts that must pass. `speed_ratio_min`: tokens a second
    against the active version on this appliance; 0 asks for nothing. `drift_max`: how far its
    log-probabilities may lie from the original's, in nats on average (see `drift`); 0 asks for
    nothing.
    """

    prompts: tuple[Expectation, ...] = ()
    pass_ratio_min: float = 1.0
    speed_ratio_min: float = 0.0
    drift_max: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of bounds."""
        check_count(_NAME, "health.prompts", len(self.prompts), 0, PROMPTS_MAX)
        check_count(_NAME, "health.pass_ratio_min", self.pass_ratio_min, 0.0, 1.0)
        check_count(_NAME, "health.speed_ratio_min", self.speed_ratio_min, 0.0, 100.0)
        check_count(_NAME, "health.drift_max", self.drift_max, 0.0, 100.0)
        measured = any(prompt.likely for prompt in self.prompts)
        check(
            ok=measured or not self.drift_max,
            document=_NAME,
            field="health.drift_max",
            reason="no prompt says what was likely; measure the original first",
        )


class Trial(Part, frozen=True):
    """A stretch of a deployment: samples and seconds that must both be reached before a verdict."""

    samples_min: int = 20
    duration_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what is out of bounds."""
        check_count(_NAME, "strategy.samples_min", self.samples_min, 1, 1_000_000)
        check_count(_NAME, "strategy.duration_s", self.duration_s, 0.0, 30 * 86_400.0)


class Strategy(Part, frozen=True):
    """How a version is tried. Each stretch may be skipped: share 0, no steps, None.

    `shadow_share`: of real requests, repeated on the candidate and thrown away. `steps_percent`:
    of clients, rising. `deadline_s`: how long the whole deployment may take. `stop_then_start`:
    whether the active version may be stopped where both do not fit.
    """

    shadow_share: float = 0.2
    shadow: Trial = Trial()
    needs_approval: bool = False
    steps_percent: tuple[int, ...] = (10, 50)
    step: Trial = Trial()
    probation: Trial | None = Trial(samples_min=50, duration_s=300.0)
    deadline_s: float = 86_400.0
    stop_then_start: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of bounds or does not rise."""
        check_count(_NAME, "strategy.shadow_share", self.shadow_share, 0.0, 1.0)
        check_count(_NAME, "strategy.steps_percent", len(self.steps_percent), 0, STEPS_MAX)
        rising = all(
            a < b for a, b in zip(self.steps_percent, self.steps_percent[1:], strict=False)
        )
        inside = all(1 <= step <= STEP_PERCENT_MAX for step in self.steps_percent)
        check(
            ok=rising and inside,
            document=_NAME,
            field="strategy.steps_percent",
            reason=f"must rise from 1 to {STEP_PERCENT_MAX}; after the last come all clients",
        )
        check_count(_NAME, "strategy.deadline_s", self.deadline_s, 1.0, 366 * 86_400.0)


class Release(Document, frozen=True, tag="release"):
    """One version of a model, as its publisher signs it. `issued_utc_ms`: when it was made.

    `sequence`: rises with each release of a model; `standing.floor_sequence` refuses older ones.
    """

    model: str
    version: str
    sequence: int
    issued_utc_ms: int
    files: tuple[ReleaseFile, ...]
    facts: Facts
    needs: Needs = Needs()
    health: HealthPack = HealthPack()
    strategy: Strategy = Strategy()
    notes: str = ""

    def __post_init__(self) -> None:
        """Refuse names, counts or files that contradict each other."""
        checked(self.model, "model")
        checked(self.version, "version")
        check_count(_NAME, "sequence", self.sequence, 1, 2**53 - 1)
        check_count(_NAME, "files", len(self.files), 1, FILES_MAX)
        names = {file.name for file in self.files}
        check(
            ok=len(names) == len(self.files),
            document=_NAME,
            field="files.name",
            reason="a name is given twice",
        )
        check(
            ok=any(file.role is FileRole.WEIGHTS for file in self.files),
            document=_NAME,
            field="files",
            reason="no weights among them",
        )
        adapters = [f.adapter_name for f in self.files if f.role is FileRole.ADAPTER]
        check(
            ok=len({*adapters, self.model}) == len(adapters) + 1,
            document=_NAME,
            field="files.name",
            reason="an adapter has the name of another, or of the model",
        )

    @property
    def label(self) -> str:
        """Name it the way operators and clients write it: model@version."""
        return f"{self.model}@{self.version}"

    @property
    def quantisations(self) -> tuple[str, ...]:
        """Name the editions of the weights, the preferred one first."""
        return tuple(
            dict.fromkeys(f.quantisation for f in self.files if f.role is FileRole.WEIGHTS)
        )

    def needed_bytes(self, quantisation: str) -> int:
        """Say how much memory an edition needs, at least that of its files.

        What is stated holds for the preferred edition; others differ by the size of their weights.
        """
        stated = self.needs.memory_bytes or self.facts.memory_bytes
        own = sum(file.blob.length for file in self.edition(quantisation))
        preferred = sum(file.blob.length for file in self.edition(self.quantisations[0]))
        return max(own, stated + own - preferred)

    def edition(self, quantisation: str) -> tuple[ReleaseFile, ...]:
        """Pick the files of one edition: its weights in order, and every adapter."""
        return tuple(
            file
            for file in self.files
            if file.role is FileRole.ADAPTER or file.quantisation == quantisation
        )
