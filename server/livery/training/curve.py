"""A run's loss as a picture: plain SVG without a drawing library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from livery_loadtest.report.plots import Axis, exact, linear

WIDTH, HEIGHT = 640, 280  # of the plot, pixels
LEFT, TOP, RIGHT, BOTTOM = 64, 66, 24, 54
TRAINED, SMOOTH, HELD_OUT = "#93c5fd", "#1d4ed8", "#dc2626"
_SMOOTHED_FROM = 20  # steps

Points = Sequence[tuple[int, float]]  # step, loss


def draw(title: str, losses: Points, held_out: Points) -> str:
    """An SVG document: the loss of each step, its moving average where there are many, and what was held out."""
    values = [loss for _, loss in (*losses, *held_out)]
    steps = [step for step, _ in (*losses, *held_out)]
    across = exact("step", min(steps, default=0), max(steps, default=1), lambda value: f"{value:,.0f}")
    up = linear("loss", min(values, default=0.0), max(values, default=1.0), lambda value: f"{value:.3g}")
    width, height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        *_axes(across, up),
        _line(losses, across, up, TRAINED, 1.2),
    ]
    legend = [(TRAINED, "each step")]
    if len(losses) >= _SMOOTHED_FROM:
        parts.append(_line(averaged(losses), across, up, SMOOTH, 2))
        legend.append((SMOOTH, f"average of {_window(losses)} steps"))
    if held_out:
        parts.append(_line(held_out, across, up, HELD_OUT, 2))
        parts += [_dot(step, loss, across, up) for step, loss in held_out]
        legend.append((HELD_OUT, "held out"))
    for place, (colour, text) in enumerate(legend):
        x = 12 + 170 * place
        parts.append(
            f'<rect x="{x}" y="38" width="14" height="4" fill="{colour}"/><text x="{x + 20}" y="44">{text}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def averaged(losses: Points) -> list[tuple[int, float]]:
    """Each step's mean with those before it, a twentieth of all."""
    window, found = _window(losses), []
    for at, (step, _) in enumerate(losses):
        part = [loss for _, loss in losses[max(0, at + 1 - window) : at + 1]]
        found.append((step, sum(part) / len(part)))
    return found


def _window(losses: Points) -> int:
    return max(5, len(losses) // 20)


def _axes(across: Axis, up: Axis) -> list[str]:
    bottom, parts = TOP + HEIGHT, []
    for at, label in up.marks:
        y = bottom - HEIGHT * at / 100
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + WIDTH}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for at, label in across.marks:
        x = LEFT + WIDTH * at / 100
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{bottom + 40}" text-anchor="middle">step</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{LEFT + WIDTH}" fill="none" stroke="#555"/>')
    return parts


def _line(points: Points, across: Axis, up: Axis, colour: str, width: float) -> str:
    path = "L".join("{:.1f} {:.1f}".format(*_at(step, loss, across, up)) for step, loss in points)
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>' if path else ""


def _dot(step: int, loss: float, across: Axis, up: Axis) -> str:
    x, y = _at(step, loss, across, up)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{HELD_OUT}"/>'


def _at(step: int, loss: float, across: Axis, up: Axis) -> tuple[float, float]:
    return LEFT + WIDTH * across.place(step) / 100, TOP + HEIGHT * (1 - up.place(loss) / 100)
