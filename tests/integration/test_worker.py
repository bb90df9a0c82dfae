"""A real worker process with a real model keeps what the wire promises."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.domain import (
    Constraint,
    ConstraintKind,
    FinishReason,
    SamplingOptions,
    StopOptions,
    TextPrompt,
)
from appliance.runtime import wire
from tests.integration.worker_process import (
    DEMO,
    GREEDY,
    Answer,
    TextProcess,
    Worker,
    start,
    tiny,
)
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

__all__ = ["start", "tiny"]  # fixtures

# Kernels differ by the number of rows they are given, so the same sequence gets logits that differ
# by rounding. On the demo model that moves a log-probability by this much at most.
LOGPROB_TOLERANCE = 0.1
QUESTIONS = (
    "Hello",
    "What is 12 + 30?",
    "Sentiment of this review: The phone is great and I love it.",
    "How many metres are 3 kilometres?",
    "你好",
    "12 加 30 等于多少?",
    "Extract the entities as JSON: Anna works at Acme in Paris.",
)
DRAWN = SamplingOptions(temperature=0.9, top_k=40, top_p=0.95, repeat_penalty=1.1)
LONG = StopOptions(max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def prompts() -> Iterator[list[tuple[int, ...]]]:
    text = TextProcess(DEMO)
    yield [text.chat(question) for question in QUESTIONS]
    text.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    running = Worker(DEMO)
    assert isinstance(running.ready(), wire.Ready)
    yield running
    code, stderr = running.close()
    assert (code, stderr) == (0, b"")


# --- what is generated ----------------------------------------------------------------------------


def test_a_greedy_batch_equals_each_of_its_members_alone(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    alone = [worker.run(prompt, top_logprobs=2).only for prompt in prompts]
    tickets = [worker.submit(prompt, top_logprobs=2) for prompt in prompts]
    together = worker.collect(*tickets)
    for answer, ticket in zip(alone, tickets, strict=True):
        assert_same(together[ticket].only, answer)


def assert_same(answer: Answer, expected: Answer) -> None:
    """Hold two greedy texts equal, up to a point where the two best tokens are nearly tied."""
    pairs = zip(answer.logprobs, expected.logprobs, strict=False)
    for index, (left, right) in enumerate(pairs):
        if left.token_id != right.token_id:
            gap = right.top[0][2] - right.top[1][2]
            assert gap < LOGPROB_TOLERANCE, f"token {index} differs and is no tie"
            return
        assert left.logprob == pytest.approx(right.logprob, abs=LOGPROB_TOLERANCE)
    assert answer.token_ids == expected.token_ids
    assert answer.text == expected.text
    assert answer.finish is expected.finish


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("constrained", [False, True], ids=["free", "constrained"])
def test_a_replay_goes_on_as_if_nothing_had_happened(
    worker: Worker, prompts: list[tuple[int, ...]], sampling: SamplingOptions, *, constrained: bool
) -> None:
    constraint = Constraint(kind=ConstraintKind.JSON_OBJECT) if constrained else None
    fields = {"sampling": sampling, "seed": 11, "constraint": constraint, "n": 2}
    prompt = prompts[2]
    whole = worker.run(prompt, **fields)
    for cut in (0, 1, 5):
        accepted = tuple(tuple(whole.choices[index].token_ids[:cut]) for index in range(2))
        rest = worker.run(prompt, **fields, accepted_ids=accepted)
        for index in range(2):
            uninterrupted = whole.choices[index]
            replayed = rest.choices[index]
            assert [*accepted[index], *replayed.token_ids] == uninterrupted.token_ids
            assert uninterrupted.text.endswith(replayed.text)
            assert replayed.finish is uninterrupted.finish


def test_a_choice_that_had_ended_is_not_replayed(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    whole = worker.run(prompts[0], sampling=DRAWN, n=3)
    rest = worker.run(prompts[0], sampling=DRAWN, n=3, ended=(0, 2))
    assert set(rest.choices) == {1}
    assert rest.choices[1].token_ids == whole.choices[1].token_ids


def test_choices_share_one_prompt_and_draw_on_their_own(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    outcome = worker.run(prompts[1], sampling=SamplingOptions(), n=4, stop=LONG)
    texts = {answer.text for answer in outcome.choices.values()}
    assert len(outcome.choices) == 4
    assert len(texts) > 1
    assert outcome.prefills[-1] == (len(prompts[1]), len(prompts[1]))
    again = worker.run(prompts[1], sampling=SamplingOptions(), n=4, stop=LONG)
    assert [a.token_ids for a in again.choices.values()] == [
        a.token_ids for a in outcome.choices.values()
    ]


def test_a_seed_decides_the_draws_and_0_is_a_seed(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    def drawn(seed: int) -> list[int]:
        sampling = SamplingOptions(temperature=1.5)
        return worker.run(prompts[0], sampling=sampling, seed=seed, stop=LONG).only.token_ids

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(4)}) == 4


def test_log_probabilities_are_of_the_raw_distribution(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    sampling = SamplingOptions(temperature=0.0, logit_bias={40: 100.0})
    answer = worker.run(
        prompts[0], sampling=sampling, top_logprobs=20, stop=StopOptions(max_tokens=3)
    ).only
    assert answer.token_ids == [40, 40, 40]
    for entry in answer.logprobs:
        assert entry.token_id == 40
        assert entry.logprob is not None
        assert len(entry.top) == 20
        values = [logprob for _, _, logprob in entry.top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0 + 1e-6
        assert entry.logprob <= values[0]
    plain = worker.run(prompts[0], top_logprobs=1, stop=StopOptions(max_tokens=1)).only
    assert answer.logprobs[0].top[0][2] == pytest.approx(plain.logprobs[0].logprob or 0, abs=1e-4)


def test_text_ends_before_a_stop_string_that_lies_across_tokens(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    whole = worker.run(prompts[0], stop=LONG).only
    stop = whole.text[3:9]
    assert len(stop) == 6
    cut = worker.run(
        prompts[0], stop=StopOptions(max_tokens=40, ignore_eos=True, strings=(stop,))
    ).only
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish is FinishReason.STOP
    assert len(cut.token_ids) < len(whole.token_ids)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    whole = worker.run(prompts[0], stop=LONG).only
    token_id = whole.token_ids[4]
    cut = worker.run(
        prompts[0], stop=StopOptions(max_tokens=40, ignore_eos=True, token_ids=(token_id,))
    ).only
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(token_id)]
    assert cut.finish is FinishReason.STOP


def test_no_tokens_are_drawn_for_max_tokens_0(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    answer = worker.run(prompts[0], stop=StopOptions(max_tokens=0)).only
    assert answer == Answer(finish=FinishReason.LENGTH)


def test_without_a_limit_generation_ends_when_the_context_is_full(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    answer = worker.run(prompts[0], stop=StopOptions(ignore_eos=True)).only
    assert answer.finish is FinishReason.LENGTH
    assert len(prompts[0]) + len(answer.token_ids) == 512


def test_penalties_change_what_repeats(worker: Worker, prompts: list[tuple[int, ...]]) -> None:
    bias = {40: 30.0}
    stop = StopOptions(max_tokens=30, ignore_eos=True)
    plain = worker.run(
        prompts[0], sampling=SamplingOptions(temperature=0.0, logit_bias=bias), stop=stop
    ).only
    for options in (
        SamplingOptions(temperature=0.0, logit_bias=bias, repeat_penalty=9.0),
        SamplingOptions(temperature=0.0, logit_bias=bias, frequency_penalty=2.0),
    ):
        penalised = worker.run(prompts[0], sampling=options, stop=stop).only
        assert penalised.token_ids.count(40) < plain.token_ids.count(40)


@pytest.mark.parametrize(
    ("kind", "text", "allowed"),
    [
        (ConstraintKind.CHOICES, '["red", "green", "blue"]', ("red", "green", "blue")),
        (ConstraintKind.REGEX, "[0-9]{3}", None),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_output_stays_in_its_language(
    worker: Worker,
    prompts: list[tuple[int, ...]],
    kind: ConstraintKind,
    text: str,
    allowed: tuple[str, ...] | None,
    temperature: float,
) -> None:
    for seed in range(3):
        answer = worker.run(
            prompts[2],
            sampling=SamplingOptions(temperature=temperature),
            seed=seed,
            constraint=Constraint(kind=kind, text=text),
        ).only
        assert answer.finish is FinishReason.STOP
        if allowed is None:
            assert len(answer.text) == 3
            assert answer.text.isdigit()
        else:
            assert answer.text in allowed


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"prompt_ids": ()}, "INVALID_REQUEST", "prompt"),
        ({"prompt_ids": (-1,)}, "INVALID_REQUEST", "prompt"),
        ({"prompt_ids": (2**40,)}, "INVALID_REQUEST", "prompt"),
        ({"n": 0}, "INVALID_REQUEST", "n"),
        ({"n": 17}, "INVALID_REQUEST", "n"),
        ({"n": 2, "ended": (0, 1)}, "INVALID_REQUEST", "n"),
        ({"seed": -1}, "INVALID_REQUEST", "seed"),
        ({"top_logprobs": 21}, "INVALID_REQUEST", "top_logprobs"),
        ({"stop": StopOptions(token_ids=(10**6,))}, "INVALID_REQUEST", "stop_token_ids"),
        (
            {"sampling": SamplingOptions(logit_bias={10**6: 1.0})},
            "INVALID_REQUEST",
            "logit_bias",
        ),
        ({"accepted_ids": ((10**6,),)}, "INVALID_REQUEST", "accepted"),
        (
            {"constraint": Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"not": {}}')},
            "SCHEMA_UNSUPPORTED",
            "json_schema",
        ),
        ({"prompt_ids": (5,) * 512}, "CONTEXT_TOO_LONG", None),
        ({"deadline_ms": 1.0}, "DEADLINE_EXCEEDED", None),
    ],
)
def test_a_bad_request_fails_alone_and_the_worker_lives(
    worker: Worker, fields: dict[str, object], code: str, field: str | None
) -> None:
    values = {"prompt_ids": (5, 6, 7), **fields}
    failure = worker.run(**values).failure  # type: ignore[arg-type]
    assert failure is not None
    assert failure.code == code
    assert failure.fields.get("field") == field
    assert worker.run((5, 6, 7)).failure is None


def test_a_queue_that_is_full_refuses_at_once(tiny: Path, start: Callable[..., Worker]) -> None:
    worker = start(tiny, sequences_max=2, queue_requests_max=3)
    worker.ready()
    worker.acknowledges = False  # nothing is planned until all ten are in
    tickets = [worker.submit((5, 6), stop=LONG) for _ in range(30)]
    worker.acknowledges = True
    outcomes = worker.collect(*tickets)
    refused = [outcome.failure for outcome in outcomes.values() if outcome.failure]
    assert refused
    assert {failure.code for failure in refused} == {"QUEUE_FULL"}
    assert all(0 < float(failure.fields["retry_after_s"] or 0) <= 60 for failure in refused)
    assert worker.close()[0] == 0


# --- pressure, cancels, ends ----------------------------------------------------------------------


def test_under_pressure_every_request_ends_with_the_text_it_has_alone(
    tmp_path: Path, start: Callable[..., Worker]
) -> None:
    path = tmp_path / "exact.gguf"  # F16: without the rounding that Q8_0 adds to activations
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.F16)
    prompts = [tuple(range(3 + size, 3 + 2 * size)) for size in (5, 9, 20, 33, 40, 60, 80, 100)]
    roomy = start(path)
    roomy.ready()
    alone = [roomy.run(prompt, top_logprobs=2, stop=LONG).only for prompt in prompts]
    tight = start(path, cells_total=256, context_tokens=256, output_reserve_tokens=1)
    tight.ready()
    tickets = [tight.submit(prompt, top_logprobs=2, stop=LONG) for prompt in prompts]
    outcomes = tight.collect(*tickets)
    for ticket, answer in zip(tickets, alone, strict=True):
        assert_same(outcomes[ticket].only, answer)
    last = tight.steps[-1].gauges
    assert last.preemptions_total > 0
    assert (last.cells_used, last.sequences_used, last.running, last.waiting) == (0, 0, 0, 0)


def test_a_cancel_frees_everything_within_a_step(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    kept = worker.submit(prompts[1])
    dropped = worker.submit(prompts[0], n=4, stop=StopOptions(ignore_eos=True))
    while not any(news.ticket == dropped for news in worker.step().news):
        pass
    worker.send(wire.Cancel(ticket=dropped))
    assert worker.idle().gauges.cells_used == 0
    after = worker.run(prompts[1]).only
    assert after.finish is not None
    assert kept != dropped


def test_a_deadline_that_passes_while_generating_is_named_so(
    worker: Worker, prompts: list[tuple[int, ...]]
) -> None:
    ticket = worker.submit(
        prompts[0],
        stop=StopOptions(ignore_eos=True),
        n=16,
        deadline_ms=time.monotonic_ns() / 1e6 + 250,
    )
    outcome = worker.collect(ticket)[ticket]
    assert outcome.failure is not None
    assert outcome.failure.code == "DEADLINE_EXCEEDED"
    assert outcome.failure.fields == {"phase": "generation"}
    assert worker.idle().gauges.cells_used == 0


def test_a_generating_worker_makes_no_embeddings(worker: Worker) -> None:
    ticket = worker.embed([(5, 6)])
    while True:
        failures = [failure for failure in worker.step().failures if failure.ticket == ticket]
        if failures:
            break
    assert failures[0].code == "INVALID_REQUEST"


def test_a_prompt_as_text_is_answered_too(worker: Worker) -> None:
    text = TextProcess(DEMO)
    prepared = text.prepare(TextPrompt(text="Hello"))
    assert worker.run(prepared.token_ids).only.finish is not None
    text.close()


def test_the_text_process_never_pushes_a_worker_off_its_core() -> None:
    text = TextProcess(DEMO)
    assert os.sched_getscheduler(text.process.pid) == os.SCHED_BATCH
    text.close()


def test_a_worker_tells_how_many_threads_it_uses(worker: Worker) -> None:
    worker.run((5, 6, 7))
    gauges = worker.idle().gauges
    assert (gauges.threads_decode, gauges.threads_prefill) == (1, 1)
    assert gauges.threads_change == ""
