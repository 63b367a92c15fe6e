"""A base model from its config.json: the linear modules, how many bytes they are held in, what a token of KV takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from livery.bench.physics import Base
from livery.engine.lengths import scaled_length
from livery.scale.plan.refusal import PlanRefused, nearest
from livery_adapters.base_model import BaseShapes, ModuleShape
from livery_loadtest.checked import load_yaml

Count = Annotated[int, Meta(ge=1, le=10_000_000)]

# Decoders whose layers are q, k, v and o around attention and a gated MLP of gate, up and down.
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "olmo2", "smollm3"),
    *("gemma", "gemma2", "gemma3_text"),
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = TARGETS[:4]
NAMED_TARGETS = {"all-linear": TARGETS, "attention": ATTENTION, "mlp": TARGETS[4:]}

# Bytes a weight takes. Codes of 8 and 4 bits come with fp16 scales per 32 weights, those of 4 bits with least values
# too, as Livery's own engine and GGUF hold them.
WEIGHTS = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0 + 2 / 32, "int4": 0.5 + 4 / 32}
DTYPES = {"float32": 4, "bfloat16": 2, "fp8": 1}


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a config.json says of a model's size; its other fields don't matter here."""

    model_type: str
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    tie_word_embeddings: bool = False
    max_position_embeddings: Count = 4096
    parameters: int = 0  # in the shipped table: what its source tells
    source: str = ""
    name: str = ""

    @property
    def heads_dim(self) -> int:
        """The width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    def shapes(self) -> BaseShapes:
        """The modules that weights lie in: seven linear ones a layer, the embedding and the head."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.heads_dim, self.kv_heads * self.heads_dim
        of_layer = dict(
            zip(
                TARGETS,
                (
                    *((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)),
                    *((hidden, inner), (hidden, inner), (inner, hidden)),
                ),
                strict=True,
            )
        )
        modules = {
            f"model.layers.{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}": ModuleShape(
                "linear", ins, outs
            )
            for layer in range(self.num_hidden_layers)
            for name, (ins, outs) in of_layer.items()
        }
        modules["model.embed_tokens"] = ModuleShape("embedding", self.vocab_size, hidden)
        modules["lm_head"] = ModuleShape("linear", hidden, self.vocab_size)
        tied = {"lm_head": "model.embed_tokens"} if self.tie_word_embeddings else {}
        return BaseShapes(modules, tied=tied, hidden_size=hidden)

    def linear_weights(self) -> int:
        """Numbers in linear modules, the head among them."""
        return sum(s.in_features * s.out_features for s in self.shapes().modules.values() if s.kind == "linear")


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model as it lies in memory: `held_bytes` of weights, of which a step reads `base.weight_bytes`."""

    base: Base
    held_bytes: float


def held_model(
    model: ModelShape, weights: str, itemsize: int, kv_itemsize: int, targets: Sequence[str], adapter_itemsize: int
) -> HeldModel:
    """The costs of a model whose linear modules are held as `weights`, all else in `itemsize` bytes a number.

    `targets` are the modules that adapters change, in `adapter_itemsize` bytes a number.
    """
    shapes = model.shapes()
    table = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    held = int(model.linear_weights() * WEIGHTS[weights]) + table * itemsize
    layers, dim = model.num_hidden_layers, model.heads_dim
    base = Base.of(
        shapes,
        held,
        kv_bytes_per_token=2 * layers * model.kv_heads * dim * kv_itemsize,
        attention_flops_per_key=4 * layers * model.num_attention_heads * dim,
        embedding_itemsize=itemsize,
        targets=targets,
        adapter_itemsize=adapter_itemsize,
    )
    return HeldModel(base, held)


@cache
def known_models() -> dict[str, ModelShape]:
    """The shipped table, by name."""
    text = (files("livery.scale.plan") / "data" / "models.yaml").read_text(encoding="utf-8")
    table = msgspec.convert(load_yaml(text, "models.yaml"), dict[str, ModelShape])
    return {name: msgspec.structs.replace(one, name=name) for name, one in table.items()}


def model_shape(name: str) -> ModelShape:
    """The model of that name, of a config.json or of a directory with one. Raises PlanRefused."""
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if path.is_file():
        return _from_config(path)
    if name.endswith(".json"):
        raise PlanRefused(f"--model {name}: no such file; name a config.json")
    found = known_models().get(name.lower()) or known_models().get(_plain(name))
    if found is None:
        remedy = nearest(_plain(name), known_models())
        raise PlanRefused(f"--model {name}: unknown; {remedy} Or give the path of its config.json")
    return found


def _plain(name: str) -> str:
    """A hub id as the table calls it: without organisation, `-instruct` and the like."""
    short = name.lower().rpartition("/")[2]
    for end in ("-instruct", "-hf", "-base", "-chat", "-it"):
        short = short.removesuffix(end)
    return short


def _from_config(path: Path) -> ModelShape:
    where = f"--model {path}"
    try:
        found: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PlanRefused(f"{where}: {error}; name the config.json of a model") from error
    config = found.get("text_config", found) if isinstance(found, Mapping) else found
    if not isinstance(config, Mapping) or "hidden_size" not in config:
        raise PlanRefused(f"{where}: no hidden_size; name the config.json of a decoder such as Llama")
    experts = [name for name in EXPERTS if config.get(name)]
    if experts:
        raise PlanRefused(f"{where}: has {experts[0]}, and mixtures of experts aren't planned for; plan a dense model")
    family = config.get("model_type", "")
    if family not in FAMILIES:
        raise PlanRefused(
            f"{where}: model_type {family!r} has layers that aren't known here; {nearest(family, FAMILIES)}"
        )
    try:
        shape = msgspec.convert(config, ModelShape)
    except msgspec.ValidationError as error:
        raise PlanRefused(f"{where}: {error}; give a model's own config.json") from error
    longest = scaled_length(shape.max_position_embeddings, config)
    name = path.resolve().parent.name
    return msgspec.structs.replace(shape, name=name, source=path.name, parameters=0, max_position_embeddings=longest)


def target_modules(text: str) -> tuple[str, ...]:
    """`all-linear`, `attention`, `mlp`, or modules by name, as in `q_proj,v_proj`. Raises PlanRefused."""
    if text in NAMED_TARGETS:
        return NAMED_TARGETS[text]
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in TARGETS:
            raise PlanRefused(f"--targets {text}: {name} is unknown; {nearest(name, [*TARGETS, *NAMED_TARGETS])}")
    if not names:
        raise PlanRefused(
            f"--targets {text!r} names no module; give {', '.join(NAMED_TARGETS)} or {', '.join(TARGETS)}"
        )
    return tuple(dict.fromkeys(names))
