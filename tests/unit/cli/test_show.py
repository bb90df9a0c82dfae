"""What is shown, and how it is made safe."""

from __future__ import annotations

import io

import pytest

from appliance.cli import show
from appliance.domain import Final, FinishReason, Timings, Usage


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def final(completion: int, first_ms: float, total_ms: float) -> Final:
    return Final(
        usage=Usage(prompt_tokens=5, completion_tokens=completion),
        timings=Timings(queue_ms=1, first_token_ms=first_ms, total_ms=total_ms),
        finish_reasons=(FinishReason.STOP,),
    )


def test_a_terminal_never_gets_a_models_control_characters() -> None:
    screen, pipe = Screen(), io.StringIO()
    text = "a\x1b[31mred\x07\r\nnext\tcolumn 你好\x9b"
    show.write(text, screen)
    show.write(text, pipe)
    assert screen.getvalue() == "a\ufffd[31mred\ufffd\ufffd\nnext\tcolumn 你好\ufffd"
    assert pipe.getvalue() == text


def test_the_speed_counts_the_tokens_after_the_first() -> None:
    assert show.tokens_per_second(final(11, 100, 1100)) == pytest.approx(10)
    assert show.tokens_per_second(final(1, 100, 100)) == 0
    assert show.measurements(final(11, 100, 1100)) == (
        "5 + 11 tokens, 10.0 tokens/s, first token after 100 ms, total 1100 ms, queue 1 ms, stop"
    )


def test_sizes_are_shown_in_binary_units() -> None:
    assert [show.size(count) for count in (0, 1023, 1536, 5 * 1024**3, 2 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "2.0 TiB",
    ]
