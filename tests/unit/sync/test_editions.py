"""Which edition of a release a machine takes, for the memory it has and what its operator says."""

from __future__ import annotations

import pytest

from appliance.contract.release import BlobRef, Facts, FileRole, Release, ReleaseFile
from appliance.sync.editions import NoEdition, Room, choose

CELLS = 50
SIZES = {"Q8_0": 800, "Q4_K_M": 400, "Q5_K_M": 500}  # in the order of their publisher


def file(quantisation: str, length: int, role: FileRole = FileRole.WEIGHTS) -> ReleaseFile:
    blob = BlobRef(sha256="0" * 64, length=length)
    name = f"{quantisation or 'ada'}.gguf"
    return ReleaseFile(name=name, role=role, blob=blob, chunk_map=blob, quantisation=quantisation)


RELEASE = Release(
    schema=1,
    model="m",
    version="2",
    sequence=2,
    issued_utc_ms=0,
    files=tuple(file(name, length) for name, length in SIZES.items()),
    facts=Facts(
        architecture="llama",
        parameters_count=1,
        quantisation="Q8_0",
        context_train_tokens=1,
        tokenizer_sha256="a" * 64,
        memory_bytes=SIZES["Q8_0"] + CELLS,
    ),
)


def test_an_edition_needs_what_is_stated_but_for_the_size_of_its_weights() -> None:
    assert {one: RELEASE.needed_bytes(one) for one in SIZES} == {
        one: length + CELLS for one, length in SIZES.items()
    }


@pytest.mark.parametrize(
    ("room", "may_stop", "chosen"),
    [
        (Room(), False, "Q8_0"),
        (Room(free_bytes=850), False, "Q8_0"),
        (Room(free_bytes=849), False, "Q4_K_M"),
        (Room(free_bytes=450), True, "Q4_K_M"),  # what can be tried in the shadow goes first
        (Room(free_bytes=449, freed_bytes=401), True, "Q8_0"),
        (Room(free_bytes=449, freed_bytes=400), True, "Q4_K_M"),
        (Room(free_bytes=300, freed_bytes=149), True, "Q4_K_M"),  # what a stop frees is a guess
        (Room(free_bytes=850, wanted="Q5_K_M"), False, "Q5_K_M"),
        (Room(wanted="Q4_K_M"), False, "Q4_K_M"),
        (Room(free_bytes=0, freed_bytes=550, wanted="Q5_K_M"), True, "Q5_K_M"),
    ],
)
def test_the_first_that_suits_is_taken(room: Room, chosen: str, *, may_stop: bool) -> None:
    assert choose(RELEASE, room, may_stop=may_stop) == chosen


@pytest.mark.parametrize(
    ("room", "may_stop", "reason"),
    [
        (Room(free_bytes=449, freed_bytes=9000), False, "it needs 450 bytes of memory, 449 are"),
        (Room(free_bytes=500, wanted="Q5_K_M"), False, "it needs 550 bytes of memory, 500 are"),
    ],
)
def test_none_is_taken_that_does_not_fit_and_why_in_bytes(
    room: Room, reason: str, *, may_stop: bool
) -> None:
    found = choose(RELEASE, room, may_stop=may_stop)
    assert isinstance(found, NoEdition)
    assert reason in found.reason
    assert found.is_known


def test_an_edition_that_is_not_there_is_not_replaced_by_another() -> None:
    found = choose(RELEASE, Room(wanted="Q2_K"), may_stop=True)
    assert isinstance(found, NoEdition)
    assert not found.is_known
    assert found.reason == "the operator wants it in Q2_K; it is in Q8_0, Q4_K_M, Q5_K_M"
