"""All layers of a decoder in one native call: what decoder.cpp is told, once per model and once per step."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

from torch import Tensor

from livery.engine.attention import AttentionBatch, LayerCache
from livery.engine.decoder.parts import DecoderLayer, DecoderParts
from livery.engine.kernels.native import NativeKernels
from livery.engine.kernels.weights import LAYOUTS, GridWeight, PackedWeight
from livery.engine.lora.linear import ProjectionGroup

_INT, _FLOAT = ctypes.c_int64, ctypes.c_float


class _Projection(ctypes.Structure):
    """Mirrors `Projection` in decoder.cpp, as the following two do their namesakes."""

    _fields_ = tuple((name, _INT) for name in ("weight", "layout", "bias", "out", "in_", "group"))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _INT) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, _FLOAT) for name in ("input_eps", "post_eps", "q_eps", "k_eps")),
        *((name, _Projection) for name in ("qkv", "output", "gate_up", "down")),
        *((name, _INT) for name in ("k_cache", "v_cache", "window")),
        ("scaling", _FLOAT),
    )


class _Step(ctypes.Structure):
    _fields_ = tuple(
        (name, _INT)
        for name in (
            *("layers", "n_layers", "rows", "hidden", "heads", "kv_heads", "dim", "features", "block_size", "blocks"),
            *("x", "wide", "normed", "cos", "sin", "slots", "tables", "table_row", "max_blocks", "starts", "lens"),
            *("sequences", "adapters", "n_adapters"),
        )
    )


class NativeLayers:
    """The layers of one model, for steps whose adapters have low-rank deltas, gains and biases in them only."""

    def __init__(self, parts: DecoderParts, caches: Sequence[LayerCache], kernels: NativeKernels) -> None:
        """Everything is fp32 on the CPU; see `serves`."""
        self._kept = parts, caches  # alive, as the structs hold addresses only
        self._kernels = kernels
        layers = [_layer(layer, cache) for layer, cache in zip(parts.layers, caches, strict=True)]
        self._layers = (_Layer * len(layers))(*layers)
        first = parts.layers[0]
        self._hidden = first.output.weight.out_features
        self._features = first.gate_up.weight.out_features // 2
        self._widest = max(group.weight.out_features for group in _groups(first))
        self._widest_input = max(self._hidden, self._features, parts.heads * parts.dim)

    @classmethod
    def serves(cls, parts: DecoderParts) -> bool:
        """Whether every product of the layers is one of the native kernels'."""
        groups = (group for layer in parts.layers for group in _groups(layer))
        return all(isinstance(group.weight, PackedWeight | GridWeight) for group in groups)

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, adapters: array[int], batch: AttentionBatch) -> None:
        """Advance the stream x [rows, hidden] through all layers, in place.

        cos, sin: [rows, dim / 2]; adapters: triples of first row, last row + 1 and the address of the adapter's
        table of changes. Raises ValueError when slots or tables don't fit the cache.
        """
        parts, cache = self._kept[0], batch.caches[0]
        rows = x.shape[0]
        wide, normed = x.new_empty((rows, self._widest)), x.new_empty((rows, self._widest_input))
        step = _Step(
            *(ctypes.addressof(self._layers), len(self._layers), rows, self._hidden),
            *(parts.heads, parts.kv_heads, parts.dim, self._features, cache.k.shape[1], cache.k.shape[0]),
            *(tensor.data_ptr() for tensor in (x, wide, normed, cos, sin, batch.slots, batch.tables)),
            *(batch.tables.stride(0), batch.tables.shape[1]),
            *(0 if batch.starts is None else batch.starts.data_ptr(), batch.lens.data_ptr(), len(batch.lens)),
            *(adapters.buffer_info()[0], len(adapters) // 3),
        )
        self._kernels.decoder(ctypes.addressof(step))


def _groups(layer: DecoderLayer) -> tuple[ProjectionGroup, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _layer(layer: DecoderLayer, cache: LayerCache) -> _Layer:
    norms = (layer.input_norm, layer.post_norm, *(layer.head_norms or (None, None)))
    return _Layer(
        *(0 if norm is None else norm.weight.data_ptr() for norm in norms),
        *(0.0 if norm is None else norm.eps for norm in norms),
        *map(_projection, _groups(layer)),
        *(cache.k.data_ptr(), cache.v.data_ptr(), layer.attention.window, layer.attention.scaling),
    )


def _projection(group: ProjectionGroup) -> _Projection:
    weight = group.weight
    assert isinstance(weight, PackedWeight | GridWeight)
    layout, bias = LAYOUTS.index(weight.layout), 0 if group.bias is None else group.bias.data_ptr()
    return _Projection(weight.panels.data_ptr(), layout, bias, weight.out_features, weight.in_features, group.index)
