"""Whether a model is a decoder of the Llama family, and which of its modules do what.

Recognised by exact classes and by what lies in them: whatever a class adds, a configuration scales or somebody has
hooked in leaves the model to its own forward. What is recognised still has to pass the check at load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from livery.engine.lora.embedding import AdapterEmbedding
from livery.engine.lora.linear import GroupedLinear, ProjectionGroup
from livery.engine.structure import AttentionCall, ModelStructure

FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}


class NotRecognised(Exception):
    """The model isn't exactly such a decoder; the message says what is different."""


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm of the last axis. Adapters name it by `path`."""

    path: str
    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """x += output(attention(rope(norm(qkv(input_norm(x)))))); x += down(silu(gate) · up)(post_norm(x))."""

    input_norm: Norm
    qkv: ProjectionGroup
    head_norms: tuple[Norm, Norm] | None  # of q and k
    attention: AttentionCall
    output: ProjectionGroup
    post_norm: Norm
    gate_up: ProjectionGroup
    down: ProjectionGroup


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """Embedding, layers, final norm and head, and the angles of every position, [positions, dim / 2] each."""

    embedding: AdapterEmbedding
    layers: tuple[DecoderLayer, ...]
    norm: Norm
    head: ProjectionGroup
    heads: int
    kv_heads: int
    dim: int
    cos: Tensor
    sin: Tensor


def recognise(model: nn.Module, structure: ModelStructure, max_model_len: int, dtype: torch.dtype) -> DecoderParts:
    """The parts of a model whose modules take adapters already. Raises NotRecognised."""
    if type(model) not in FAMILY:
        raise NotRecognised(f"{type(model).__name__} is not one of {', '.join(c.__name__ for c in FAMILY)}")
    _children(model, {"model", "lm_head"})
    inner: Any = model.get_submodule("model")
    _children(inner, {"embed_tokens", "layers", "norm", "rotary_emb"})
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotRecognised(f"{path} has hooks")
    if type(inner.embed_tokens) is not AdapterEmbedding or inner.embed_tokens.scale is not None:
        raise NotRecognised("its embedding is not a plain one")
    groups = _Groups(model, structure)
    kv = structure.kv[0]
    if len(set(structure.kv)) > 1 or kv.k_dim != kv.v_dim:
        raise NotRecognised("its layers differ in their keys and values")
    dim = kv.k_dim
    cos, sin = _angles(inner.rotary_emb, max_model_len, dim, dtype)
    layers = tuple(_layer(model, index, structure, groups) for index in range(len(structure.kv)))
    return DecoderParts(
        embedding=inner.embed_tokens,
        layers=layers,
        norm=_norm(model, "model.norm"),
        head=groups.of(("lm_head",)),
        heads=structure.modules["model.layers.0.self_attn.q_proj"].out_features // dim,
        kv_heads=kv.heads,
        dim=dim,
        cos=cos,
        sin=sin,
    )


class _Groups:
    """Projection groups by their members' paths."""

    def __init__(self, model: nn.Module, structure: ModelStructure) -> None:
        self._model = model
        self._members = set(structure.groups)

    def of(self, paths: tuple[str, ...]) -> ProjectionGroup:
        module = self._model.get_submodule(paths[0])
        if paths not in self._members or type(module) is not GroupedLinear:
            raise NotRecognised(f"{', '.join(paths)} are not one product of the same rows")
        return module.group


def _layer(model: nn.Module, index: int, structure: ModelStructure, groups: _Groups) -> DecoderLayer:
    path = f"model.layers.{index}"
    attention, mlp = f"{path}.self_attn", f"{path}.mlp"
    _children(model.get_submodule(path), _LAYER)
    has_norms = set(dict(model.get_submodule(attention).named_children())) == _ATTENTION | _HEAD_NORMS
    _children(model.get_submodule(attention), _ATTENTION | _HEAD_NORMS if has_norms else _ATTENTION)
    _children(model.get_submodule(mlp), {"gate_proj", "up_proj", "down_proj", "act_fn"})
    activation = model.get_submodule(f"{mlp}.act_fn")
    if type(activation).__name__ not in ("SiLU", "SiLUActivation"):
        raise NotRecognised(f"its activation is {type(activation).__name__}, not SiLU")
    call = structure.attention[index]
    if call.softcap:
        raise NotRecognised("it caps attention scores")
    return DecoderLayer(
        input_norm=_norm(model, f"{path}.input_layernorm"),
        qkv=groups.of((f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")),
        head_norms=(_norm(model, f"{attention}.q_norm"), _norm(model, f"{attention}.k_norm")) if has_norms else None,
        attention=call,
        output=groups.of((f"{attention}.o_proj",)),
        post_norm=_norm(model, f"{path}.post_attention_layernorm"),
        gate_up=groups.of((f"{mlp}.gate_proj", f"{mlp}.up_proj")),
        down=groups.of((f"{mlp}.down_proj",)),
    )


def _children(module: nn.Module, expected: set[str]) -> None:
    found: Mapping[str, nn.Module] = dict(module.named_children())
    if set(found) != expected:
        odd = sorted(set(found) ^ expected)
        raise NotRecognised(f"{type(module).__name__} has or lacks {', '.join(odd)}")


def _norm(model: nn.Module, path: str) -> Norm:
    module: Any = model.get_submodule(path)
    if not type(module).__name__.endswith("RMSNorm") or [name for name, _ in module.named_parameters()] != ["weight"]:
        raise NotRecognised(f"{path} is a {type(module).__name__}, not an RMSNorm")
    return Norm(path, module.weight.detach(), float(module.variance_epsilon))


def _angles(rotary: nn.Module, positions: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions, as the model's own module gives them; computed once, for good."""
    device = next(rotary.buffers()).device
    with torch.inference_mode():
        cos, sin = rotary(
            torch.zeros((1, 1, 1), dtype=dtype, device=device), torch.arange(positions, device=device)[None]
        )
    half = dim // 2
    for table in (cos, sin):
        if table.shape != (1, positions, dim) or not torch.equal(table[..., :half], table[..., half:]):
            raise NotRecognised("its rotary positions turn other pairs than (i, i + dim / 2) of a head")
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
