"""The request for a greedy answer, within what the profile of the version that answers allows.

    options = greedy(profile.bounds, 64, ["\\n"])
    dressed(Job(..., options, ...), profile, None)      # by an engine here, as a server completes a request
    fields(options)                                     # of /v1/completions, whose server does just that

One request for both, so that where a version is evaluated makes no difference: its stops, penalties and format apply.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from livery.evaluation.subjects import Answer, Task
from livery.jobs import Options
from livery_adapters.profile import Bounds, Range

SEED = 0  # of a draw that has one outcome


def greedy(bounds: Bounds, most: int, stops: Sequence[str]) -> Options:
    """At most so many tokens, the likeliest each, ended before the first of the stops.

    Where the bounds allow no temperature of 0, of each draw the likeliest token alone is left (top_k 1).
    """
    cold = _is_cold(bounds)
    return Options(
        max_tokens=_allowed(bounds, most),
        temperature=0.0 if cold else None,
        top_k=None if cold else 1,
        seed=None if cold else SEED,
        stop=tuple(stops),
    )


def fields(options: Options) -> dict[str, object]:
    """The same in a body for /v1/completions."""
    asked = {name: getattr(options, name) for name in ("max_tokens", "temperature", "top_k", "seed")}
    return {name: value for name, value in asked.items() if value is not None} | {"stop": list(options.stop) or None}


def notes(bounds: Bounds, tasks: Iterable[Task]) -> list[str]:
    """What bounds make of the answers to these tasks, in a sentence each."""
    answered = {task.name: {item.max_tokens for item in task.items if isinstance(item, Answer)} for task in tasks}
    answered = {name: lengths for name, lengths in answered.items() if lengths}
    if not answered:
        return []
    found = []
    if not _is_cold(bounds):
        found.append(
            f"its profile allows no temperature of 0 ({_told(bounds.temperature)}): its answers are of the likeliest "
            "tokens all the same (top_k 1), and vary less than those its users get"
        )
    for name, lengths in answered.items():
        if moved := sorted({(most, _allowed(bounds, most)) for most in lengths if _allowed(bounds, most) != most}):
            most, allowed = moved[-1]
            found.append(
                f"{name} asks for up to {most} tokens and its profile allows {allowed}: its answers there have up to "
                f"{allowed}"
            )
    return found


def _is_cold(bounds: Bounds) -> bool:
    return bounds.temperature.nearest(0.0) == 0


def _allowed(bounds: Bounds, most: int) -> int:
    nearest = bounds.max_tokens.nearest(most)
    return math.ceil(nearest) if nearest > most else math.floor(nearest)


def _told(temperature: Range) -> str:
    return f"at most {temperature.max:g}" if temperature.min is None else f"at least {temperature.min:g}"
