"""Types whose ΔW is of low rank once multiplied out, exactly; some need the base's weight for it. All in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.canonical import BaseWeights, LinearChange, LowRank
from livery_adapters.formats.base import Conversion, Dense, Tensors, wide
from livery_adapters.layout import TargetTensors
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.low_rank import (
    DeftSettings,
    DeloraSettings,
    GraloraSettings,
    HraSettings,
    MissSettings,
)


def _pair(a: Tensor, b: Tensor, scale: float = 1.0) -> LinearChange:
    return LinearChange(deltas=(LowRank(a=a, b=b, scale=scale),))


# -- HRA (arXiv 2405.17484): W' = W·H with a product H of reflections I - 2·u·uᵀ ---------------------------


def compact_reflections(units: Tensor) -> Tensor:
    """The upper triangular T [r, r] of Π (I - 2·u_k·u_kᵀ) = I - U·T·Uᵀ (Schreiber and van Loan), `units` [in, r].

    Appending u makes the column -2·T·Uᵀu, with 2 below it.
    """
    rank = units.shape[1]
    triangle = torch.zeros(rank, rank)
    for k in range(rank):
        triangle[:k, k] = -2 * triangle[:k, :k] @ (units[:, :k].T @ units[:, k])
        triangle[k, k] = 2
    return triangle


def orthonormal(vectors: Tensor) -> Tensor:
    """Columns made orthonormal one after the other (modified Gram and Schmidt)."""
    done: list[Tensor] = []
    for column in vectors.T:
        for other in done:
            column = column - (other @ column) * other
        done.append(column / column.norm())
    return torch.stack(done, dim=1)


def convert_hra(target: TargetTensors, tensors: Tensors, settings: HraSettings, base: BaseWeights) -> LinearChange:
    """ΔW = W·(H - I) = -(W·U)·T·Uᵀ."""
    vectors, weight = tensors["hra_u"].float(), wide(base.weight(target.module))
    if settings.orthogonal:
        units = orthonormal(vectors)
        return _pair(units.T.contiguous(), -2 * weight @ units)
    units = vectors / vectors.norm(dim=0)
    return _pair(units.T.contiguous(), -(weight @ units) @ compact_reflections(units))


# -- MiSS (arXiv 2409.15371): pieces of r inputs are summed up and multiplied by one block ------------------


def convert_miss(
    target: TargetTensors, tensors: Tensors, settings: MissSettings, base: BaseWeights
) -> LinearChange | None:
    """A [rank, in] sums every r-th input; "bat" depends on W block by block and is of full rank."""
    if settings.variant == "bat":
        return None
    shape, block = base.shapes.modules[target.module], tensors["miss_block"]
    if settings.variant == "mini":
        _check_mini(target.module, shape.out_features, settings.width)
        block = block.repeat(1, shape.out_features // settings.width)
    pieces = -(-shape.in_features // settings.rank)
    summing = torch.eye(settings.rank, dtype=block.dtype).repeat(1, pieces)[:, : shape.in_features]
    return _pair(summing.contiguous(), block.T.contiguous())


def _check_mini(module: str, out_features: int, width: int) -> None:
    if out_features % width:
        raise AdapterRefused(
            "wrong_shape",
            f"mini_r is {width} and {module} has {out_features} outputs, no multiple of it; use the base it was "
            "trained on",
        )


def dense_miss(target: TargetTensors, tensors: Tensors, settings: MissSettings, base: BaseWeights) -> Dense:
    """ΔW of the "bat" variant: every [rank, rank] piece of W times its row's block, plus that block."""
    weight, blocks, rank = wide(base.weight(target.module)), tensors["miss_block"].float(), settings.rank
    rows, columns = weight.shape
    if rows % rank or columns % rank:
        raise AdapterRefused(
            "wrong_shape",
            f"{target.module} is {rows} x {columns} and can't be cut into pieces of {rank}; use the base it was "
            "trained on",
        )
    pieces = weight.reshape(rows // rank, rank, columns // rank, rank).permute(2, 0, 1, 3)
    return Dense((pieces @ blocks + blocks).permute(1, 2, 0, 3).reshape(rows, columns))


# -- DeLoRA (arXiv 2503.18225): every rank normalised, then scaled together ---------------------------------


def convert_delora(
    target: TargetTensors, tensors: Tensors, settings: DeloraSettings, base: BaseWeights
) -> LinearChange:
    """ΔW = λ/r · B·diag(1/(‖a‖·‖b‖))·A·diag(norms of W's columns, as the file has them)."""
    a, b = tensors["delora_A"].float(), tensors["delora_B"].float()
    lengths = a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4)
    gain = tensors["delora_lambda"].float() / target.rank / lengths
    return _pair(a * tensors["delora_w_norm"].float(), b * gain)


# -- DEFT: what W does in a subspace of the output is removed, and R put in its place -----------------------


def convert_deft(target: TargetTensors, tensors: Tensors, settings: DeftSettings, base: BaseWeights) -> LinearChange:
    """ΔW = Q·(s·R - Pᵀ·W), where Q and P span the subspace."""
    left = tensors["deft_P"].float()
    if settings.orthogonal:
        left = torch.linalg.qr(left).Q
    right = left if settings.orthogonal else torch.relu(left)
    a = -(right.T @ wide(base.weight(target.module)))
    if settings.fills:
        a = a + target.scale * tensors["deft_R"].float()
    return _pair(a, left)


# -- GraLoRA (arXiv 2505.20355): a pair for every piece of the input and every piece of the output ----------


def convert_gralora(
    target: TargetTensors, tensors: Tensors, settings: GraloraSettings, base: BaseWeights
) -> LinearChange:
    """One rank per (piece of the input n, piece of the output j, own rank s), zero outside both pieces."""
    a, b = tensors["gralora_A"], tensors["gralora_B"]
    blocks, own = settings.blocks, settings.rank // settings.blocks
    long = torch.zeros(blocks, settings.rank, blocks, a.shape[1], dtype=a.dtype)  # [n, (j, s), n, in/k]
    tall = torch.zeros(blocks, b.shape[2], blocks, blocks, own, dtype=b.dtype)  # [j, out/k, n, j, s]
    for piece in range(blocks):
        long[piece, :, piece] = a[piece].T
        tall[piece, :, :, piece] = b[piece].T.reshape(-1, blocks, own)
    deltas = [LowRank(long.flatten(2).flatten(0, 1), tall.flatten(2).flatten(0, 1), target.scale)]
    if settings.hybrid:
        deltas.append(LowRank(tensors["gralora_A_general"], tensors["gralora_B_general"], target.scale))
    return LinearChange(deltas=tuple(deltas))


HRA = Conversion(convert_hra)
MISS = Conversion(convert_miss, dense_miss)
DELORA = Conversion(convert_delora)
DEFT = Conversion(convert_deft)
GRALORA = Conversion(convert_gralora)
