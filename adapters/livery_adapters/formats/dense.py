"""Types whose ΔW is of full rank: it is computed in full, in fp32, and factorised to the rank that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.canonical import BaseWeights
from livery_adapters.formats.base import Conversion, Dense, Tensors
from livery_adapters.layout import AdapterManifest, TargetTensors
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.dense import FourierSettings, RandLoraSettings, RoadSettings


def hira(target: TargetTensors, tensors: Tensors, settings: None, base: BaseWeights) -> Dense:
    """ΔW = W ⊙ (B·A)."""
    return Dense(base.weight(target.module).float() * (tensors["hira_B"].float() @ tensors["hira_A"].float()))


def c3a(target: TargetTensors, tensors: Tensors, settings: None, base: BaseWeights) -> Dense:
    """Entry (k, j) of the block at (m, n) is kernel[m, n, (j - k) mod size] / in_features (arXiv 2407.19342)."""
    kernel = tensors["c3a_kernel"].float()
    rows, columns, size = kernel.shape
    places = torch.arange(size)
    blocks = kernel[:, :, (places - places[:, None]) % size]  # [m, n, k, j]
    return Dense(blocks.transpose(1, 2).reshape(rows * size, columns * size) / (columns * size))


def fourier(target: TargetTensors, tensors: Tensors, settings: FourierSettings, base: BaseWeights) -> Dense:
    """ΔW is the real part of the inverse transform of a sparse spectrum (arXiv 2405.03003)."""
    shape, values = base.shapes.modules[target.module], tensors["fourierft_spectrum"].float()
    spectrum = torch.zeros(shape.out_features * shape.in_features)
    places = torch.randperm(len(spectrum), generator=torch.Generator().manual_seed(settings.seed))[: len(values)]
    spectrum[places] = values
    return Dense(target.scale * torch.fft.ifft2(spectrum.view(shape.out_features, shape.in_features)).real)


def road(target: TargetTensors, tensors: Tensors, settings: RoadSettings, base: BaseWeights) -> Dense:
    """R·(W·x + b): in every group, output i of the first half is paired with i of the second (arXiv 2409.00119)."""
    own, other = _road_columns(tensors["road_theta"].float(), tensors["road_alpha"].float(), settings)

    def turned(outputs: Tensor) -> Tensor:
        first, second = outputs.view(-1, 2, settings.group // 2, outputs.shape[1]).unbind(1)
        crossed = torch.stack([-second, first], dim=1).reshape(outputs.shape)
        return own[:, None] * outputs + other[:, None] * crossed

    weight, bias = base.weight(target.module).float(), base.bias(target.module)
    return Dense(turned(weight) - weight, None if bias is None else turned(bias.float()[:, None]).flatten())


def _road_columns(angles: Tensor, lengths: Tensor, settings: RoadSettings) -> tuple[Tensor, Tensor]:
    """Per output, the factor of itself and that of its partner."""
    if settings.sharing == 1:
        angles, lengths = (_doubled(values, settings.group // 2) for values in (angles, lengths))
    if settings.sharing < 4:
        return lengths * angles.cos(), lengths * angles.sin()
    (own, other), (own_length, other_length) = (
        values.view(-1, 2, settings.group).unbind(1) for values in (angles, lengths)
    )
    return (own_length * own.cos()).flatten(), (other_length * other.sin()).flatten()


def _doubled(values: Tensor, half: int) -> Tensor:
    return values.view(-1, 1, half).expand(-1, 2, -1).flatten()


def shira(target: TargetTensors, tensors: Tensors, settings: None, base: BaseWeights) -> Dense:
    """Entries at their places; PEFT adds up those that come twice."""
    shape, places = base.shapes.modules[target.module], tensors["shira_indices"].long()
    limits = torch.tensor([[shape.out_features], [shape.in_features]])
    if not bool(((places >= 0) & (places < limits)).all()):
        raise AdapterRefused(
            "wrong_shape",
            f"{target.module}: shira_indices point outside {shape.out_features} x {shape.in_features}; use the base "
            "it was trained on",
        )
    delta = torch.zeros(shape.out_features, shape.in_features)
    return Dense(delta.index_put_((places[0], places[1]), tensors["shira_weight"].float(), accumulate=True))


# -- RandLoRA (arXiv 2502.00987) ---------------------------------------------------------------------------


def random_matrices(manifest: AdapterManifest, tensors: Tensors, base: BaseWeights) -> Tensors:
    """A [rank, 1, smaller] and B [larger, bases, rank], for the widest module. Raises AdapterRefused."""
    settings = manifest.settings
    assert isinstance(settings, RandLoraSettings)
    shapes = [base.shapes.modules[target.module] for target in manifest.targets]
    widest = (max(shape.in_features for shape in shapes), max(shape.out_features for shape in shapes))
    smaller, larger, rank = min(widest), max(widest), settings.rank
    bases = -(-smaller // rank)
    for name, needed in (("randlora_A", (rank, 1, smaller)), ("randlora_B", (larger, bases, rank))):
        there = tensors.get(name)
        if there is None or there.shape != needed:
            raise AdapterRefused(
                "wrong_shape",
                f"save_projection is true and base_model.{name} is {'missing' if there is None else list(there.shape)}"
                f"; {list(needed)} is needed: save the adapter again",
            )
    return tensors


def randlora(target: TargetTensors, tensors: Tensors, settings: RandLoraSettings, base: BaseWeights) -> Dense:
    """The sum over all bases, scaled on the smaller side of W.

    PEFT flattens one matrix as (rank, base) and the other as (base, rank): a fixed shuffle of the random pairs.
    """
    shape = base.shapes.modules[target.module]
    smaller, larger = sorted((shape.in_features, shape.out_features))
    strength, gain = tensors["randlora_lambda"].float(), tensors["randlora_gamma"].float()
    scaled = strength[:, :, None] * tensors["randlora_A"].float()[:, :, :smaller] * gain
    random = tensors["randlora_B"].float()[:larger, : gain.shape[0]]
    product = random.flatten(1) @ scaled.flatten(0, 1)  # [larger, smaller]
    return Dense(target.scale * (product if smaller == shape.in_features else product.T))


HIRA = Conversion(None, hira)
C3A = Conversion(None, c3a)
FOURIERFT = Conversion(None, fourier)
ROAD = Conversion(None, road)
SHIRA = Conversion(None, shira)
RANDLORA = Conversion(None, randlora, random_matrices)
