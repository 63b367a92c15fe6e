"""How many threads a step computes with on a CPU: measured at start, on the model itself.

More threads than the memory feeds only wait for each other, and each takes a core from the API's process: of those
that are about as fast the fewest are taken. Measured anew at every start, in a fraction of a second: what was measured
on a busy machine isn't remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

SLOWER = 1.1  # what fewer threads may cost
_SECONDS = 0.15  # for one number of threads
_STEPS = 3  # at least, where they are short


def choose_threads(cores: int, steps: Sequence[Callable[[], object]]) -> tuple[int, str]:
    """The number of threads to compute with, now set, and why. `steps` are of several sizes, each of equal weight."""
    if cores == 1:
        torch.set_num_threads(1)
        return 1, "one core"
    best: dict[int, float] = {}
    for threads in _candidates(cores):
        torch.set_num_threads(threads)
        score = 1.0
        for step in steps:
            score *= _seconds(step)
        best[threads] = score ** (1 / len(steps))
        if best[threads] > 1.5 * min(best.values()):  # fewer would be slower still
            break
    chosen = fewest(best)
    torch.set_num_threads(chosen)
    measured = ", ".join(f"{threads}: {seconds * 1e3:.1f} ms" for threads, seconds in sorted(best.items()))
    return chosen, f"fewest within {SLOWER - 1:.0%} of the fastest step ({measured})"


def fewest(seconds: Mapping[int, float]) -> int:
    """The fewest threads that are about as fast as the fastest; seconds by number of threads."""
    return min(threads for threads, taken in seconds.items() if taken <= SLOWER * min(seconds.values()))


def _candidates(cores: int) -> list[int]:
    """All cores, then halves of them down to one."""
    found = [cores]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _seconds(step: Callable[[], object]) -> float:
    """The shortest time of a few calls; one that isn't timed wakes the threads first, unless it takes long."""
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    if first > _SECONDS:
        return first
    shortest = first
    for _ in range(min(8, max(_STEPS, int(_SECONDS / first)))):
        before = time.perf_counter()
        step()
        shortest = min(shortest, time.perf_counter() - before)
        if time.perf_counter() - began > _SECONDS:
            break
    return shortest
