"""Types whose ΔW is of full rank: it is computed in full, in fp32, and factorised to the rank that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.canonical import BaseWeights
from livery_adapters.formats.base import Conversion, Dense, Tensors, wide
from livery_adapters.layout import AdapterManifest, TargetTensors
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.dense import FourierSettings, RandLoraSettings, RoadSettings, SupertuningSettings


def hira(target: TargetTensors, tensors: Tensors, settings: None, base: BaseWeights) -> Dense:
    """ΔW = W ⊙ (B·A)."""
    return Dense(wide(base.weight(target.module)) * (tensors["hira_B"].float() @ tensors["hira_A"].float()))


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

    weight, bias = wide(base.weight(target.module)), base.bias(target.module)
    return Dense(turned(weight) - weight, None if bias is None else turned(wide(bias)[:, None]).flatten())


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
    """Entries at their (row, column)."""
    rows, columns = tensors["shira_indices"].long()
    width = base.shapes.modules[target.module].in_features
    if bool(((columns < 0) | (columns >= width)).any()):
        raise _outside(target.module)
    return Dense(_scattered(target.module, rows * width + columns, tensors["shira_weight"], base))


def supertuning(target: TargetTensors, tensors: Tensors, settings: SupertuningSettings, base: BaseWeights) -> Dense:
    """Entries at their place in W read row by row, and an ordinary pair."""
    places, values = tensors["supertuning_indices"].long(), tensors["supertuning_values"]
    delta = _scattered(target.module, places, values, base)
    if settings.rank:
        pair = tensors["supertuning_lora_B"].float() @ tensors["supertuning_lora_A"].float()
        delta = delta + target.scale * pair
    return Dense(delta)


def _scattered(module: str, places: Tensor, values: Tensor, base: BaseWeights) -> Tensor:
    """Zeros with `values` at `places`; like PEFT it adds up those that come twice."""
    shape = base.shapes.modules[module]
    delta = torch.zeros(shape.out_features * shape.in_features)
    if bool(((places < 0) | (places >= len(delta))).any()):
        raise _outside(module)
    return delta.index_add_(0, places, values.float()).view(shape.out_features, shape.in_features)


def _outside(module: str) -> AdapterRefused:
    return AdapterRefused(
        "wrong_shape",
        f"{module}: the places of single entries lie outside the base's weight; use the base it was trained on",
    )


def osf(target: TargetTensors, tensors: Tensors, settings: None, base: BaseWeights) -> Dense:
    """The lowest singular values of W and their vectors give way to trained ones (arXiv 2504.07097)."""
    left, values, right = torch.linalg.svd(wide(base.weight(target.module)), full_matrices=False)
    kept = len(values) - len(tensors["osf_S"])
    before = (left[:, kept:] * values[kept:]) @ right[kept:]
    return Dense((tensors["osf_U"].float() * tensors["osf_S"].float()) @ tensors["osf_V"].float() - before)


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
SUPERTUNING = Conversion(None, supertuning)
OSF = Conversion(None, osf)
