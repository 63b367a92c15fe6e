"""How many tokens a step computes where nobody says, which the engine goes by and a capacity plan foresees."""

from __future__ import annotations

PROMPT_TOKENS = 64  # in a CPU's step, beside as many sequences as may run: enough rows to be busy with
CUDA_TOKENS = 2048


def chosen_batch_tokens(max_running: int, *, on_cpu: bool) -> int:
    """Tokens of a step at most. Every running sequence gets one of them, and a prompt that runs alone takes all.

    Short steps cost a CPU nothing: tests/benchmarks/step_budget.py.
    """
    return max_running + PROMPT_TOKENS if on_cpu else CUDA_TOKENS
