"""What clients see when processes are killed, hang or loop: a pause, or one typed error."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from appliance.config import Engine, Limits
from appliance.domain import (
    Constraint,
    ConstraintKind,
    FinishReason,
    SamplingOptions,
    VersionState,
)
from appliance.errors import InvalidRequest, ModelNotReady, RequestUnsafe, WorkerLost
from appliance.runtime import wire
from tests.integration.bench import Bench, Stream, chat, running
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

PROMPTS = (
    "Extract the entities as JSON: Lena works for Skyline in Cairo.",
    "Extract the entities as JSON: Sofia met a client of Quanta in Seattle.",
    "List the entities of this sentence as JSON: Diana met a client of Polaris in Boston.",
    "用JSON列出实体：吴芳在合肥的盛达公司工作。",
    "提取句子中的实体，输出JSON：李娜在厦门见了新域公司的客户。",
    "List the entities of this sentence as JSON: Irene works for Novatek in Milan.",
)
SEEDED = SamplingOptions(temperature=0.7, top_p=0.8)
FATAL_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)


async def _nine_streams(bench: Bench) -> list[Stream]:
    """Start six greedy and three seeded streams."""
    jobs = [await bench.job(text) for text in PROMPTS]
    jobs += [await bench.job(text, sampling=SEEDED) for text in PROMPTS[:3]]
    return [bench.stream(job) for job in jobs]


def test_streams_survive_three_kills_with_exactly_the_text_they_would_have_had() -> None:
    async def run() -> None:
        async with running() as b:
            undisturbed = await _nine_streams(b)
            await b.ended(*undisturbed)
            streams = await _nine_streams(b)
            for round_index, fatal in enumerate(FATAL_SIGNALS):
                for stream in streams:
                    await stream.has_tokens(2 + 3 * round_index)
                assert any(not stream.ended for stream in streams)
                os.kill(b.worker_pid, fatal)
                await b.lost(round_index + 1)
            await b.ended(*streams)
            assert [s.error for s in streams] == [None] * 9
            assert [s.text for s in streams] == [s.text for s in undisturbed]
            assert [s.token_ids for s in streams] == [s.token_ids for s in undisturbed]
            assert [cause for _, cause in b.recorder.losses] == ["sigkill", "sigsegv", "sigabrt"]
            status = b.router.models()[0]
            assert (status.running_count, status.waiting_count) == (0, 0)

    asyncio.run(run())


def test_a_stream_with_guesses_goes_on_where_it_was_killed() -> None:
    only = Constraint(kind=ConstraintKind.REGEX, text="(the cat and the dog, ){40}")

    async def run() -> None:
        async with running() as b:
            job = await b.job(PROMPTS[0], max_tokens=450)
            stream = b.stream(msgspec.structs.replace(job, constraint=only))
            await stream.has_tokens(120)
            assert b.recorder.gauges is not None
            assert b.recorder.gauges.draft_accepted_total > 0
            os.kill(b.worker_pid, signal.SIGKILL)
            await b.ended(stream)
            assert stream.error is None
            assert b.recorder.losses == [("demo@2", "sigkill")]
            assert b.recorder.gauges.draft_accepted_total > 0
            assert stream.text == "the cat and the dog, " * 40

    asyncio.run(run())


def test_a_worker_that_hangs_is_killed_and_its_streams_go_on() -> None:
    async def run() -> None:
        async with running(
            engine=Engine(context_tokens=512, threads=1, step_ms_max=100.0, stall_floor_s=1.5)
        ) as b:
            job = await b.job(PROMPTS[0])
            undisturbed = b.stream(job)
            await b.ended(undisturbed)
            stream = b.stream(job)
            await stream.has_tokens(2)
            os.kill(b.worker_pid, signal.SIGSTOP)
            await b.ended(stream)
            assert (stream.text, stream.error) == (undisturbed.text, None)
            assert b.recorder.losses == [("demo@2", "hung")]

    asyncio.run(run())


def test_a_request_that_ends_its_worker_twice_is_refused_and_the_next_one_is_served() -> None:
    async def run() -> None:
        async with running() as b:
            stream = b.stream(await b.job(PROMPTS[0], ignore_eos=True, max_tokens=300))
            for tokens in (3, 6):
                await stream.has_tokens(tokens)
                os.kill(b.worker_pid, signal.SIGSEGV)
            await b.ended(stream)
            assert isinstance(stream.error, RequestUnsafe)
            assert stream.error.worker_losses == 2
            after = b.stream(await b.job(PROMPTS[0]))
            await b.ended(after)
            assert after.final is not None
            assert after.final.finish_reasons == (FinishReason.STOP,)

    asyncio.run(run())


def test_a_worker_that_ends_too_often_fails_its_model_and_every_stream() -> None:
    async def run() -> None:
        async with running(engine=Engine(context_tokens=512, threads=1, restarts_max=1)) as b:
            jobs = [await b.job(text, ignore_eos=True, max_tokens=300) for text in PROMPTS[:2]]
            streams = [b.stream(job) for job in jobs]
            for tokens in (2, 4):
                for stream in streams:
                    await stream.has_tokens(tokens)
                os.kill(b.worker_pid, signal.SIGKILL)
            await b.ended(*streams)
            assert [type(stream.error) for stream in streams] == [WorkerLost, WorkerLost]
            await b.until(lambda: b.router.models()[0].state is VersionState.FAILED)
            with pytest.raises(ModelNotReady):
                b.router.admit(b.version, jobs[0])

    asyncio.run(run())


def test_a_request_waits_while_its_worker_is_restarted() -> None:
    async def run() -> None:
        async with running() as b:
            job = await b.job(PROMPTS[0])
            os.kill(b.worker_pid, signal.SIGKILL)
            await b.until(lambda: b.router.models()[0].state is VersionState.RESTARTING)
            stream = b.stream(job)
            await b.ended(stream)
            assert stream.error is None
            assert b.recorder.losses == [("demo@2", "sigkill")]

    asyncio.run(run())


def test_a_text_process_killed_in_use_is_restarted_and_its_call_answered() -> None:
    async def run() -> None:
        async with running() as b:
            text = "again and " * 100
            first = await b.job(text)
            os.kill(b.router.text_process_pid, signal.SIGSTOP)
            call = b.group.create_task(b.job(text))
            await asyncio.sleep(0)  # the call is queued; the stopped process holds it
            os.kill(b.router.text_process_pid, signal.SIGKILL)
            assert (await call).prompt_ids == first.prompt_ids
            assert b.recorder.losses == [("", "sigkill")]

    asyncio.run(run())


def test_a_template_that_never_ends_is_killed_and_nobody_else_notices(tmp_path: Path) -> None:
    template = (
        "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}"
        "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
        "{% if messages[0].content == 'eat' %}{{ 'x' * 10000000000 }}{% endif %}"
        "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
    )
    path = tmp_path / "looping.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.F16, chat_template=template)

    async def run() -> None:
        limits = Limits(text_process_timeout_s=1.0)
        async with running(path=path, limits=limits) as b:
            stream = b.stream(await b.job("hello", ignore_eos=True, max_tokens=400))
            await stream.has_tokens(1)
            loop, other = await asyncio.gather(
                b.router.prepare(b.version, chat("loop")),
                b.router.prepare(b.version, chat("hello")),  # waits for the restarts, no more
                return_exceptions=True,
            )
            assert isinstance(loop, RequestUnsafe)
            assert isinstance(other, wire.Prepared)
            with pytest.raises(InvalidRequest, match="MemoryError"):
                await b.router.prepare(b.version, chat("eat"))
            await b.ended(stream)
            assert stream.error is None
            assert b.recorder.losses == [("", "hung"), ("", "hung")]

    asyncio.run(run())


def test_a_constraint_that_never_compiles_ends_only_its_own_call() -> None:
    endless = Constraint(
        kind=ConstraintKind.JSON_SCHEMA, text='{"type": "integer", "multipleOf": 9999991}'
    )

    async def run() -> None:
        async with running(limits=Limits(constraint_ms=100.0)) as b:
            stream = b.stream(await b.job("hello", ignore_eos=True, max_tokens=200))
            await stream.has_tokens(1)
            with pytest.raises(RequestUnsafe):
                await b.router.prepare(b.version, chat("hello"), constraint=endless)
            await b.router.prepare(b.version, chat("hello"))
            await b.ended(stream)
            assert stream.error is None
            assert b.recorder.losses == [("", "sigprof"), ("", "sigprof")]

    asyncio.run(run())


DRIVER = """
import asyncio, sys
from pathlib import Path
from appliance.runtime import wire
from tests.integration.bench import running
async def main():
    async with running() as b:
        stream = b.stream(await b.job("hello", ignore_eos=True, max_tokens=400))
        await stream.has_tokens(1)
        print(b.worker_pid, b.router.text_process_pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def test_the_processes_of_a_killed_daemon_end_within_a_second() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        pids = [int(word) for word in daemon.stdout.readline().split()]
        assert len(pids) == 2
        handles = [os.pidfd_open(pid) for pid in pids]
        daemon.kill()
        killed_s = time.monotonic()
        for handle in handles:  # readable when the process has ended
            assert select.select([handle], [], [], 5.0)[0]
            os.close(handle)
        assert time.monotonic() - killed_s < 1.0
