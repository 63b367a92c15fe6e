"""What this machine can do at best: reading memory and multiplying, with the threads the engine uses."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from livery.bench.physics import Peak
from livery.engine.kernels import Kernels

READ_BYTES = 256 << 20  # well beyond any last-level cache
READS = 5
PRODUCTS = 20
ROWS, INS, OUTS = 256, 1024, 1024  # of the native product: its operands stay in the cache
SQUARE = 1024


def measure_peak(device: torch.device, kernels: Kernels) -> Peak:
    """The best of several readers and of several products; takes about a second. Quiet machines only.

    The engine's own kernels are among the candidates, so that no part of a step can be faster than its floor.
    """
    return Peak(_bandwidth(device, kernels), _flops(device, kernels))


def _bandwidth(device: torch.device, kernels: Kernels) -> float:
    """Bytes a second of a streaming read."""
    stream = torch.ones(READ_BYTES // 4, device=device)
    weight = kernels.pack(torch.ones(READ_BYTES // 16384, 4096, device=device))
    x = torch.ones(4, 4096, device=device)
    fastest = min(
        _fastest(lambda: torch.dot(stream, stream), READS, device),
        _fastest(lambda: kernels.linear(x[:1], weight), READS, device),
        _fastest(lambda: kernels.linear(x, weight), READS, device),
    )
    return READ_BYTES / fastest


def _flops(device: torch.device, kernels: Kernels) -> float:
    """Operations a second (a multiply-add is two) of an fp32 product on CPU, bf16 elsewhere."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    square = torch.ones(SQUARE, SQUARE, device=device, dtype=dtype)
    weight = kernels.pack(torch.ones(OUTS, INS, device=device, dtype=dtype))
    x = torch.ones(ROWS, INS, device=device, dtype=dtype)
    return max(
        2 * SQUARE**3 / _fastest(lambda: square @ square, PRODUCTS, device),
        2 * ROWS * INS * OUTS / _fastest(lambda: kernels.linear(x, weight), PRODUCTS, device),
    )


def _fastest(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that isn't counted."""
    fastest = float("inf")
    for turn in range(times + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:
            fastest = min(fastest, time.perf_counter() - start)
    return fastest
