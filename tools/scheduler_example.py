"""Play one small day of the scheduler, and write it into docs/scheduler.md, between two marks.

What this program does: gives the real scheduler a machine whose prices are simple, three clients
and their requests, and lists what each step held and why time went by.
What it knows: a test holds the page equal to what it writes.
What it never does: load a model: the scheduler is pure.

Usage: python -m tools.scheduler_example
"""

from __future__ import annotations

from pathlib import Path

from appliance.domain import Priority
from appliance.runtime.cost import CostModel, StepShape
from appliance.runtime.jobs import Job, MoveKind, Plan, SchedulerLimits
from appliance.runtime.scheduler import Scheduler

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scheduler.md"
BEGIN = "<!-- example: written by tools/scheduler_example.py -->"
END = "<!-- end of example -->"

SYSTEM = list(range(96))  # what two of the prompts begin with
# When each arrives, in steps; and how many tokens it is answered.
ARRIVALS = (
    (0, "A", Priority.NORMAL, [*SYSTEM, *range(1000, 1016)], 6),
    (0, "B", Priority.NORMAL, [*SYSTEM, *range(2000, 2008)], 4),
    (2, "C", Priority.BATCH, list(range(3000, 3120)), 3),
    (4, "D", Priority.INTERACTIVE, list(range(4000, 4020)), 5),
)


def machine() -> Scheduler:
    """Make a scheduler for an engine with a price of 4 ms a step and 1 ms a row."""
    cost = CostModel()
    for rows in (1, 16, 32, 64):
        cost.observe(StepShape(decode=0, prefill=rows, kv_span=rows), 4.0 + rows)
        cost.observe(StepShape(decode=rows, prefill=0, kv_span=rows), 4.0 + rows)
    cost.settle()
    limits = SchedulerLimits(
        context_tokens=512,
        cells_total=512,
        sequences_max=4,
        batch_tokens=64,
        queue_requests_max=8,
        output_reserve_tokens=8,
        step_ms_while_streaming=40.0,
        step_ms_max=80.0,
        parked_max=4,
        parked_cells_max=256,
        turn_ms=20.0,
    )
    return Scheduler(limits, cost)


def table() -> str:
    """Play it; write one line a step."""
    scheduler, now_ms, number = machine(), 0.0, 0
    names: dict[int, str] = {}
    wanted: dict[int, int] = {}
    lines = ["| step | at | rows | what happens |", "|---|---|---|---|"]
    while scheduler.has_work or number <= max(step for step, *_ in ARRIVALS):
        notes = []
        for step, name, priority, prompt, tokens in ARRIVALS:
            if step == number:
                ticket = len(names)
                names[ticket], wanted[ticket] = name, tokens
                job = Job(ticket, prompt, None, client=name, priority=priority, cache_key="k")
                job.add_choice()
                scheduler.submit(job, now_ms)
                notes.append(f"{name} arrives ({priority.value}, {len(prompt)} tokens)")
        plan = scheduler.plan(now_ms)
        notes += _moved(plan, names, scheduler)
        drawn = [choice for choice, _ in scheduler.advance(plan.spans).draws]
        now_ms += plan.predicted_ms
        for choice in drawn:
            scheduler.accept(choice, 9000 + len(choice.outputs))
            name = names[choice.job.ticket]
            if len(choice.outputs) == 1:
                notes.append(f"{name}'s first token")
            if len(choice.outputs) == wanted[choice.job.ticket]:
                scheduler.finish(choice, now_ms)
                notes.append(f"{name} is complete, its sequence is kept")
        if plan.spans:
            lines.append(
                f"| {number} | {now_ms - plan.predicted_ms:.0f} ms "
                f"| {_rows(plan, names)} | {'; '.join(notes)} |"
            )
        number += 1
    return "\n".join(lines)


def _rows(plan: Plan, names: dict[int, str]) -> str:
    return " + ".join(f"{names[span.choice.job.ticket]} {span.count}" for span in plan.spans)


def _moved(plan: Plan, names: dict[int, str], scheduler: Scheduler) -> list[str]:
    notes = [f"{names[job.ticket]} starts" for job in plan.started]
    notes += [
        f"{move.tokens} tokens are shared, not evaluated"
        for move in plan.moves
        if move.kind is MoveKind.COPY
    ]
    for job in scheduler.waiting():
        match = scheduler.cache.match(job)
        if scheduler.cache.is_worth_waiting(job, match):
            notes.append(f"{names[job.ticket]} waits for {match.promised} tokens of another")
    return notes


def placed(text: str) -> str:
    """Put the table between the marks of the page."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Write it again."""
    PAGE.write_text(placed(PAGE.read_text()))
    print(PAGE.name)


if __name__ == "__main__":
    main()
