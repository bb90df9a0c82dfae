"""Draw the figures against their bars as an SVG.

What this room does: one row for each figure: its interval as a line, its median as a dot, on a
scale on which the bar is one line for all and better is to the right.
What it knows: SVG, as much as it takes.
What it never does: judge. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.bars import Verdict

_ROW, _TOP, _LABEL, _WIDTH = 18, 44, 600, 420
_SPAN = 4.0  # the scale ends at a quarter and at four times the bar
_FONT = 'font-family="sans-serif" font-size="11"'
_HOLDS, _SHORT = "#1a7f37", "#c9252d"


def draw(verdicts: Sequence[Verdict]) -> str:
    """Draw one row for each figure."""
    width, height = _LABEL + _WIDTH + 40, _TOP + _ROW * len(verdicts) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {_FONT}>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for times in (0.25, 0.5, 1.0, 2.0, 4.0):
        x = _x(times)
        stroke = 2 if times == 1.0 else 0.5
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 8}" stroke="#888" '
            f'stroke-width="{stroke}"/>'
            f'<text x="{x:.1f}" y="{_TOP - 14}" text-anchor="middle">{times:g}</text>'
        )
    parts.append(
        f'<text x="{_x(1.0):.1f}" y="14" text-anchor="middle">times the bar; '
        "right of 1 is better</text>"
    )
    parts += [_row(at, one) for at, one in enumerate(verdicts)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(at: int, one: Verdict) -> str:
    y = _TOP + _ROW * at + _ROW / 2
    colour = _HOLDS if one.holds else _SHORT
    label = f'<text x="{_LABEL - 16}" y="{y + 4:.1f}" text-anchor="end">'
    parts = [f"{label}{escape(one.bar.title)}</text>"]
    if one.measured is None:
        parts.append(f'<text x="{_LABEL}" y="{y + 4:.1f}" fill="{colour}">not measured</text>')
    else:
        found = one.measured
        low, high = sorted((_x(_times(one, found.low)), _x(_times(one, found.high))))
        middle = _x(_times(one, found.median))
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" '
            f'stroke-width="3"/><circle cx="{middle:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
        )
    return "".join(parts)


def _times(one: Verdict, value: float) -> float:
    """Say how many times better than its bar a value is; a bar of zero is met or missed."""
    limit = one.bar.limit
    if one.bar.at_most is None:
        return value / limit if limit else 1.0
    if limit == 0.0 or value == 0.0:
        return 1.0 if value <= limit else 1.0 / _SPAN
    return limit / value


def _x(times: float) -> float:
    bounded = min(max(times, 1.0 / _SPAN), _SPAN)
    return _LABEL + _WIDTH * (math.log(bounded) / math.log(_SPAN) + 1.0) / 2
