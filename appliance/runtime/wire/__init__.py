"""Carry frames between the daemon and its worker and text processes."""

from __future__ import annotations

from typing import TypeAlias

from appliance.runtime.wire.frame import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Frame,
    FrameReader,
    WireFault,
    encode,
)
from appliance.runtime.wire.text import (
    CloseVocabulary,
    Detokenize,
    Detokenized,
    FromText,
    Opened,
    OpenVocabulary,
    Prepare,
    Prepared,
    TextFailed,
    ToText,
)
from appliance.runtime.wire.worker import (
    Ack,
    Cancel,
    Embedded,
    EngineGauges,
    EngineOptions,
    Failure,
    FromWorker,
    Hello,
    LoadFailed,
    Loading,
    News,
    PrefillNews,
    Ready,
    Start,
    Step,
    Submit,
    SubmitEmbed,
    TicketFailed,
    ToWorker,
)

AnyFrame: TypeAlias = ToWorker | FromWorker | ToText | FromText

__all__ = [
    "FRAME_BYTES_MAX",
    "PROTOCOL_VERSION",
    "Ack",
    "AnyFrame",
    "Cancel",
    "CloseVocabulary",
    "Detokenize",
    "Detokenized",
    "Embedded",
    "EngineGauges",
    "EngineOptions",
    "Failure",
    "Frame",
    "FrameReader",
    "FromText",
    "FromWorker",
    "Hello",
    "LoadFailed",
    "Loading",
    "News",
    "OpenVocabulary",
    "Opened",
    "PrefillNews",
    "Prepare",
    "Prepared",
    "Ready",
    "Start",
    "Step",
    "Submit",
    "SubmitEmbed",
    "TextFailed",
    "TicketFailed",
    "ToText",
    "ToWorker",
    "WireFault",
    "encode",
]
