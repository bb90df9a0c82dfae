"""Give the suites of versions what they share: what was asked for, a folder, a place for samples.

What this room does: counts rounds, keeps samples and notes.
What it knows: what this run was asked for.
What it never does: measure, or judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.samples import Sample


@dataclass(slots=True, kw_only=True)
class Bench:
    """One run of some suites. `short`: does everything work, on small files, in one round?

    original: a model for the suite `gate`, instead of the demo model.
    """

    scratch: Path
    say: Callable[[str], None]
    short: bool = False
    rounds_asked: int = 0
    original: Path | None = None
    samples: list[Sample] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rounds(self, usual: int) -> range:
        """Count the rounds of a suite."""
        return range(1 if self.short else self.rounds_asked or usual)

    def keep(self, suite: str, case: str, side: str, number: int, **metrics: float) -> None:
        """Keep what one side gave in one round."""
        self.samples.append(
            Sample(suite=suite, case=case, side=side, round=number, metrics=metrics)
        )
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.say(f"{suite}, {case}, {side}: {shown}")
