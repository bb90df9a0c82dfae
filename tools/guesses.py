"""Compare answers with and without guesses on given models, as a worker generates them.

What this room does: two engines of one model, one that guesses and one that does not; the same
requests to both in turn, several rounds; a table of ratios.
What it knows: the figures of docs/adr/0016-speculation.md come from here.
What it never does: start a daemon, or judge an answer.

The texts: `copy`, an answer that repeats 80 tokens which stand in the prompt, again and again, made
so by a constraint; `greedy`, whatever the model comes to without chance (one with random weights
soon repeats itself); `sampled`, drawn at temperature 1; `random`, draws so hot that hardly anything
repeats.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from appliance.clock import monotonic_ms
from appliance.config import Scheduling
from appliance.domain import Constraint, ConstraintKind, SamplingOptions, StopOptions
from appliance.runtime import wire
from appliance.runtime.draft import DraftLimits
from appliance.runtime.engine import GeneratingEngine
from appliance.runtime.loading import load
from appliance.runtime.text_worker import Vocabulary

_TEXTS = ("copy", "greedy", "sampled", "random")
_TEMPERATURES = {"sampled": 1.0, "random": 5.0}
_SENTENCE_WORDS = 40
_BYTES_MAX = 1024 * 1024
_CONSTRAINT_MS = 10_000.0
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "larch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one set of requests took."""

    ms: float
    tokens: int
    drafted: int
    accepted: int
    by_model: int


def _engine(
    path: Path, threads: int, limits: DraftLimits | None, draft: Path | None = None
) -> GeneratingEngine:
    options = wire.EngineOptions(
        path=str(path),
        context_tokens=1024,
        cells_total=16_384,
        sequences_max=64,
        batch_tokens=512,
        threads_decode=threads,
        threads_prefill=threads,
        gpu_layers=0,
        step_ms_while_streaming=300.0,
        step_ms_max=1000.0,
        queue_requests_max=64,
        output_reserve_tokens=128,
        ack_window_steps=16,
        speculation=limits,
        draft_path=str(draft or ""),
    )
    engine = load(options, monotonic_ms, lambda _ratio: None).engine
    assert isinstance(engine, GeneratingEngine)
    return engine


def _limits() -> DraftLimits:
    default = Scheduling()
    return DraftLimits(
        tokens_max=default.draft_tokens_max,
        streams_max=default.draft_streams_max,
        lookback_tokens=default.draft_lookback_tokens,
        ngram_min=default.draft_ngram_min,
        ngram_max=default.draft_ngram_max,
        stretch_max=default.draft_stretch_max,
    )


def _submission(
    vocabulary: Vocabulary, text: str, ticket: int, seed: int, tokens: int
) -> wire.Submit:
    rng = random.Random(f"{text} {seed}")
    sentence = " ".join(rng.choice(_WORDS) for _ in range(_SENTENCE_WORDS)) + ". "
    prompt = vocabulary.tokenize("Repeat this: " + sentence, add_special=True, parse_special=False)
    constraint = None
    if text == "copy":
        constraint = Constraint(kind=ConstraintKind.REGEX, text=f"({re.escape(sentence)})+")
    return wire.Submit(
        ticket=ticket,
        prompt_ids=tuple(prompt),
        n=1,
        seed=seed,
        sampling=SamplingOptions(temperature=_TEMPERATURES.get(text, 0.0)),
        stop=StopOptions(max_tokens=tokens, ignore_eos=True),
        constraint=constraint,
    )


def _run(engine: GeneratingEngine, submissions: Sequence[wire.Submit]) -> Run:
    for submission in submissions:
        engine.submit(submission)
    tokens = 0
    before = after = _step(engine).gauges
    began_ms = monotonic_ms()
    while engine.has_work:
        frame = _step(engine)
        after = frame.gauges
        tokens += sum(len(news.token_ids) for news in frame.news)
        if after.prefill_tokens:  # the time of the answers alone
            before, began_ms, tokens = after, monotonic_ms(), 0
    return Run(
        ms=monotonic_ms() - began_ms,
        tokens=tokens,
        drafted=after.drafted_total - before.drafted_total,
        accepted=after.draft_accepted_total - before.draft_accepted_total,
        by_model=after.model_drafted_total - before.model_drafted_total,
    )


def _step(engine: GeneratingEngine) -> wire.Step:
    (frame,) = engine.step()
    assert isinstance(frame, wire.Step)
    assert not frame.failures, frame.failures
    return frame


@click.command()
@click.option("--streams", multiple=True, type=click.IntRange(1, 64), default=(1, 8, 16))
@click.option("--text", "texts", multiple=True, type=click.Choice(_TEXTS), default=_TEXTS)
@click.option("--tokens", type=click.IntRange(8, 900), default=240, show_default=True)
@click.option("--draft", type=click.Path(exists=True, path_type=Path), help="A draft model.")
@click.option("--threads", type=click.IntRange(1, 256), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 50), default=7, show_default=True)
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(
    *,
    streams: tuple[int, ...],
    texts: tuple[str, ...],
    tokens: int,
    draft: Path | None,
    threads: int,
    rounds: int,
    models: tuple[Path, ...],
) -> None:
    """Print tokens per second with guesses, as a multiple of those without: median, range."""
    click.echo(
        "model                text   streams  with / without      right of guessed"
        "  of a model  tokens/s"
    )
    for path in models:
        vocabulary = Vocabulary(path, _BYTES_MAX, _CONSTRAINT_MS)
        engines = (_engine(path, threads, None), _engine(path, threads, _limits(), draft))
        for text in texts:
            for count in streams:
                ratios, runs = [], []
                for number in range(rounds):
                    asked = [
                        _submission(vocabulary, text, ticket, 1000 * number + ticket, tokens)
                        for ticket in range(count)
                    ]
                    order = engines if number % 2 else engines[::-1]
                    done = {id(engine): _run(engine, asked) for engine in order}
                    plain, guessing = (done[id(engine)] for engine in engines)
                    ratios.append((guessing.tokens / guessing.ms) / (plain.tokens / plain.ms))
                    runs.append(guessing)
                click.echo(
                    f"{path.stem:20} {text:8} {count:6}  {median(ratios):5.2f} "
                    f"({min(ratios):.2f}-{max(ratios):.2f})  "
                    f"{sum(run.accepted for run in runs):6} of {sum(run.drafted for run in runs):6}"
                    f"  {sum(run.by_model for run in runs):10}"
                    f"  {1000 * median(run.tokens / run.ms for run in runs):8.0f}"
                )


if __name__ == "__main__":
    main()
