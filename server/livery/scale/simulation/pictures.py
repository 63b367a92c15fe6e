"""A comparison of policies as a picture: plain SVG without a drawing library, its labels in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from livery.scale.simulation.outcome import Outcome
from livery_loadtest.report.plots import Axis, exact, linear, logarithmic

WIDTH, HEIGHT = 270, 230  # of a plot, pixels
LEFT, TOP, GAP, BOTTOM = 60, 104, 72, 50
COLOURS = ("#6b7280", "#0ea5e9", "#2563eb", "#dc2626", "#f59e0b", "#7c3aed", "#db2777", "#15803d")
LEGEND = 150

Runs = Sequence[tuple[float, Sequence[Outcome]]]  # by load, as a share of the capacity


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot over the load."""

    title: str
    of: Callable[[Outcome], float]
    axis: Callable[[float, float], Axis]


PANELS = (
    Panel("adapter found on the device", lambda one: one.hit_rate, lambda low, high: _shares()),
    Panel("time to first token, 95th percentile", lambda one: one.ttft_p95, lambda low, high: _seconds(low, high)),
    Panel("time per output token, median", lambda one: one.tpot_p50, lambda low, high: _milliseconds(high)),
    Panel("most answered by a replica, over the mean", lambda one: one.imbalance, lambda low, high: _times(low, high)),
)


def draw(runs: Runs, title: str, under: str) -> str:
    """An SVG document: four plots over the load, a line for each policy. There are two loads at least."""
    names = [one.policy for one in runs[0][1]]
    width = LEFT + len(PANELS) * (WIDTH + GAP)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="12" y="40" fill="#555">{escape(under)}</text>',
    ]
    for place, name in enumerate(names):
        x = 12 + LEGEND * place
        parts.append(f'<rect x="{x}" y="58" width="14" height="4" fill="{COLOURS[place % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 19}" y="64">{escape(name)}</text>')
    loads = [load for load, _ in runs]
    across = exact("", min(loads), max(loads), lambda value: f"{value:.0%}")
    for place, panel in enumerate(PANELS):
        parts += _plot(panel, runs, across, LEFT + place * (WIDTH + GAP))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _plot(panel: Panel, runs: Runs, across: Axis, left: float) -> list[str]:
    values = [panel.of(one) for _, outcomes in runs for one in outcomes]
    up = panel.axis(min(values), max(values))
    bottom = TOP + HEIGHT
    parts = [f'<text x="{left}" y="{TOP - 8}" font-weight="bold">{escape(panel.title)}</text>']
    for at, label in up.marks:
        y = bottom - HEIGHT * at / 100
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for at, label in across.marks:
        x = left + WIDTH * at / 100
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
    middle = left + WIDTH / 2
    parts.append(f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">load, of the capacity planned</text>')
    parts.append(f'<path d="M{left} {TOP}V{bottom}H{left + WIDTH}" fill="none" stroke="#555"/>')
    for place in range(len(runs[0][1])):
        points = [
            (left + WIDTH * across.place(load) / 100, bottom - HEIGHT * up.place(panel.of(outcomes[place])) / 100)
            for load, outcomes in runs
        ]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return parts


def _shares() -> Axis:
    return linear("", 0.0, 1.0, lambda value: f"{value:.0%}")


def _seconds(low: float, high: float) -> Axis:
    return logarithmic("", low, high, lambda value: f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms")


def _milliseconds(high: float) -> Axis:
    return linear("", 0.0, high, lambda value: f"{1e3 * value:g} ms")


def _times(low: float, high: float) -> Axis:
    return logarithmic("", min(low, 1.0), high, lambda value: f"{value:.3g}")
