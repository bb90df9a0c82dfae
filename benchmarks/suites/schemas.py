"""Measure output that is held to a JSON schema.

What this room does: the suite `schema`: is every finished answer valid (demo model), and what does
the constraint cost (1B shape)?
What it knows: schemas whose answers are bounded, and one whose answer can't end within the load.
What it never does: count an answer that was cut off as one that breaks its schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import Session, Side
from benchmarks.json_check import violation
from benchmarks.samples import OURS_GRPC
from benchmarks.servers import Settings
from benchmarks.suites.throughput import check_whole
from benchmarks.traffic import Part, Report

DEMO = Path(__file__).parents[2] / "appliance" / "models" / "demo"
VALID_CASE = "demo model, 8 streams"
FREE_CASE, HELD_CASE = "8 streams, unconstrained", "8 streams, in a schema"
_OUTPUT_MAX = 400


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_WORD: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 12}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 999}
BOUNDED: tuple[dict[str, Any], ...] = (
    _object(person=_WORD, company=_WORD, city=_WORD),
    _object(mood={"enum": ["positive", "negative", "neutral"]}, sure={"type": "boolean"}),
    _object(items={"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 5}),
    _object(
        name={"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        place=_object(city=_WORD, zip={"type": "string", "pattern": "^[0-9]{5}$"}),
    ),
    _object(answer={"anyOf": [_COUNT, {"type": "null"}, {"const": "unknown"}]}),
    {"type": "array", "items": _object(of=_WORD, count=_COUNT), "minItems": 1, "maxItems": 3},
    {"enum": ["yes", "no", 1, None, False]},
    _object(at={"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"}),
)
# Its shortest answer has thousands of characters: no load here comes to its end.
ENDLESS: dict[str, Any] = {"type": "array", "items": _COUNT, "minItems": 2000, "maxItems": 2000}


class _HeldOut(msgspec.Struct):
    messages: list[dict[str, Any]]


def questions() -> tuple[str, ...]:
    """Read what the demo model is asked in its held-out chats of one turn."""
    decoder = msgspec.json.Decoder(_HeldOut)
    lines = (DEMO / "heldout.jsonl").read_bytes().splitlines()
    chats = (decoder.decode(line).messages for line in lines)
    return tuple(chat[0]["content"] for chat in chats if len(chat) == 1)


def schema(session: Session) -> None:
    """Hold answers to schemas: are they valid, and how fast do they come?"""
    _valid(session)
    _speed(session)


def _valid(session: Session) -> None:
    part = Part(
        streams=8,
        requests=1 if session.options.quick else 8,
        output_tokens=_OUTPUT_MAX,
        ignore_eos=False,
        chats=questions(),
        schemas=BOUNDED,
        body={"temperature": 1.0},
    )
    settings = Settings(
        model=DEMO / "demo-2.q8_0.gguf",
        threads=1 if session.options.quick else session.options.threads,
        streams=part.streams,
        cells=8192,
    )
    for number, side in session.turns(session.sides(settings, grpc=False), 2, within_s=30):
        report, _ = session.send(side, part, seed=1 + number, may_fail=True)
        session.keep("schema", VALID_CASE, side.name, number, **validity(report, part))


def validity(report: Report, part: Part) -> dict[str, float]:
    """Count the answers that ended, and of them those that keep to their schema."""
    ended, valid, refused = 0, 0, 0
    for one in report.requests:
        refused += bool(one.error)
        if one.finish == "stop" and not one.error:
            ended += 1
            valid += not violation(one.text, part.schemas[one.number % len(part.schemas)])
    found = {"finished": float(ended), "refused": float(refused)}
    return found | ({"valid_percent": 100.0 * valid / ended} if ended else {})


def _speed(session: Session) -> None:
    free = Part(streams=8, prompt_tokens=128, output_tokens=48)
    held = msgspec.structs.replace(free, schemas=(ENDLESS,))
    settings = session.settings(session.model(), free.streams, 176)
    side = Side(name=OURS_GRPC, server=session.ours(settings), way="grpc")
    session.warm([side], free)
    cases = ((FREE_CASE, free), (HELD_CASE, held))
    for number in session.rounds(4, within_s=150):
        for case, part in cases if number % 2 == 0 else reversed(cases):
            sent = session.send(side, part, seed=1 + number)
            check_whole(sent[0], part, side)
            session.keep_load("schema", case, side, number, sent)
