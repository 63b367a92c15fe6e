"""OFT and BOFT: the input turned by orthogonal blocks; BOFT also scales the output, its bias apart.

Algorithms: OFT (arXiv 2306.07280), BOFT (arXiv 2311.06243), OFTv2's series (arXiv 2506.19847). All in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.canonical import BaseWeights, BlockStage, EmbeddingChange, InputTransform, LinearChange
from livery_adapters.formats.base import Conversion, Tensors, wide
from livery_adapters.formats.work import check_work, turning
from livery_adapters.layout import AdapterManifest, TargetTensors
from livery_adapters.types.oft import BoftSettings, OftSettings, block_size


def skew_symmetric(vectors: Tensor, size: int) -> Tensor:
    """[n, size·(size-1)/2] entries above the diagonal, row by row, to [n, size, size] with Qᵀ = -Q."""
    rows, columns = torch.triu_indices(size, size, 1)
    upper = torch.zeros(vectors.shape[0], size, size)
    upper[:, rows, columns] = vectors.float()
    return upper - upper.mT


def cayley(skew: Tensor) -> Tensor:
    """(I - Q)(I + Q)⁻¹ of every [size, size] block."""
    one = torch.eye(skew.shape[-1])
    rotation: Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
    return rotation


def cayley_series(skew: Tensor, terms: int) -> Tensor:
    """The Neumann series of (I + Q)(I - Q)⁻¹, cut off: I + 2Q + 2Q² + ... + the last power once.

    The sign of Q is the opposite of `cayley`'s. Three terms and four are the same: up to Q³.
    """
    one = torch.eye(skew.shape[-1])
    if terms < 3:
        return one + 2 * (terms - 1) * skew
    # Horner's rule: I + Q(2I + Q(2I + ... Q(2I + Q))), which holds two matrices at a time.
    result = skew
    for _ in range(max(terms, 4) - 2):
        result = skew @ (2 * one + result)
    return one + result


def shortened(skew: Tensor, radius: float) -> Tensor:
    """Every block longer (Frobenius) than `radius` / √blocks shortened to it, as constrained OFT does."""
    limit = radius / skew.shape[0] ** 0.5
    norms = skew.norm(dim=(1, 2), keepdim=True)
    return torch.where(norms <= limit, skew, skew * (limit / norms))


def convert_oft(
    target: TargetTensors, tensors: Tensors, settings: OftSettings, base: BaseWeights
) -> LinearChange | EmbeddingChange:
    """One module's blocks. An embedding's rows are turned after the look-up, so its weight is turned in full."""
    vectors = tensors["oft_embedding_R" if target.kind == "embedding" else "oft_R"]
    size = block_size(vectors.shape[1])
    skew = skew_symmetric(vectors, size)
    if settings.radius is not None:
        skew = shortened(skew, settings.radius)
    blocks = cayley_series(skew, settings.terms) if settings.terms else cayley(skew)
    shape = base.shapes.modules[target.module]
    if target.kind == "embedding":
        weight = base.weight(target.module)
        pieces = wide(weight).view(len(weight), -1, size).transpose(0, 1) @ blocks
        return EmbeddingChange(weight=pieces.transpose(0, 1).flatten(1).to(weight.dtype))
    if settings.shared:
        blocks = blocks.expand(shape.in_features // size, -1, -1)
    return LinearChange(transform=InputTransform(stages=(BlockStage(blocks),)))


def convert_boft(target: TargetTensors, tensors: Tensors, settings: BoftSettings, base: BaseWeights) -> LinearChange:
    """One module's butterfly: PEFT multiplies x by the product of its factors, the last one first."""
    factors = tensors["boft_R"].float()
    blocks = cayley((factors - factors.mT) / 2)
    orders = [butterfly_order(blocks.shape[1], blocks.shape[2], number) for number in range(len(blocks))]
    stages = [BlockStage(own, order) for own, order in zip(blocks, orders, strict=True)]
    return LinearChange(transform=InputTransform(stages=tuple(reversed(stages))), gain=tensors["boft_s"].flatten())


def butterfly_order(count: int, size: int, number: int) -> Tensor | None:
    """Where each input of butterfly factor `number` comes from; it has `count` blocks of `size`.

    Factor i works on groups of 2^i blocks: in each, the half blocks at even places go before those at odd places.
    Returns int64 [features] for `BlockStage.order`, None where nothing moves.
    """
    if number == 0:
        return None
    group = size << number
    halves = torch.arange(group).view(-1, size // 2)
    sorted_once = torch.cat([halves[0::2], halves[1::2]]).flatten()
    permutation = (torch.arange(0, count * size, group)[:, None] + sorted_once).flatten()
    return torch.argsort(permutation)


def check_blocks(manifest: AdapterManifest, tensors: Tensors, base: BaseWeights) -> Tensors:
    """Nothing is shared; only whether the blocks can be made in bearable time. Raises AdapterRefused."""
    settings = manifest.settings
    assert isinstance(settings, OftSettings)
    check_work(
        turning(settings.terms, manifest.targets),
        "unsupported_field",
        "its orthogonal blocks are too large (r or oft_block_size); merge the adapter into its base and serve that, "
        "or train it with smaller blocks",
    )
    return tensors


OFT = Conversion(convert_oft, shared=check_blocks)
BOFT = Conversion(convert_boft)
