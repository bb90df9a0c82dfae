"""How often a client is told how far its prompt has come."""

from __future__ import annotations

from appliance.api.pacing import Pacing
from appliance.domain import Delta, Progress


def test_progress_passes_once_an_interval_and_all_else_always() -> None:
    now_ms = [0.0]
    pacing = Pacing(100.0, lambda: now_ms[0])
    progress = Progress(prompt_tokens_done=1, prompt_tokens_total=2)
    passed = []
    for now_ms[0] in (0.0, 50.0, 99.0, 100.0, 150.0, 250.0):
        assert pacing.passes(Delta(choice=0, text="x"))
        passed.append(pacing.passes(progress))
    assert passed == [True, False, False, True, False, True]


def test_no_interval_lets_everything_through() -> None:
    pacing = Pacing(0.0, lambda: 5.0)
    progress = Progress(prompt_tokens_done=1, prompt_tokens_total=2)
    assert [pacing.passes(progress) for _ in range(3)] == [True] * 3
