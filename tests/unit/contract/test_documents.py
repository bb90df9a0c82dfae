"""What hub and appliance both believe: documents round-trip, and refuse what is out of bounds."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract import chunk_map, names
from appliance.contract.assignment import Assigned, Assignment
from appliance.contract.chunk_map import ChunkMap
from appliance.contract.document import DOCUMENT_BYTES_MAX, SCHEMA, Document, decode, encode
from appliance.contract.release import (
    BlobRef,
    Expectation,
    Facts,
    FileRole,
    HealthPack,
    Release,
    ReleaseFile,
    Strategy,
)
from appliance.contract.standing import Revoked, Standing
from appliance.errors import DocumentRefused

DIGEST = hashlib.sha256(b"weights").hexdigest()


def a_file(name: str = "model.gguf", quantisation: str = "", **changes: object) -> ReleaseFile:
    values: dict[str, object] = {
        "name": name,
        "role": FileRole.WEIGHTS,
        "blob": BlobRef(sha256=DIGEST, length=7),
        "chunk_map": BlobRef(sha256=DIGEST, length=7),
        "quantisation": quantisation,
    }
    return ReleaseFile(**(values | changes))  # type: ignore[arg-type]


def a_release(**changes: object) -> Release:
    values: dict[str, object] = {
        "schema": SCHEMA,
        "model": "demo",
        "version": "2",
        "sequence": 2,
        "issued_utc_ms": 1,
        "files": (a_file(),),
        "facts": Facts(
            architecture="llama",
            parameters_count=1,
            quantisation="Q8_0",
            context_train_tokens=256,
            tokenizer_sha256=DIGEST,
        ),
    }
    return Release(**(values | changes))  # type: ignore[arg-type]


def an_assignment(**changes: object) -> Assignment:
    values: dict[str, object] = {
        "schema": SCHEMA,
        "cohort": "shops",
        "sequence": 1,
        "issued_utc_ms": 1,
        "models": (Assigned(model="demo", version="2", release_sha256=DIGEST),),
    }
    return Assignment(**(values | changes))  # type: ignore[arg-type]


def a_standing(**changes: object) -> Standing:
    values: dict[str, object] = {"schema": SCHEMA, "model": "demo", "floor_sequence": 1}
    return Standing(**(values | changes))  # type: ignore[arg-type]


ALL: tuple[Document, ...] = (a_release(), an_assignment(), a_standing())


@pytest.mark.parametrize("document", ALL)
def test_a_document_comes_back_as_it_was_written(document: Document) -> None:
    data = encode(document)
    assert decode(data, type(document)) == document
    assert encode(decode(data, type(document))) == data


@pytest.mark.parametrize("document", ALL)
def test_a_later_edition_is_read_and_another_schema_is_not(document: Document) -> None:
    plain = msgspec.json.decode(encode(document))
    assert decode(msgspec.json.encode(plain | {"colour": "blue"}), type(document)) == document
    with pytest.raises(DocumentRefused, match="schema: is 2"):
        decode(msgspec.json.encode(plain | {"schema": 2}), type(document))
    del plain["schema"]
    with pytest.raises(DocumentRefused, match="schema"):
        decode(msgspec.json.encode(plain), type(document))


def test_one_document_is_not_taken_for_another() -> None:
    with pytest.raises(DocumentRefused, match="release"):
        decode(encode(a_release()), Standing)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentRefused):
        decode(data, Release)


def test_a_document_has_a_bound() -> None:
    with pytest.raises(DocumentRefused, match="at most"):
        decode(b" " * (DOCUMENT_BYTES_MAX + 1), Release)
    with pytest.raises(DocumentRefused, match="at most"):
        encode(a_release(notes="x" * DOCUMENT_BYTES_MAX))


def test_every_bound_of_a_release_is_named() -> None:
    wrong: tuple[tuple[dict[str, object], str], ...] = (
        ({"model": "../demo"}, "model"),
        ({"version": ""}, "version"),
        ({"sequence": 0}, "sequence"),
        ({"files": ()}, "files"),
        ({"files": (a_file(), a_file())}, "twice"),
        ({"files": (a_file(role=FileRole.ADAPTER),)}, "no weights"),
    )
    for changes, named in wrong:
        with pytest.raises(DocumentRefused, match=named):
            a_release(**changes)


def test_every_bound_of_its_parts_is_named() -> None:
    wrong = (
        (lambda: BlobRef(sha256=DIGEST.upper(), length=1), "sha256"),
        (lambda: BlobRef(sha256=DIGEST, length=0), "length"),
        (lambda: a_file("a/b"), "files.name"),
        (lambda: a_file(".hidden"), "files.name"),
        (lambda: Expectation(prompt="x"), "expects nothing"),
        (lambda: Expectation(prompt="x", contains="y", max_tokens=0), "max_tokens"),
        (lambda: HealthPack(pass_ratio_min=1.5), "pass_ratio_min"),
        (lambda: HealthPack(pass_ratio_min=float("nan")), "pass_ratio_min"),
        (lambda: Strategy(steps_percent=(50, 10)), "steps_percent"),
        (lambda: Strategy(steps_percent=(0,)), "steps_percent"),
        (lambda: Strategy(shadow_share=-0.1), "shadow_share"),
        (lambda: Strategy(deadline_s=0), "deadline_s"),
        (lambda: a_standing(floor_sequence=-1), "floor_sequence"),
        (lambda: Revoked(version="2", release_sha256="x"), "release_sha256"),
        (lambda: Assigned(model="demo", version="2", release_sha256="x"), "release_sha256"),
        (lambda: an_assignment(models=an_assignment().models * 2), "twice"),
    )
    for make, named in wrong:
        with pytest.raises(DocumentRefused, match=named):
            make()


def test_an_edition_has_its_own_weights_and_every_adapter() -> None:
    files = (
        a_file("q8.gguf", "Q8_0"),
        a_file("q4-1.gguf", "Q4_K_M"),
        a_file("q4-2.gguf", "Q4_K_M"),
        a_file("tone.gguf", role=FileRole.ADAPTER),
    )
    release = a_release(files=files)
    assert release.quantisations == ("Q8_0", "Q4_K_M")
    assert [file.name for file in release.edition("Q4_K_M")] == [
        "q4-1.gguf",
        "q4-2.gguf",
        "tone.gguf",
    ]


def test_a_revoked_release_is_found_by_its_digest() -> None:
    revoked = Revoked(version="2", release_sha256=DIGEST, reason="wrong template")
    assert a_standing(revoked=(revoked,)).revokes(DIGEST) == revoked
    assert a_standing(revoked=(revoked,)).revokes("0" * 64) is None


@given(st.text(max_size=80))
def test_no_name_leaves_its_place(name: str) -> None:
    try:
        path = names.release_path(name, name)
    except DocumentRefused:
        return
    assert path.split("/") == ["models", name, name, "release.json"]
    assert not name.startswith(".")


def test_every_place_is_as_the_table_says() -> None:
    assert names.standing_path("demo") == "models/demo/standing.json"
    assert names.assignment_path("shops") == "fleet/shops/assignment.json"
    assert names.blob_path(DIGEST) == f"blobs/sha256/{DIGEST[:2]}/{DIGEST}"
    assert names.publisher_role("acme") == "publisher-acme"
    assert names.publisher_paths("demo") == ("models/demo/*", "models/demo/*/*")
    with pytest.raises(DocumentRefused, match="sha256"):
        names.blob_path("../x")


def a_map(**changes: object) -> ChunkMap:
    values: dict[str, object] = {
        "sha256": DIGEST,
        "length": 7,
        "lengths": (3, 4),
        "hashes": bytes(64),
    }
    return ChunkMap(**(values | changes))  # type: ignore[arg-type]


def test_a_chunk_map_comes_back_and_names_its_chunks() -> None:
    given_map = a_map()
    assert chunk_map.decode(chunk_map.encode(given_map)) == given_map
    assert [(one.offset, one.length) for one in given_map.chunks()] == [(0, 3), (3, 4)]
    assert len(given_map) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"length": 8}, "length"),
        ({"lengths": (0, 7)}, "lengths"),
        ({"lengths": ()}, "lengths"),
        ({"hashes": bytes(63)}, "hashes"),
        ({"sha256": "x"}, "sha256"),
        ({"lengths": (7, chunk_map.CHUNK_BYTES_MAX + 1)}, "lengths"),
    ],
)
def test_a_map_that_does_not_cover_its_blob_is_refused(
    changes: dict[str, object], named: str
) -> None:
    with pytest.raises(DocumentRefused, match=named):
        a_map(**changes)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\x80"])
def test_what_is_no_map_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentRefused):
        chunk_map.decode(data)
