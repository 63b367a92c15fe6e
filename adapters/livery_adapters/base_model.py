"""The base model as adapters see it: which modules exist and their shapes. No weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """One module that adapters may target. For an embedding `in_features` is the number of rows.

    `input_first` says how a linear module's weight lies in its files: [in_features, out_features], as GPT-2's Conv1D
    has it, or else [out_features, in_features].
    """

    kind: Literal["linear", "embedding"]
    in_features: int
    out_features: int
    has_bias: bool = False
    input_first: bool = False


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """One parameter that holds a weight per expert: for every expert, in_features -> out_features.

    `input_first` says how the parameter lies in memory: [experts, in_features, out_features], as gpt-oss has it,
    or else [experts, out_features, in_features].
    """

    experts: int
    in_features: int
    out_features: int
    input_first: bool = False


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """Everything of a base model that an adapter may change, by dotted path.

    `plain` are modules that work on one token's row at a time and are neither linear nor an embedding (norms): the
    shapes of their parameters by name. `experts` are keyed by the path of the parameter itself, such as
    `model.layers.0.mlp.experts.gate_up_proj`. `tied` maps a head to the embedding whose weight it shares. `backbone` is
    the path of the model without its language head (AutoModel), whose last hidden state is `hidden_size` wide; empty
    and 0 where they aren't known.
    """

    modules: Mapping[str, ModuleShape]
    plain: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    experts: Mapping[str, ExpertsShape] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    backbone: str = ""
    hidden_size: int = 0


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model's public name, content digest (SHA-256 hex) and what of it adapters may change."""

    name: str
    digest: str
    shapes: BaseShapes

    @property
    def modules(self) -> Mapping[str, ModuleShape]:
        return self.shapes.modules
