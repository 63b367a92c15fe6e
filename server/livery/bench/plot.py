"""A run's rows as a picture: how each stands to its bar. Plain SVG, without a drawing library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from livery.bench.bars import Row
from livery.bench.report import shown
from livery_loadtest.bars import Bar, Verdict

LINE, TOP, BOTTOM = 24, 44, 30  # pixels
LABELS, WIDTH, VALUES = 470, 330, 330
MOST = 1.6  # times the bar; what is beyond ends there with an arrow
FILLS = {Verdict.AIM: "#15803d", Verdict.PASS: "#4ade80", Verdict.FAIL: "#dc2626"}


def draw(rows: Sequence[Row], title: str) -> str:
    """An SVG document: one bar a row, as long as the row is good by its own bar, which is the line at 1."""
    judged = [(row, row.bar) for row in rows if row.bar is not None]
    height = TOP + LINE * len(judged) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABELS + WIDTH + VALUES}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for index, (row, bar) in enumerate(judged):
        parts += _line(row, bar, TOP + LINE * index)
    at, end = LABELS + WIDTH / MOST, height - BOTTOM + 4
    parts.append(f'<line x1="{at:.1f}" y1="{TOP - 6}" x2="{at:.1f}" y2="{end}" stroke="black" stroke-dasharray="3 3"/>')
    parts.append(f'<text x="{at:.1f}" y="{end + 16}" text-anchor="middle">the bar; thin ticks: the aim</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the picture, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(draw(rows, title), encoding="utf-8")


def goodness(value: float, bar: Bar) -> float:
    """How good a value is by its bar: 1 at the bar, more is better whichever way the ratio goes."""
    return bar.bar / value if bar.lower else value / bar.bar


def _line(row: Row, bar: Bar, y: float) -> list[str]:
    good = goodness(row.value.median, bar)
    length = WIDTH * min(good, MOST) / MOST
    aim = LABELS + WIDTH * min(goodness(bar.aim, bar), MOST) / MOST
    text = f"{shown(row.value)}   {bar}" + ("  →" if good > MOST else "")
    return [
        f'<text x="{LABELS - 8}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>',
        f'<rect x="{LABELS}" y="{y + 2}" width="{length:.1f}" height="{LINE - 8}" fill="{FILLS[row.verdict]}"/>',
        f'<line x1="{aim:.1f}" y1="{y}" x2="{aim:.1f}" y2="{y + LINE - 4}" stroke="#555"/>',
        f'<text x="{LABELS + WIDTH + 8}" y="{y + 13}">{escape(text)}</text>',
    ]
