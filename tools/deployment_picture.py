"""Draw the life of a deployment into ARCHITECTURE.md, between two marks.

What this program does: drives deployments of every kind of strategy through every event, collects
where `decide` sends them, and writes a Mermaid diagram.
What it knows: a test holds the picture in ARCHITECTURE.md equal to what it draws.
What it never does: draw what the code does not do.

Usage: python -m tools.deployment_picture
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from appliance.contract.release import Strategy, Trial
from appliance.domain import Digest
from appliance.sync.deployment import Bounds, Deployment, Happening, decide, plan
from appliance.sync.states import ENDS, Event, State

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN = "<!-- deployment picture: written by tools/deployment_picture.py -->"
END = "<!-- end of deployment picture -->"
_STOPS = (Event.CANCELLED, Event.REVOKED, Event.SUPERSEDED, Event.DEADLINE, Event.BUDGET_SPENT)
_RESTARTS = (Event.RESTARTED_CLEAN, Event.RESTARTED_DIRTY, Event.RESTARTED_REBOOTED)


def picture() -> str:
    """Draw the diagram as a Mermaid block; what stops any state under way is drawn once."""
    together = dict[tuple[State, State], list[Event]]()
    for source, event, target in sorted(edges(), key=_order):
        if event not in _STOPS:
            together.setdefault((source, target), []).append(event)
    stops = ", ".join(event.value for event in _STOPS)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.PLANNED.value}"]
    lines += [
        f"    {source.value} --> {target.value}: {_listed(events)}"
        for (source, target), events in together.items()
    ]
    lines += [f"    {state.value} --> [*]" for state in State if state in ENDS]
    lines += [
        f"    note left of {State.ABORTED.value}: also from every state before it by {stops}",
        f"    note right of {State.ROLLING_BACK.value}: likewise, once users saw the candidate",
    ]
    return "\n".join([*lines, "```"])


def edges() -> set[tuple[State, Event, State]]:
    """Find every step that some deployment can take."""
    found, seen, pending = set[tuple[State, Event, State]](), set[str](), list(_planned())
    while pending:
        deployment = pending.pop()
        if repr(deployment) in seen:
            continue
        seen.add(repr(deployment))
        for event in Event:
            happening = Happening(event=event, utc_ms=0)
            decision = decide(deployment, happening, Bounds(entries_max=12, reboots_max=1))
            spent = decision is not None and decision.deployment.cause == Event.BUDGET_SPENT.value
            if decision is not None and (event is Event.BUDGET_SPENT or not spent):
                found.add((deployment.state, event, decision.deployment.state))
                pending.append(decision.deployment)
    return found


def _planned() -> Iterator[Deployment]:
    for share, approval, steps, probation, alone in itertools.product(
        (0.0, 0.5), (False, True), ((), (10,)), (None, Trial()), (False, True)
    ):
        strategy = Strategy(
            shadow_share=share,
            needs_approval=approval,
            steps_percent=steps,
            probation=probation,
            stop_then_start=alone,
        )
        yield plan(
            model="m",
            version="2",
            digest=Digest("new"),
            previous=Digest("old"),
            strategy=strategy,
            utc_ms=0,
        )


def _listed(events: list[Event]) -> str:
    if not set(_RESTARTS) <= set(events):
        return ", ".join(event.value for event in events)
    return ", ".join([*(event.value for event in events if event not in _RESTARTS), "restarted"])


def _order(edge: tuple[State, Event, State]) -> tuple[int, int, int]:
    states, events = list(State), list(Event)
    source, event, target = edge
    return states.index(source), states.index(target), events.index(event)


def placed(text: str) -> str:
    """Put the picture between the marks of a page."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


def main() -> None:
    """Draw it again."""
    PAGE.write_text(placed(PAGE.read_text()))
    print(PAGE.name)


if __name__ == "__main__":
    main()
