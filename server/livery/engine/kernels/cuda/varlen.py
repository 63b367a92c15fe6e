"""Torch's own paged attention for prompts, where this build of torch has it for this device and it is the faster one.

`torch.nn.attention.varlen.varlen_attn` takes a block table in some builds, for some devices, dtypes and block sizes;
its signature doesn't tell which. So it is called once with blocks of the model's shape, compared with our own kernel
and timed beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

PROBE_TOKENS, PROBE_CONTEXT = 512, 256  # new tokens of each of two sequences; what the second one has behind it
ROUNDS = 5
TOLERANCE = 2e-2  # of the largest value, both being rounded to 16 bits
WORTH = 0.95  # of our own time: below it, torch's is taken

Attend = Callable[..., Tensor]  # arguments as of reference.py's paged_attention


@dataclass(frozen=True, slots=True)
class Shape:
    """What a probe's answer depends on."""

    heads: int
    kv_heads: int
    dim: int
    block_size: int
    dtype: torch.dtype
    windowed: bool


class PromptAttention:
    """Which kernel reads prompts, found out once for each shape."""

    def __init__(self, own: Attend) -> None:
        self._own = own
        self._found: dict[Shape, bool] = {}

    def takes(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, window: int, softcap: float) -> bool:
        """Whether `varlen` is to be called. The first call with a shape takes as long as some dozen prompts."""
        if softcap or v_cache.shape[3] != k_cache.shape[3] or q.dtype not in (torch.float16, torch.bfloat16):
            return False  # torch's has no such thing
        shape = Shape(q.shape[1], k_cache.shape[2], q.shape[2], k_cache.shape[1], q.dtype, window > 0)
        if shape not in self._found:
            self._found[shape], why = probe(shape, q.device, self._own)
            log.info("prompts are read by %s attention: %s", "torch's" if self._found[shape] else "our own", why)
        return self._found[shape]


def varlen(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    """Arguments as of reference.py's paged_attention, without a cap; nothing is read back from the device."""
    from torch.nn.attention.varlen import varlen_attn

    found = varlen_attn(
        q,
        k_cache,
        v_cache,
        query_starts,
        None,
        q.shape[0],  # bounds that need no look at the device
        block_tables.shape[1] * k_cache.shape[1],
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=q.shape[1] != k_cache.shape[2],
        seqused_k=context_lens,
        block_table=block_tables,
    )
    assert isinstance(found, Tensor)
    return found


def probe(shape: Shape, device: torch.device, own: Attend, other: Attend = varlen) -> tuple[bool, str]:
    """Whether torch's attention (`other`) works for this shape, says the same as `own` and is faster; and why."""
    args = _example(shape, device)
    window = PROBE_CONTEXT if shape.windowed else 0
    scale = shape.dim**-0.5
    try:
        theirs = other(*args, scale, window)
    except (AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as failure:
        return False, f"varlen_attn can't be called here: {str(failure).splitlines()[0][:200]}"
    ours = own(*args, scale, window)
    error = float((theirs.float() - ours.float()).abs().max() / ours.float().abs().max())
    if not error <= TOLERANCE:
        return False, f"varlen_attn differs by {error:.1e}"
    times = {True: 0.0, False: 0.0}
    for _ in range(ROUNDS):  # in turn, so that neither has the quieter machine
        times[True] += _seconds(lambda: other(*args, scale, window), device)
        times[False] += _seconds(lambda: own(*args, scale, window), device)
    ratio = times[True] / times[False]
    return ratio < WORTH, f"varlen_attn takes {ratio:.2f} of our own kernel's time"


def _example(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Two prompts, one of them going on after some context, whose blocks lie in any order."""
    lens = (PROBE_TOKENS, PROBE_TOKENS + PROBE_CONTEXT)
    width = -(-max(lens) // shape.block_size)
    generator = torch.Generator().manual_seed(0)
    tables = torch.randperm(2 * width, generator=generator).view(2, width).to(device, torch.int32)

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, shape.dtype)

    cache = (2 * width, shape.block_size, shape.kv_heads, shape.dim)
    starts = torch.tensor([0, PROBE_TOKENS, 2 * PROBE_TOKENS], dtype=torch.int32, device=device)
    return (
        values(2 * PROBE_TOKENS, shape.heads, shape.dim),
        values(*cache),
        values(*cache),
        tables,
        starts,
        torch.tensor(lens, dtype=torch.int32, device=device),
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
