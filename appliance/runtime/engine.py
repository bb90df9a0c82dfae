"""Run steps: plan, decode, draw, and tell what came of it, on the thread that owns the context.

What this room does: checks what the daemon submits, drives scheduler, context and generations
through one step at a time, and answers with frames.
What it knows: each return code of llama_decode, and what is left standing after it.
What it never does: wait, read a socket, or start a thread: `worker` calls it.

llama_decode's codes, and what follows:
 1. OK: fold in, draw, tell.
 2. NO_ROOM, nothing has changed: the scheduler makes room and the next step is planned anew.
 3. ABORTED: what was evaluated is unknown, so every job is evaluated again. Thrice in a row: fatal.
 4. INVALID, nothing has changed: a contradiction of ours in one job; each job's rows are tried
    alone, and only the job whose rows fail fails.
 5. FATAL: `EngineLost`; the process ends and is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from appliance.errors import ApplianceError, DecodeFailed, InvalidRequest
from appliance.runtime import wire
from appliance.runtime.cost import StepShape
from appliance.runtime.draft_model import DraftModel, Told
from appliance.runtime.generation import Drawn, Generation
from appliance.runtime.jobs import Choice, Job, Plan, Span
from appliance.runtime.llama import Context, DecodeCode, EngineLost
from appliance.runtime.loaded_adapters import LoadedAdapters
from appliance.runtime.moves import Mover
from appliance.runtime.pool import Pool
from appliance.runtime.scheduler import Scheduler
from appliance.runtime.submission import Submission

_ABORTS_MAX = 3


class Engine(Protocol):
    """What a worker drives: a generating or an embedding engine."""

    @property
    def has_work(self) -> bool:
        """Say whether a step would do anything."""
        ...

    @property
    def step_ms_worst(self) -> float:
        """Predict the longest step that may be planned now."""
        ...

    def submit(self, frame: wire.Submit | wire.SubmitEmbed) -> None:
        """Take a request in; a refusal comes with the next step."""
        ...

    def cancel(self, ticket: int) -> None:
        """Forget a ticket, before the next step."""
        ...

    def load_adapter(self, frame: wire.LoadAdapter) -> wire.AdapterLoaded | wire.AdapterFailed:
        """Load a LoRA adapter, between two steps, or say why not."""
        ...

    def unload_adapter(self, key: str) -> None:
        """Free an adapter that no ticket names any more."""
        ...

    def step(self) -> tuple[wire.Frame, ...]:
        """Run one step, or none if idle; the last frame is its Step."""
        ...


class GeneratingEngine:
    """The engine of a model that generates text. Used by one thread; blocks in `step` only."""

    def __init__(
        self,
        *,
        context: Context,
        scheduler: Scheduler,
        submission: Submission,
        adapters: LoadedAdapters,
        clock: Callable[[], float],
        stall_factor: float,
        pool: Pool,
        draft_model: DraftModel | None = None,
    ) -> None:
        """Own the contexts from now on. `clock` reads monotonic milliseconds."""
        self._draft_model = draft_model
        self._pool = pool
        self._context = context
        self._scheduler = scheduler
        self._submission = submission
        self._adapters = adapters
        self._mover = Mover(context)
        self._clock = clock
        self._stall_factor = stall_factor
        self._generations: dict[int, list[Generation]] = {}
        self._news: list[wire.News] = []
        self._prefills: list[wire.PrefillNews] = []
        self._failures: list[wire.Failure] = []
        self._step = 0
        self._aborts = 0
        self._was_idle = True

    # --- what comes in ---------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Say whether a step would do anything."""
        return self._scheduler.has_work or bool(self._failures)

    @property
    def step_ms_worst(self) -> float:
        """Predict the longest step that may be planned now."""
        limits = self._scheduler.limits
        full = StepShape(decode=limits.sequences_max, prefill=8, kv_span=limits.cells_total)
        return max(limits.step_ms_max, self._scheduler.cost.predict_ms(full))

    def submit(self, frame: wire.Submit | wire.SubmitEmbed) -> None:
        """Check and queue a request; a refusal comes as a Failure with the next step."""
        if isinstance(frame, wire.SubmitEmbed):
            error = InvalidRequest(field="model", reason="generates text and makes no embeddings")
            self._fail(frame.ticket, error)
            return
        assert frame.ticket not in self._generations, f"ticket {frame.ticket} was used twice"
        try:
            self._adapters.check(frame.adapter)
            self._generations[frame.ticket] = self._submission.open(frame)
        except ApplianceError as error:
            self._fail(frame.ticket, error)
            return
        refusal = self._scheduler.submit(self._submission.job(frame), self._clock())
        if refusal is not None:
            self._fail(frame.ticket, refusal)

    def cancel(self, ticket: int) -> None:
        """Forget a ticket, before the next step; one that has ended already is not an error."""
        self._scheduler.remove(ticket)
        self._close(ticket)

    def load_adapter(self, frame: wire.LoadAdapter) -> wire.AdapterLoaded | wire.AdapterFailed:
        """Load a LoRA adapter, or say why not; blocks for its bytes."""
        return self._adapters.load(frame)

    def unload_adapter(self, key: str) -> None:
        """Free an adapter that no ticket names any more."""
        self._adapters.unload(key)

    # --- a step ----------------------------------------------------------------------------------

    def step(self) -> tuple[wire.Frame, ...]:
        """Run one step; blocks for as long as the engine evaluates it.

        Raises:
            EngineLost: llama_decode failed in a way that leaves the context undefined.
        """
        began_ms = self._clock()
        plan = self._scheduler.plan(began_ms)
        lost = self._mover.make(plan.moves)
        if lost:
            self._scheduler.restart(lost)
        for choice in plan.exhausted:
            self._tell(choice, [self._of(choice).cut_off()])
            self._forget_if_over(choice.job)
        for job, error in plan.failed:
            self._fail(job.ticket, error)
        told = Told(plan=plan)
        if self._draft_model is not None and not lost:
            told = self._draft_model.tell(plan, self._pool.counts.decode)
            plan = told.plan
        self._pool.prepare(plan.shape)
        if plan.spans and not lost and self._evaluate(plan) is DecodeCode.OK:
            now_ms = self._clock()
            step_ms = now_ms - began_ms - told.reading_ms
            self._pool.observe(plan.shape, step_ms - told.draft_ms, now_ms)
            self._scheduler.observe(plan, step_ms, told.reading_ms)
        if not self._scheduler.has_work and not self._was_idle:
            self._check_idle()
        self._was_idle = not self._scheduler.has_work
        return (self._report(plan, self._clock() - began_ms),)

    def _evaluate(self, plan: Plan) -> DecodeCode:
        self._adapters.use(plan.adapter)
        code = self._decode(plan.spans, plan.singles)
        self._aborts = self._aborts + 1 if code is DecodeCode.ABORTED else 0
        if code is DecodeCode.FATAL or self._aborts >= _ABORTS_MAX:
            raise EngineLost(f"llama_decode: {code.name}")
        if code is DecodeCode.OK:
            self._apply(plan.spans)
        elif code is DecodeCode.NO_ROOM:
            self._scheduler.no_room(plan)
        elif code is DecodeCode.ABORTED:
            self._scheduler.preempt_all()
        else:
            self._isolate(plan)
        return code

    def _decode(self, spans: Sequence[Span], singles: int) -> DecodeCode:
        """Fill the batch, `singles` spans of one token with outputs first, and evaluate it."""
        context = self._context
        at = 0
        if singles:
            head = spans[:singles]
            at = context.put_singles(
                [one for span in head for one in (span.choice.token_at(span.start), *span.draft)],
                [span.seq_id for span in head for _ in range(span.rows)],
                [span.start + row for span in head for row in range(span.rows)],
            )
        for span in spans[singles:]:
            token_ids = span.choice.tokens(span.start, span.count)
            at = context.put(at, token_ids, span.seq_id, span.start)
            if span.row >= 0:
                context.want_row(at - 1)
        return context.decode(at)

    def _apply(self, spans: Sequence[Span]) -> None:
        advance = self._scheduler.advance(spans)
        for source, target in advance.forks:
            self._context.copy(source, target)
        for job, done in advance.prefills:
            self._prefills.append(
                wire.PrefillNews(
                    ticket=job.ticket, done=done, total=len(job.prompt), cached=job.cached
                )
            )
        if not advance.draws:
            return
        logits = self._context.logits(1 + max(span.row_last for _, span in advance.draws))
        best = logits.argmax(axis=1)
        finite = np.isfinite(logits[np.arange(len(best)), best])
        best_ids = np.where(finite, best, -1).tolist()
        for choice, span in advance.draws:
            if choice.job.ticket in self._generations:  # else a sibling's draw has failed the job
                self._draw(choice, span, logits, best_ids)

    def _draw(self, choice: Choice, span: Span, logits: np.ndarray, best_ids: list[int]) -> None:
        """Draw a token, and one more for each guess that is what was drawn.

        best_ids: the largest index of each row, -1 where it is not finite.
        """
        drawn: list[Drawn] = []
        try:
            for row, guess in enumerate((*span.draft, None), start=span.row):
                drawn.append(self._draw_one(choice, logits[row], best_ids[row]))
                if drawn[-1].token_id != guess or drawn[-1].finish is not None:
                    break
        except DecodeFailed as error:
            if drawn:
                self._tell(choice, drawn)
            self._scheduler.remove(choice.job.ticket)
            self._fail(choice.job.ticket, error)
            return
        if span.draft:
            self._settle(span, kept=len(drawn) - 1)
        self._tell(choice, drawn)
        if drawn[-1].finish is not None:
            self._scheduler.finish(choice, self._clock())
            self._forget_if_over(choice.job)

    def _draw_one(self, choice: Choice, row: np.ndarray, best: int) -> Drawn:
        if best < 0:
            raise DecodeFailed(reason="the model produced logits that are not numbers")
        is_last = choice.length + 1 >= self._scheduler.limits.context_tokens
        drawn = self._of(choice).draw(row, choice.length, best, is_last=is_last)
        if drawn.token_id is not None:
            self._scheduler.accept(choice, drawn.token_id)
        return drawn

    def _settle(self, span: Span, *, kept: int) -> None:
        """Take back the guesses that did not come true, before anything else is done."""
        self._scheduler.settle(span, kept=kept)
        if kept < len(span.draft):
            is_cut = self._context.cut(span.seq_id, span.choice.evaluated)
            assert is_cut, f"sequence {span.seq_id} could not be cut"

    def _isolate(self, plan: Plan) -> None:
        """Evaluate each span alone, so that the one that is refused fails only its own job."""
        for span in plan.spans:
            job = span.choice.job
            if self._scheduler.job(job.ticket) is not job:
                continue
            alone = Span(span.choice, span.seq_id, span.start, span.count, min(span.row, 0))
            code = self._decode((alone,), 1 if span.count == 1 and span.row >= 0 else 0)
            if code is DecodeCode.OK:
                self._apply((alone,))
            elif code is DecodeCode.INVALID:
                self._abandon(job, "the engine refused its tokens")
            elif code is not DecodeCode.NO_ROOM:
                raise EngineLost(f"llama_decode: {code.name}")

    # --- what goes out ---------------------------------------------------------------------------

    def _of(self, choice: Choice) -> Generation:
        return self._generations[choice.job.ticket][choice.index]

    def _tell(self, choice: Choice, drawn: Sequence[Drawn]) -> None:
        # Lists, not generators: this is done for each stream of each step.
        self._news.append(
            wire.News(
                ticket=choice.job.ticket,
                choice=choice.index,
                token_ids=tuple([one.token_id for one in drawn if one.token_id is not None]),
                text="".join([one.text for one in drawn]),
                logprobs=tuple([one.logprob for one in drawn if one.logprob is not None]),
                finish=drawn[-1].finish,
            )
        )

    def _abandon(self, job: Job, reason: str) -> None:
        self._scheduler.remove(job.ticket)
        self._fail(job.ticket, DecodeFailed(reason=reason))

    def _fail(self, ticket: int, error: ApplianceError) -> None:
        self._close(ticket)
        self._failures.append(wire.Failure(ticket=ticket, code=error.code, fields=error.fields))

    def _forget_if_over(self, job: Job) -> None:
        if not job.live:
            self._close(job.ticket)

    def _close(self, ticket: int) -> None:
        for generation in self._generations.pop(ticket, ()):
            generation.close()
        if self._draft_model is not None:
            self._draft_model.forget(ticket)

    def _report(self, plan: Plan, step_ms: float) -> wire.Step:
        self._step += 1
        step = wire.Step(
            step=self._step,
            gauges=self._gauges(plan, step_ms),
            started=tuple(job.ticket for job in plan.started),
            news=tuple(self._news),
            prefills=tuple(self._prefills),
            failures=tuple(self._failures),
        )
        self._news.clear()
        self._prefills.clear()
        self._failures.clear()
        return step

    def _gauges(self, plan: Plan, step_ms: float) -> wire.EngineGauges:
        scheduler, cache = self._scheduler, self._scheduler.cache
        parked, guesses = cache.cells_parked, scheduler.speculation
        foresight = None if guesses is None else guesses.foresight
        return wire.EngineGauges(
            running=scheduler.running_count,
            waiting=scheduler.waiting_count,
            sequences_used=cache.sequences_used,
            cells_used=cache.ledger.used - parked,
            cells_total=cache.ledger.cells_total,
            cells_cached=parked,
            prefix_tokens_total=cache.prefix_tokens_total,
            evictions_total=cache.evictions_total,
            swapped_bytes=cache.swapped_bytes,
            preemptions_total=scheduler.preemptions_total,
            decode_tokens=plan.shape.decode,
            prefill_tokens=plan.shape.prefill,
            step_ms=step_ms,
            predicted_ms=plan.predicted_ms,
            stall_limit_ms=self._stall_factor * self.step_ms_worst,
            threads_decode=self._pool.counts.decode,
            threads_prefill=self._pool.counts.prefill,
            threads_change=self._pool.take_change(),
            drafted_total=0 if guesses is None else guesses.drafted_total,
            draft_accepted_total=0 if guesses is None else guesses.accepted_total,
            model_drafted_total=0 if foresight is None else foresight.drafted_total,
            model_draft_accepted_total=0 if foresight is None else foresight.accepted_total,
            draft_gain=1.0 if guesses is None else guesses.gain,
        )

    def _check_idle(self) -> None:
        """Hold our books against llama.cpp's: when nothing runs, only parked sequences are held."""
        cache, limits = self._scheduler.cache, self._scheduler.limits
        assert cache.sequences_used == 0, "a sequence is held while idle"
        assert cache.ledger.used == cache.cells_parked, "cells are held while idle"
        assert self._mover.saved_count == len(cache.hosted), "a saved state is held while idle"
        assert not self._generations, "a generation is held while idle"
        if self._draft_model is not None:
            self._draft_model.check_idle()
        for seq_id in range(limits.sequences_max + limits.parked_max):
            held = self._context.position_max(seq_id) + 1
            known = cache.parked.cells(seq_id) if seq_id in cache.parked else 0
            assert held == known, f"sequence {seq_id} holds {held} cells, not {known}, while idle"
