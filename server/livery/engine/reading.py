"""Turns the files of an adapter into packed weights, on the loader's thread: read, convert, compose, measure, pack.

Touches nothing that the step loop writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from livery.engine.base import AdapterPart, AdapterRef
from livery.engine.images import AdapterImage
from livery.engine.lora.linear import GroupedLinear
from livery.engine.stored import StoredManifests
from livery_adapters.base_model import BaseModel, BaseShapes
from livery_adapters.canonical import CanonicalAdapter
from livery_adapters.compose import compose
from livery_adapters.effect import AdapterEffect
from livery_adapters.formats import convert
from livery_adapters.identity import converted_digest
from livery_adapters.measure import BaseNorms, measure
from livery_adapters.refusal import AdapterRefused
from livery_adapters.sums import Sums

Pack = Callable[[CanonicalAdapter, AdapterEffect], AdapterImage]


class HeldWeights:
    """The base's weights as conversions ask for them (BaseWeights), wherever the engine holds them."""

    def __init__(self, model: nn.Module, shapes: BaseShapes, linears: Mapping[str, GroupedLinear]) -> None:
        self._model = model
        self._linears = linears
        self.shapes = shapes

    def weight(self, module: str) -> Tensor:
        """[out_features, in_features] or [vocabulary, dim]; a copy where the kernels hold it packed."""
        weight = self._model.get_submodule(module).weight
        assert isinstance(weight, Tensor)
        return weight

    def bias(self, module: str) -> Tensor | None:
        """[out_features], or None where the base has none."""
        return self._linears[module].bias

    def parameter(self, path: str) -> Tensor:
        """Any other parameter by its dotted path, as it lies in memory."""
        return self._model.get_parameter(path).detach()


class AdapterReader:
    """Reads adapters for one base model. For one thread."""

    def __init__(self, base: BaseModel, weights: HeldWeights, pack: Pack, sums: Sums) -> None:
        self._manifests = StoredManifests(base)
        self._sums = sums
        self._weights = weights
        self._norms = BaseNorms(weights)
        self._pack = pack

    def read(self, adapter: AdapterRef) -> AdapterImage:
        """Raises AdapterRefused, or OSError when the files are gone."""
        parts = [(self._converted(part), part.weight) for part in adapter.parts]
        canonical, weight = parts[0]
        if len(parts) > 1 or weight != 1:
            canonical = compose(parts, adapter.digest)
        canonical = replace(canonical, digest=adapter.digest)  # of the converted form, which residency goes by
        return self._pack(canonical, measure(canonical, self._weights, self._norms, self._sums))

    def _converted(self, part: AdapterPart) -> CanonicalAdapter:
        manifest = self._manifests.read(part)
        converted = convert(Path(part.path), manifest, self._weights, part.approximate, self._sums)
        if converted.added_tokens != part.added_tokens:
            raise AdapterRefused(
                "activation_failed",
                f"the stored files of {part.digest[:12]} have {converted.added_tokens} tokens beyond the base's, and "
                f"{part.added_tokens} were told of; add the adapter again",
            )
        # Of the same files at another rank it is another adapter, also as a part of a sum.
        return replace(converted, digest=converted_digest(part.digest, part.approximate))
