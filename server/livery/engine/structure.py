"""What a model is made of, found by running it twice and watching.

A forward over a handful of tokens shows which linear and embedding modules see the step's rows as they are
(only those may carry adapters: inside routed experts the rows are others), which of them read the same input
(they become one projection group), which norms and fused experts are called once with those rows, and with which
shapes and keywords attention is called per layer. A second one over another number of tokens tells an axis of rows
from one that only happens to be as long, such as that of the heads. Works on a model without its weights too, which
takes no memory (weightless.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.pytorch_utils import Conv1D

from livery.engine.attention import IMPLEMENTED_KEYWORDS, NEUTRAL_KEYWORDS, KVShape
from livery.engine.base import ModelRefused
from livery.engine.quantized import QuantizedLinear
from livery_adapters.base_model import BaseShapes, ExpertsShape, ModuleShape

PROBE = "livery_probe"
# How many tokens a probe runs over, and the rows whose logits it asks for: fewer than all, so that the head stands out.
PROBES: tuple[tuple[int, tuple[int, ...]], ...] = ((7, (2, 3, 6)), (5, (1, 4)))


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """How one layer calls attention: factor of the scores, last tokens a row sees (0: all), cap of scores (0: none)."""

    scaling: float
    window: int
    softcap: float


@dataclass(frozen=True, slots=True)
class ModelStructure:
    """Row-wise modules by dotted path, projection groups, and each layer's KV shape and way to call attention."""

    shapes: BaseShapes
    groups: tuple[tuple[str, ...], ...]  # linear modules that read the same input, in order of call
    head: str | None  # the module that makes logits, when it is a linear one
    kv: tuple[KVShape, ...]
    attention: tuple[AttentionCall, ...]

    @property
    def modules(self) -> Mapping[str, ModuleShape]:
        return self.shapes.modules


MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # batch, head, query and key position -> may look


@dataclass(slots=True)
class _Probe:
    """What one watched forward over `tokens` tokens reported; the head was asked for the rows `kept`."""

    tokens: int
    kept: tuple[int, ...]
    calls: dict[str, list[Tensor]] = field(default_factory=dict)
    plain: dict[str, list[tuple[Tensor, object]]] = field(default_factory=dict)  # input and output of norms
    experts: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)  # rows and experts chosen for them
    layers: list[int] = field(default_factory=list)
    kv: dict[int, KVShape] = field(default_factory=dict)
    attention: dict[int, AttentionCall] = field(default_factory=dict)
    masks: dict[int, tuple[Tensor, MaskFunction]] = field(default_factory=dict)  # by identity of the mask made of it
    unknown_keywords: set[str] = field(default_factory=set)
    foreign_masks: list[int] = field(default_factory=list)  # layers that look elsewhere than causally in their window


class _Foreign(Exception):
    """The model does something that can't be taken over; the message completes "it can't be served: "."""


def is_linear(module: nn.Module) -> bool:
    """Whether adapters and kernels treat the module as y = W·x + b (GPT-2's Conv1D holds W transposed)."""
    return type(module) in (nn.Linear, Conv1D, QuantizedLinear)


def linear_features(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear module."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    assert isinstance(module, nn.Linear | QuantizedLinear)
    return module.in_features, module.out_features


def is_experts(module: nn.Module) -> bool:
    """Whether a module goes through transformers' experts interface, which puts these attributes on it."""
    marks = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated", "_apply_gate")
    return all(hasattr(module, mark) for mark in marks)


def discover(model: nn.Module) -> ModelStructure:
    """Watch forwards of a transformers causal LM. Raises ModelRefused when attention can't be taken over."""
    probes = [_watched(model, tokens, kept) for tokens, kept in PROBES]
    _check_attention(model, probes[0])
    return _structure(model, probes)


def _watched(model: nn.Module, tokens: int, kept: tuple[int, ...]) -> _Probe:
    """Run the model over `tokens` tokens and note what happens. Raises ModelRefused."""
    probe = _Probe(tokens, kept)
    name = type(model).__name__
    config: Any = model.config
    original = config._attn_implementation
    _watching.append(probe)
    with ExitStack() as stack:
        stack.callback(_watching.remove, probe)
        _watch(model, probe, stack)
        model.set_attn_implementation(PROBE)  # type: ignore[operator]
        stack.callback(model.set_attn_implementation, original)  # type: ignore[arg-type]
        device = next(model.parameters()).device
        ids = torch.arange(tokens, device=device)[None]
        rows = torch.tensor(kept, device=device)
        try:
            with torch.no_grad():
                model(input_ids=ids, position_ids=ids, use_cache=False, logits_to_keep=rows, livery=probe)
        except _Foreign as foreign:
            raise ModelRefused(f"{name} can't be served: {foreign}") from foreign
        except TypeError as error:
            raise ModelRefused(f"{name} can't be served: its forward is not that of a decoder: {error}") from error
    return probe


def _check_attention(model: nn.Module, probe: _Probe) -> None:
    """Does every layer's attention do what the paged one does? Raises ModelRefused."""
    name, layers = type(model).__name__, _layers_of(model)
    if sorted(probe.layers) != list(range(layers)):
        raise ModelRefused(
            f"{name} can't be served: its {layers} layers made {len(probe.layers)} calls through transformers' "
            f"attention interface, one per layer is needed; choose a decoder whose every layer is plain attention"
        )
    if probe.unknown_keywords:
        raise ModelRefused(
            f"{name} can't be served: its attention uses {', '.join(sorted(probe.unknown_keywords))}, which the "
            f"paged attention doesn't implement and would silently ignore"
        )
    if probe.foreign_masks:
        raise ModelRefused(
            f"{name} can't be served: layers {probe.foreign_masks} mask attention in another way than causally within "
            f"the window they pass on, which the paged attention would silently ignore"
        )
    if any(shape.k_dim != shape.v_dim for shape in probe.kv.values()):
        raise ModelRefused(
            f"{name} can't be served: its keys and values differ in width, which the paged cache can't hold"
        )


def _layers_of(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.get_text_config().num_hidden_layers)


def _watch(model: nn.Module, probe: _Probe, stack: ExitStack) -> None:
    """Let every module that adapters may change report its calls until the stack unwinds."""
    for path, module in model.named_modules():
        if is_linear(module) or isinstance(module, nn.Embedding):
            hook = module.register_forward_pre_hook(_recorder(probe, path))
            stack.callback(hook.remove)
        elif is_experts(module):
            module.forward = _experts_recorder(probe, path)
            stack.callback(delattr, module, "forward")
        elif dict(module.named_parameters(recurse=False)) and not dict(module.named_children()):
            hook = module.register_forward_hook(_plain_recorder(probe, path))
            stack.callback(hook.remove)


def _structure(model: nn.Module, probes: Sequence[_Probe]) -> ModelStructure:
    head_module = model.get_output_embeddings()  # type: ignore[operator]
    modules: dict[str, ModuleShape] = {}
    head = None
    by_input: dict[int, list[str]] = {}
    named = dict(model.named_modules())
    for path, inputs in probes[0].calls.items():
        module = named[path]
        if not all(_sees_rows(probe, path, module is head_module) for probe in probes):
            continue
        if isinstance(module, nn.Embedding):
            modules[path] = ModuleShape("embedding", module.num_embeddings, module.embedding_dim)
            continue
        transposed = isinstance(module, Conv1D) or (isinstance(module, QuantizedLinear) and module.input_first)
        modules[path] = ModuleShape("linear", *linear_features(module), module.bias is not None, transposed)
        if module is head_module:
            head = path
        by_input.setdefault(id(inputs[0]), []).append(path)
    plain = {path: _parameters(named[path]) for path in probes[0].plain}
    plain = {path: own for path, own in plain.items() if all(_is_plain(probe, path, own) for probe in probes)}
    return ModelStructure(
        shapes=BaseShapes(
            modules,
            plain,
            _experts(named, probes),
            _tied(named, modules),
            backbone=_backbone(model),
            hidden_size=int(model.config.get_text_config().hidden_size),  # type: ignore[union-attr, operator]
        ),
        groups=tuple(tuple(paths) for paths in by_input.values()),
        head=head,
        kv=tuple(probes[0].kv[layer] for layer in range(_layers_of(model))),
        attention=tuple(probes[0].attention[layer] for layer in range(_layers_of(model))),
    )


def _backbone(model: nn.Module) -> str:
    """The path of the model without its head, as transformers names it; empty where it has none of its own."""
    name = str(getattr(model, "base_model_prefix", ""))
    return name if isinstance(getattr(model, name, None), nn.Module) else ""


def _sees_rows(probe: _Probe, path: str, is_head: bool) -> bool:
    """Whether a linear module or an embedding was called once, with the step's rows on the axis after the first."""
    inputs = probe.calls.get(path, [])
    rows = len(probe.kept) if is_head else probe.tokens
    return len(inputs) == 1 and tuple(inputs[0].shape[:2]) == (1, rows)


def _parameters(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.named_parameters(recurse=False)}


def _is_plain(probe: _Probe, path: str, parameters: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a module sees each row as it is and scales or shifts it by parameters of its own last axes: a norm."""
    calls = probe.plain.get(path, [])
    if len(calls) != 1:
        return False
    x, y = calls[0]
    row_wise = tuple(x.shape[:2]) == (1, probe.tokens) and isinstance(y, Tensor) and y.shape == x.shape
    per_row = tuple(x.shape[2:])
    return row_wise and all(shape == per_row[-len(shape) :] for shape in parameters.values())


def _experts(named: Mapping[str, nn.Module], probes: Sequence[_Probe]) -> dict[str, ExpertsShape]:
    """The projections of fused experts that are called once, with the step's rows, by parameter path."""
    found = {}
    for path in probes[0].experts:
        if not all(_routes_rows(probe.experts.get(path, []), probe.tokens) for probe in probes):
            continue
        module: Any = named[path]
        for name in expert_projections(module):
            parameter = getattr(module, name)
            count, *sizes = parameter.shape
            ins, outs = sizes if module.is_transposed else reversed(sizes)
            found[f"{path}.{name}"] = ExpertsShape(count, ins, outs, bool(module.is_transposed))
    return found


def _routes_rows(calls: Sequence[tuple[Tensor, Tensor]], tokens: int) -> bool:
    return len(calls) == 1 and all(tensor.dim() == 2 and len(tensor) == tokens for tensor in calls[0])


def expert_projections(module: Any) -> tuple[str, str]:  # noqa: ANN401 (what the interface decorates has no class)
    """The names of the parameters that hold the experts' first and second projections."""
    return ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"


def _tied(named: Mapping[str, nn.Module], modules: Mapping[str, ModuleShape]) -> dict[str, str]:
    """Linear modules that share their weight with an embedding. By identity: without weights all addresses are one."""
    tables = {id(named[path].weight): path for path, shape in modules.items() if shape.kind == "embedding"}
    linears = [path for path, shape in modules.items() if shape.kind == "linear"]
    linears = [path for path in linears if not isinstance(named[path], QuantizedLinear)]  # which hold their own
    return {path: tables[id(named[path].weight)] for path in linears if id(named[path].weight) in tables}


def _recorder(probe: _Probe, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Keeping the tensor keeps its identity unique until the probe is read.
        probe.calls.setdefault(path, []).append(args[0])

    return record


def _plain_recorder(probe: _Probe, path: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
    def record(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
        x = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else torch.empty(0)
        probe.plain.setdefault(path, []).append((x, output))

    return record


def _experts_recorder(probe: _Probe, path: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Stands in for an experts module: what it computes isn't needed here."""

    def record(x: Tensor, chosen: Tensor, _: Tensor) -> Tensor:
        probe.experts.setdefault(path, []).append((x, chosen))
        return torch.zeros_like(x)

    return record


def _probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    livery: _Probe | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **keywords: object,
) -> tuple[Tensor, None]:
    """Report how a layer calls attention; the result only has the right shape."""
    if livery is None:
        raise _Foreign("it drops unknown keywords before attention, so no step context can reach it")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise _Foreign(f"attention module {type(module).__name__} has no layer_idx, so its cache is unknown")
    livery.layers.append(int(layer))
    livery.kv[int(layer)] = KVShape(key.shape[1], key.shape[3], value.shape[3])
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    livery.attention[int(layer)] = AttentionCall(scale, sliding_window or 0, softcap or 0.0)
    if attention_mask is not None and not _is_causal(livery, attention_mask, sliding_window):
        livery.foreign_masks.append(int(layer))
    known = IMPLEMENTED_KEYWORDS | NEUTRAL_KEYWORDS
    livery.unknown_keywords |= {name for name, used in keywords.items() if used is not None and name not in known}
    shared = query.shape[1] // value.shape[1]
    return value.repeat_interleave(shared, dim=1).transpose(1, 2).contiguous(), None


def _is_causal(probe: _Probe, mask: Tensor, window: object) -> bool:
    """Whether a layer's mask is the causal one within the sliding window that the layer passes on.

    Asked of the mask's own function, far beyond the probe's few tokens: windows and chunks show only there.
    """
    if id(mask) not in probe.masks:
        return False
    _, function = probe.masks[id(mask)]
    width = window if isinstance(window, int) and window > 0 else None
    near = (-1, 0, 1, 2, *(2**power + off for power in range(2, 17) for off in (-1, 0, 1)))
    distances = sorted({*near, *((width - 1, width, width + 1) if width else ())})
    zero = torch.tensor(0)
    for query in (131_071, 200_001):
        for distance in distances:
            sees = bool(function(zero, zero, torch.tensor(query), torch.tensor(query - distance)))
            if sees != (distance >= 0 and (width is None or distance < width)):
                return False
    return True


_watching: list[_Probe] = []  # the mask interface is told no keyword of the forward, so the probe is found here


def _probe_mask(*, mask_function: MaskFunction, **_: object) -> Tensor:
    """A stand-in for the mask whose identity leads back to the function that defines it."""
    tokens = _watching[-1].tokens
    mask = torch.ones((1, 1, tokens, tokens), dtype=torch.bool)
    for probe in _watching:
        probe.masks[id(mask)] = (mask, mask_function)
    return mask


AttentionInterface.register(PROBE, _probe_attention)
AttentionMaskInterface.register(PROBE, _probe_mask)
