"""Text is shown in whole characters, up to a stop string, and never taken back."""

from __future__ import annotations

import random

import pytest

from appliance.runtime.text import TextAssembler

TEXT = "naïve 你好 👍🏽 end"


def shown(pieces: list[bytes], stops: tuple[str, ...] = ()) -> list[str]:
    assembler = TextAssembler(stops)
    parts = [assembler.feed(piece) for piece in pieces]
    return [*parts, assembler.finish()]


def bytes_one_by_one(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def test_characters_split_over_tokens_are_shown_whole() -> None:
    parts = shown(bytes_one_by_one(TEXT))
    assert "".join(parts) == TEXT
    assert "\ufffd" not in "".join(parts)


def test_a_character_unfinished_at_the_end_is_one_replacement() -> None:
    assert shown(["你".encode()[:2]]) == ["", "\ufffd"]


def test_bytes_that_are_no_character_are_replaced_and_the_text_goes_on() -> None:
    assert "".join(shown([b"a\xff", b"\xfeb", b"\xe4", b"c"])) == "a\ufffd\ufffdb\ufffdc"


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        ([b"one STOP two"], ("STOP",), "one "),
        ([b"one S", b"TO", b"P two"], ("STOP",), "one "),
        ([b"one S", b"TO", b"NE"], ("STOP",), "one STONE"),
        ([b"aab", b"aabaac"], ("aabaac",), "aab"),
        ([b"ab", b"abc"], ("abc", "bab"), "a"),
        ([b"x", b"\n", b"\n", b"y"], ("\n\n",), "x"),
        (bytes_one_by_one("等于42。好"), ("。",), "等于42"),
        ([b"STO"], ("STOP",), "STO"),
        ([b"STOP"], ("STOP",), ""),
        ([b"abc"], ("c", "bc"), "a"),
    ],
)
def test_text_ends_before_the_first_stop_string(
    pieces: list[bytes], stops: tuple[str, ...], expected: str
) -> None:
    assert "".join(shown(pieces, stops)) == expected


def test_after_a_stop_nothing_more_is_shown() -> None:
    assembler = TextAssembler(("!",))
    assert assembler.feed(b"a!b") == "a"
    assert assembler.is_stopped
    assert assembler.feed(b"c") == ""
    assert assembler.finish() == ""


@pytest.mark.parametrize("seed", range(40))
def test_any_cut_into_tokens_gives_the_same_text_and_shows_no_stop_string(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab你👍\n") for _ in range(60))
    stops = tuple("".join(rng.choice("ab你👍\n") for _ in range(rng.randint(1, 4))) for _ in "123")
    ends = [start for start in map(text.find, stops) if start >= 0]
    raw, pieces = text.encode(), []
    while raw:
        size = rng.randint(1, 6)
        pieces.append(raw[:size])
        raw = raw[size:]
    whole = "".join(shown(pieces, stops))
    # Cut finely, a stop string that ends first is seen first, even if another one began earlier.
    assert text.startswith(whole)
    assert all(stop not in whole for stop in stops)
    if not ends:
        assert whole == text
    else:
        assert any(text[len(whole) :].startswith(stop) for stop in stops)
