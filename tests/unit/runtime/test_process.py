"""Start, bound and end a child of ours, for real."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from appliance.runtime import wire
from appliance.runtime.process import Child, child_environment, exit_cause


@pytest.mark.parametrize(
    ("returncode", "cause"),
    [(0, "exit_0"), (70, "exit_70"), (-9, "sigkill"), (-11, "sigsegv"), (-6, "sigabrt")],
)
def test_the_cause_of_an_end_is_one_word(returncode: int, cause: str) -> None:
    assert exit_cause(returncode) == cause


def test_nothing_of_our_environment_reaches_a_child() -> None:
    names = set(child_environment({"DEVICE": "1"}))
    assert names == {
        "DEVICE",
        "GGML_NO_BACKTRACE",
        "LANG",
        "GOMP_SPINCOUNT",
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPATH",
    }


def _with_text_process(act: signal.Signals | None, *, kill: bool = False) -> tuple[str, bool]:
    """Start a text process, greet, act on it, and end it; return the cause, and whether it went."""

    async def run() -> tuple[str, bool]:
        child: Child[wire.FromText] = await Child.start(
            "text-worker", wire.FromText, stop_wait_s=0.5, memory_bytes_max=2**31
        )
        handle = os.pidfd_open(child.pid)
        try:
            async with asyncio.timeout(60):
                frames = await child.receive()
            assert frames is not None
            (hello,) = frames
            assert hello == wire.Hello(protocol_version=wire.PROTOCOL_VERSION, pid=child.pid)
            if act is not None:
                os.kill(child.pid, act)
            if kill:
                child.kill("hung")
                child.kill("again")
            cause = await child.end()
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(handle, 0)
            return cause, child.ended
        finally:
            os.close(handle)

    return asyncio.run(run())


def test_closing_the_socket_ends_a_child() -> None:
    assert _with_text_process(None) == ("exit_0", True)


def test_a_child_that_does_not_listen_is_killed_by_the_last_rung() -> None:
    assert _with_text_process(signal.SIGSTOP) == ("sigkill", True)


def test_the_first_word_for_a_kill_is_kept() -> None:
    assert _with_text_process(None, kill=True) == ("hung", True)
