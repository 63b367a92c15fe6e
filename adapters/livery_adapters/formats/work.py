"""How much arithmetic a conversion takes: a load has the loader to itself, and others wait for it."""

from __future__ import annotations

from collections.abc import Iterable

from livery_adapters.layout import TargetTensors
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.lora import Init
from livery_adapters.types.oft import block_size

MOST_FLOPS = 2e13  # of all modules together: some minutes on a few cores


def factorising(init: Init, targets: Iterable[TargetTensors]) -> float:
    """Flops of the SVD (PiSSA) or QR (OLoRA) of every adapted linear module's weight; thin ones, both factors formed.

    Counts of Golub and Van Loan, Matrix Computations, sections 5.2 and 8.6.
    """
    total = 0.0
    for target in targets:
        sides = target.in_features, target.out_features
        if init == "plain" or target.kind != "linear" or sides[0] is None or sides[1] is None:
            continue
        short, long = sorted((float(sides[0]), float(sides[1])))
        total += 14 * long * short**2 + 8 * short**3 if init == "pissa" else 4 * long * short**2
    return total


def turning(terms: int, targets: Iterable[TargetTensors]) -> float:
    """Flops of OFT's blocks: one product per term of the series, or the solution of one system (terms 0)."""
    total = 0.0
    for target in targets:
        for entry in target.tensors.values():
            size = float(block_size(entry.shape[1]))
            total += entry.shape[0] * size**3 * (2 * terms or 8 / 3)
    return total


def check_work(flops: float, code: str, reason: str) -> None:
    """Raise AdapterRefused where that is too much; `reason` is a sentence of what takes so long, and the remedy."""
    if flops > MOST_FLOPS:
        raise AdapterRefused(
            code, f"a load would take {flops:.1e} operations and {MOST_FLOPS:.0e} are allowed: {reason}"
        )
