"""VeRA and PVeRA: ΔW = diag(b)·B·diag(d)·A, where A and B are cut out of two matrices that all modules share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from livery_adapters.canonical import BaseWeights, LinearChange, SharedBasis
from livery_adapters.formats.base import Conversion, Tensors
from livery_adapters.layout import AdapterManifest, TargetTensors
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.vera import VeraSettings


def shared(manifest: AdapterManifest, tensors: Tensors, base: BaseWeights) -> Tensors:
    """A [means·rank, widest input] and B [widest output, rank]: those of the file, or drawn from its seed."""
    settings = manifest.settings
    assert isinstance(settings, VeraSettings)
    modules = [base.shapes.modules[target.module] for target in manifest.targets]
    a_shape = (settings.rank * settings.means, max(module.in_features for module in modules))
    b_shape = (max(module.out_features for module in modules), settings.rank)
    if not settings.saved:
        _refuse_projections(tensors)
        return _drawn(settings, a_shape, b_shape)
    for name, least in (("A", a_shape), ("B", b_shape)):
        _check_projection(f"{settings.prefix}_{name}", tensors.get(f"{settings.prefix}_{name}"), least)
    return tensors


def _refuse_projections(tensors: Tensors) -> None:
    if tensors:
        raise AdapterRefused(
            "bad_field",
            f"save_projection is false and the file holds {' and '.join(sorted(tensors))}, which PEFT would ignore; "
            "set save_projection to true",
        )


def _check_projection(name: str, tensor: Tensor | None, least: tuple[int, int]) -> None:
    if tensor is None:
        raise AdapterRefused(
            "missing_half",
            f"save_projection is true and the file has no base_model.{name}; save the adapter again, or set it to "
            "false if the matrices are those of projection_prng_key",
        )
    # Larger is fine: PEFT cuts out what a module needs. The rank must be the one.
    rank, width = (0, 1) if name.endswith("A") else (1, 0)
    fits = tensor.dim() == 2 and tensor.shape[rank] == least[rank] and tensor.shape[width] >= least[width]
    if not fits:
        raise AdapterRefused(
            "wrong_shape",
            f"{name} is {list(tensor.shape)} and at least {list(least)} is needed; the two files don't belong together",
        )


def _drawn(settings: VeraSettings, a_shape: tuple[int, int], b_shape: tuple[int, int]) -> dict[str, Tensor]:
    """Uniform within ±√(6 / fan in) (He et al., arXiv 1502.01852) from torch's CPU generator, first A, then B."""
    generator = torch.Generator().manual_seed(settings.seed)
    return {
        f"{settings.prefix}_{name}": torch.empty(shape).uniform_(
            -(bound := math.sqrt(6 / shape[1])), bound, generator=generator
        )
        for name, shape in (("A", a_shape), ("B", b_shape))
    }


def convert_module(target: TargetTensors, tensors: Tensors, settings: VeraSettings, base: BaseWeights) -> LinearChange:
    """One module's two vectors and views of the shared matrices."""
    shape, name = base.shapes.modules[target.module], settings.prefix
    basis = SharedBasis(
        a=tensors[f"{name}_A"][: settings.rank, : shape.in_features],
        b=tensors[f"{name}_B"][: shape.out_features],
        rank_gain=tensors[f"{name}_lambda_d"][: settings.rank],
        out_gain=tensors[f"{name}_lambda_b"],
    )
    return LinearChange(deltas=(basis,))


CONVERSION = Conversion(convert_module, shared=shared)
