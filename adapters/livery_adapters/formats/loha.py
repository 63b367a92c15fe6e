"""LoHa: a Hadamard product of two low-rank matrices, which is itself of rank r²."""

from __future__ import annotations

from torch import Tensor

from livery_adapters.canonical import BaseWeights, LinearChange, LowRank
from livery_adapters.formats.base import Conversion, Dense, Tensors
from livery_adapters.layout import TargetTensors
from livery_adapters.types.lycoris import LycorisSettings


def hadamard(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float) -> LowRank:
    """(w1_a·w1_b) ⊙ (w2_a·w2_b) as B·A: `w*_a` are [out, r], `w*_b` [r, in].

    Entry (o, i) is Σ_jk w1_a[o,j]·w2_a[o,k]·w1_b[j,i]·w2_b[k,i]: every pair (j, k) is one of r² ranks, whose column
    and row are products of columns and rows (the Khatri-Rao product).
    """
    b = w1_a.float()[:, :, None] * w2_a.float()[:, None, :]
    a = w1_b.float()[:, None, :] * w2_b.float()[None, :, :]
    return LowRank(a=a.flatten(0, 1), b=b.flatten(1, 2), scale=scale)


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: LycorisSettings, base: BaseWeights
) -> LinearChange:
    """One module's two pairs as one of rank r²."""
    w1_a, w1_b, w2_a, w2_b = (tensors[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return LinearChange(deltas=(hadamard(w1_a, w1_b, w2_a, w2_b, target.scale),))


def dense(target: TargetTensors, tensors: Tensors, settings: LycorisSettings, base: BaseWeights) -> Dense:
    """The same multiplied out, for a rank below r²."""
    w1_a, w1_b, w2_a, w2_b = (tensors[f"hada_{name}"].float() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return Dense(target.scale * (w1_a @ w1_b) * (w2_a @ w2_b))


CONVERSION = Conversion(convert_module, dense)
