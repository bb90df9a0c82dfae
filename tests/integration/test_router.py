"""Admission, ends and bounds of the router, on real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from appliance.clock import monotonic_ms
from appliance.config import Engine, Limits, Model
from appliance.domain import (
    Digest,
    Final,
    FinishReason,
    RequestId,
    TextPrompt,
    TokenPrompt,
    VersionState,
)
from appliance.errors import (
    ApplianceError,
    ClientTooSlow,
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelNotReady,
    ModelNotServed,
    ModelUnloadable,
    QueueFull,
    RequestCancelled,
)
from appliance.runtime.router import Job, Router
from tests.integration.bench import DEMO_MODEL, ENGINE, Bench, Recorder, demo_version, running


async def _idle(b: Bench) -> None:
    """Wait until nothing is held: no ticket here, no sequence and no cell in the worker."""
    assert await b.router.drained(30.0)
    await b.until(
        lambda: (
            b.recorder.gauges is not None
            and b.recorder.gauges.sequences_used == b.recorder.gauges.cells_used == 0
        )
    )


def test_a_stream_ends_in_one_final_with_counts_and_timings() -> None:
    async def run() -> None:
        async with running() as b:
            job = await b.job("hello", max_tokens=3, ignore_eos=True)
            stream = b.stream(job)
            await b.ended(stream)
            assert isinstance(stream.final, Final)
            assert stream.final.finish_reasons == (FinishReason.LENGTH,)
            assert stream.final.usage.prompt_tokens == len(job.prompt_ids)
            assert stream.final.usage.completion_tokens == 3
            timings = stream.final.timings
            assert 0 <= timings.queue_ms <= timings.first_token_ms <= timings.total_ms
            await _idle(b)

    asyncio.run(run())


def test_cancelling_and_leaving_early_free_the_worker() -> None:
    async def run() -> None:
        async with running() as b:
            cancelled = b.stream(await b.job("hello", ignore_eos=True, max_tokens=400))
            await cancelled.has_tokens(1)
            cancelled.ticket.cancel()
            cancelled.ticket.cancel()
            await b.ended(cancelled)
            assert isinstance(cancelled.error, RequestCancelled)
            ticket = b.router.admit(
                b.version, await b.job("hello", ignore_eos=True, max_tokens=400)
            )
            async with contextlib.aclosing(ticket.events()) as events:
                async for _ in events:
                    break
            await _idle(b)

    asyncio.run(run())


def test_the_queue_is_bounded_in_requests_and_in_prompt_tokens() -> None:
    async def run() -> None:
        limits = Limits(queue_requests=2, queue_prompt_tokens=64)
        async with running(limits=limits) as b:
            small = await b.job("hello", max_tokens=1)
            large = await b.job("hello " * 40, max_tokens=1)
            # Nothing awaits between these, so none can have started.
            held = [b.router.admit(b.version, small)]
            with pytest.raises(QueueFull) as tokens:
                b.router.admit(b.version, large)
            held.append(b.router.admit(b.version, small))
            with pytest.raises(QueueFull) as requests:
                b.router.admit(b.version, small)
            assert tokens.value.fields["bound"] == "queue_prompt_tokens"
            assert requests.value.fields["bound"] == "queue_requests"
            assert requests.value.retry_after_s > 0
            for ticket in held:
                ticket.cancel()
            await _idle(b)

    asyncio.run(run())


def test_a_reader_that_does_not_read_loses_only_its_own_stream() -> None:
    async def run() -> None:
        async with running(limits=Limits(stream_events=64)) as b:
            unread = b.router.admit(
                b.version, await b.job("hello", ignore_eos=True, max_tokens=400)
            )
            read = b.stream(await b.job("hello", ignore_eos=True, max_tokens=100))
            await b.ended(read)
            assert read.error is None
            with pytest.raises(ClientTooSlow):
                async for _ in unread.events():
                    pass
            await _idle(b)

    asyncio.run(run())


def test_a_deadline_is_honoured_even_if_the_engine_hangs() -> None:
    async def run() -> None:
        async with running(engine=Engine(context_tokens=512, threads=1, step_ms_max=100.0)) as b:
            job = await b.job(
                "hello", deadline_ms=monotonic_ms() + 1500, ignore_eos=True, max_tokens=400
            )
            stream = b.stream(job)
            await stream.has_tokens(1)
            pid = b.worker_pid
            os.kill(pid, signal.SIGSTOP)
            await b.ended(stream)
            os.kill(pid, signal.SIGCONT)
            assert isinstance(stream.error, DeadlineExceeded)
            assert stream.error.phase == "generation"
            await _idle(b)

    asyncio.run(run())


def test_draining_refuses_the_new_and_lets_the_old_end() -> None:
    async def run() -> None:
        async with running() as b:
            job = await b.job("hello", max_tokens=20, ignore_eos=True)
            stream = b.stream(job)
            b.router.drain()
            with pytest.raises(Draining):
                b.router.admit(b.version, job)
            assert not await b.router.drained(0.0)
            assert await b.router.drained(60.0)
            await b.ended(stream)
            assert stream.error is None

    asyncio.run(run())


def test_closing_ends_every_stream_once_and_every_process() -> None:
    async def run() -> None:
        async with running() as b:
            stream = b.stream(await b.job("hello", ignore_eos=True, max_tokens=400))
            await stream.has_tokens(1)
            handles = [os.pidfd_open(b.worker_pid), os.pidfd_open(b.router.text_process_pid)]
            await b.router.close()
            await b.ended(stream)
            assert isinstance(stream.error, ApplianceError)
            for handle in handles:
                with pytest.raises(ProcessLookupError):
                    signal.pidfd_send_signal(handle, 0)
                os.close(handle)

    asyncio.run(run())


def test_bad_prompts_are_refused_with_the_field_and_the_limit() -> None:
    async def run() -> None:
        async with running(limits=Limits(prompt_bytes=1024)) as b:
            refused = (
                TextPrompt(text=""),
                TextPrompt(text="\ud800"),
                TextPrompt(text="x" * 1025),
                TokenPrompt(token_ids=()),
                TokenPrompt(token_ids=(-1,)),
                TokenPrompt(token_ids=(2**40,)),
            )
            for prompt in refused:
                with pytest.raises(InvalidRequest) as error:
                    await b.router.prepare(b.version, prompt)
                assert error.value.field == "prompt"
            job = await b.job("hello")
            with pytest.raises(ContextTooLong):
                b.router.admit(b.version, _with_prompt(job, job.prompt_ids * 100))
            with pytest.raises(InvalidRequest):
                b.router.admit(b.version, _with_prompt(job, ()))
            with pytest.raises(ModelNotServed):
                b.router.find("another")
            assert b.router.find("demo@2") == b.router.find("demo") == b.version

    asyncio.run(run())


def _with_prompt(job: Job, prompt_ids: tuple[int, ...]) -> Job:
    return Job(request_id=job.request_id, prompt_ids=prompt_ids, seed=0)


def test_a_file_that_is_no_model_is_refused_by_name_and_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 4096)
    missing = tmp_path / "missing.gguf"

    async def run() -> None:
        router = Router(Engine(), Limits(), Recorder())
        async with asyncio.TaskGroup() as group:
            group.create_task(router.run())
            try:
                for path in (missing, broken):
                    with pytest.raises(ModelUnloadable) as error:
                        await router.serve(demo_version(), path, Model(path=str(path)))
                    assert error.value.path == str(path)
                    assert error.value.reason
                assert router.models() == ()
            finally:
                await router.close()

    asyncio.run(run())


def test_the_digest_names_the_version() -> None:
    async def run() -> None:
        async with running() as b:
            other = demo_version(digest=Digest("sha256:" + "1" * 64))
            with pytest.raises(ModelNotServed):
                await b.router.prepare(other, TextPrompt(text="hello"))

    asyncio.run(run())


class _Asking(Recorder):
    """Ask for the version's state in the moment when its worker has become ready."""

    router: Router
    seen: tuple[VersionState, str] | None = None

    def event(self, name: str, **fields: str | float | bool | None) -> None:
        super().event(name, **fields)
        if name == "version_state" and fields["state"] == "ready":
            with pytest.raises(ModelNotReady) as caught:
                self.router.admit(demo_version(), _job())
            self.seen = self.router.models()[0].state, str(caught.value.fields["state"])


def _job() -> Job:
    return Job(request_id=RequestId("r"), prompt_ids=(1,), seed=0)


def test_a_version_is_loading_until_prompts_can_be_prepared_for_it_too() -> None:
    async def run() -> None:
        observer, version = _Asking(), demo_version()
        router = observer.router = Router(ENGINE, Limits(), observer)
        async with asyncio.TaskGroup() as group:
            group.create_task(router.run())
            await router.serve(version, DEMO_MODEL, Model(path=str(DEMO_MODEL)))
            assert observer.seen == (VersionState.LOADING, "loading")
            assert router.models()[0].state is VersionState.READY
            with pytest.raises(ContextTooLong):
                await router.prepare(version, TextPrompt(text="x" * 100_000))
            await router.close()
            with pytest.raises(Draining):
                await router.prepare(version, TextPrompt(text="hello"))

    asyncio.run(run())
