"""Say what a version is to whoever loads it, and what it answers before anybody is sent to it.

What this room does: frozen values between those who decide about versions and those who host them.
What it knows: a version of the hub is named by the digest of its release document, a local one by
that of its file.
What it never does: open a file, or judge.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.domain.answered import TokenLogprob
from appliance.domain.served import Digest, ModelVersion
from appliance.domain.value import Value


class HostedAdapter(Value):
    """A LoRA adapter that comes with a version: a path of this machine, and what it holds."""

    path: str
    digest: Digest


class HostedVersion(Value):
    """A verified version as a worker loads it: paths of this machine, all of immutable files.

    weights: in order; the first is opened. adapters: by the name that requests use. memory_bytes:
    as its publisher measured; 0 is unknown.
    """

    version: ModelVersion
    weights: tuple[str, ...]
    adapters: Mapping[str, HostedAdapter] = {}
    memory_bytes: int = 0

    @property
    def digest(self) -> Digest:
        """Name the version."""
        return self.version.digest


class Loaded(Value):
    """What a version is once it is loaded: in ms, bytes, and the digest of its tokeniser, in hex.

    memory_bytes: of its own, beyond its files and the cells of its KV cache. tokenizer_sha256:
    empty where the host can't tell.
    """

    digest: Digest
    load_ms: float
    memory_bytes: int
    tokenizer_sha256: str = ""


class NoRoom(Value):
    """Why a version can't be loaded beside what is loaded; nothing was stopped for it."""

    needed_bytes: int
    free_bytes: int


class Answer(Value):
    """What a version answered, greedily, to one prompt of its health pack.

    logprobs: of each token, where the prompt says what was likely in the original's answer.
    """

    text: str
    token_count: int
    decode_ms: float
    finish_reason: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
