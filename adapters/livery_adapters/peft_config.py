"""adapter_config.json of a LoRA adapter: which fields exist, what they do to the forward, what we accept.

Every field of PEFT's LoraConfig is in exactly one of four places: read here, harmless at inference, refused
unless neutral, or checked by its own rule. Any other field is refused unless it is empty: a later PEFT may have
given it a meaning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from livery_adapters.patterns import MAX_REPEATING, NamePattern, parse_pattern
from livery_adapters.refusal import AdapterRefused

# What the forward needs; read by `parse_lora_config`.
READ = frozenset(
    {
        "peft_type",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
        "ensure_weight_tying",
    }
)
# Only training, merging, bookkeeping, or settings of an initialisation or variant that its own switch turns on.
HARMLESS = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "revision",
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
    }
)
# Change the forward, or the base it is meant for; a neutral value means they are off.
UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules",
    "lora_bias": "a bias on lora_B",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on parameters (fused experts)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "Monte Carlo LoRA",
    "megatron_config": "Megatron layers",
}
EXACT_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})  # they leave the base's weights alone
RESIDUAL_INITS = ("pissa", "olora", "corda", "lora_ga")  # they train against a base with weights taken out

_DOTTED = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MAX_PATTERNS = 2048


@dataclass(frozen=True, slots=True)
class TargetRule:
    """Which modules the configuration names. `names` is None for a string, which is never run as a pattern."""

    names: frozenset[str] | None
    excluded: frozenset[str]
    layers: frozenset[int] | None
    layer_lists: tuple[str, ...]

    def covers(self, module: str) -> bool:
        """True when PEFT would put an adapter on `module`, as far as the lists say."""
        if _ends_with_any(module, self.excluded):
            return False
        if self.names is None or module in self.names:
            return True
        if not _ends_with_any(module, self.names):
            return False
        return self.layers is None or self._layer(module) in self.layers

    def _layer(self, module: str) -> int | None:
        """The first numbered part of the path, after one of `layer_lists` where given."""
        parts = module.split(".")
        for index in range(1 if self.layer_lists else 2, len(parts) - 1):
            if parts[index].isdecimal() and (not self.layer_lists or self._is_list(parts[:index])):
                return int(parts[index])
        return None

    def _is_list(self, before: list[str]) -> bool:
        path = "." + ".".join(before)
        return any(path.endswith("." + name) for name in self.layer_lists)


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A LoRA configuration, validated. Patterns keep the file's order: the first that matches counts."""

    base_name: str | None
    rank: int
    alpha: float
    rslora: bool
    rank_patterns: tuple[tuple[NamePattern, int], ...]
    alpha_patterns: tuple[tuple[NamePattern, float], ...]
    targets: TargetRule
    ties_weights: bool

    def rank_of(self, module: str) -> int:
        return next((rank for pattern, rank in self.rank_patterns if pattern.matches(module)), self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """PEFT's `scaling` of a module whose tensors have this rank."""
        found = (alpha for pattern, alpha in self.alpha_patterns if pattern.matches(module))
        alpha = next(found, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def parse_lora_config(config: Mapping[str, object]) -> LoraSettings:
    """Validate the parsed file. Raises AdapterRefused naming the field, its value and the remedy."""
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise AdapterRefused(
            "unsupported_peft_type",
            f"peft_type is {_shown(peft_type)}; only 'LORA' is supported yet. Train it as LORA, or merge it into "
            "the base",
        )
    _refuse_fields(config)
    _check_init(config.get("init_lora_weights"))
    rank_patterns = tuple(
        (pattern, _rank(value, f"rank_pattern[{pattern.text!r}]"))
        for pattern, value in _patterns(config, "rank_pattern")
    )
    alpha_patterns = tuple(
        (pattern, _alpha(value, f"alpha_pattern[{pattern.text!r}]"))
        for pattern, value in _patterns(config, "alpha_pattern")
    )
    return LoraSettings(
        base_name=_base_name(config.get("base_model_name_or_path")),
        rank=_rank(config.get("r", 8), "r"),
        alpha=_alpha(config.get("lora_alpha", 8), "lora_alpha"),
        rslora=_flag(config, "use_rslora"),
        rank_patterns=rank_patterns,
        alpha_patterns=alpha_patterns,
        targets=_target_rule(config),
        ties_weights=_flag(config, "ensure_weight_tying"),
    )


def _refuse_fields(config: Mapping[str, object]) -> None:
    bias = config.get("bias")
    if bias not in (None, "none"):
        raise AdapterRefused(
            "unsupported_field",
            f"bias is {_shown(bias)}: trained biases are not supported yet; train with bias='none'",
        )
    for name, value in config.items():
        if name in READ or name in HARMLESS or name == "bias" or _is_neutral(value):
            continue
        if name in UNSUPPORTED:
            raise AdapterRefused(
                "unsupported_field",
                f"{name} is {_shown(value)}: {UNSUPPORTED[name]} is not supported yet; train without it, or merge "
                "the adapter into the base",
            )
        raise AdapterRefused(
            "unknown_field",
            f"{name[:80]!r} is {_shown(value)}: this field is not known here and may change what the adapter does; "
            "if it doesn't, remove it from adapter_config.json",
        )


def _check_init(init: object) -> None:
    name = init.lower() if isinstance(init, str) else ""
    if init is None or isinstance(init, bool) or name in EXACT_INITS:
        return
    if name.startswith(RESIDUAL_INITS):
        raise AdapterRefused(
            "unconverted_init",
            f"init_lora_weights is {_shown(init)}: these weights fit only the base that training changed; save them "
            "again with save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL_ADAPTER_DIR)",
        )
    if name == "loftq":
        raise AdapterRefused(
            "unconverted_init",
            "init_lora_weights is 'loftq': these weights fit only the quantised base they were trained on; serve "
            "that base and set init_lora_weights to true, or train again from the original base",
        )
    raise AdapterRefused(
        "unsupported_field",
        f"init_lora_weights is {_shown(init)}, which is not known here; convert the adapter to plain LoRA with PEFT",
    )


def _patterns(config: Mapping[str, object], field: str) -> list[tuple[NamePattern, object]]:
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise _bad_field(field, value, "an object of module name to number")
    if len(value) > _MAX_PATTERNS:
        raise AdapterRefused("bad_field", f"{field} has {len(value)} entries; at most {_MAX_PATTERNS} are accepted")
    found = [(parse_pattern(key), number) for key, number in value.items()]
    if sum(pattern.repeats for pattern, _ in found) > MAX_REPEATING:
        raise AdapterRefused(
            "unsafe_pattern", f"{field} has over {MAX_REPEATING} patterns with repetitions; write module names instead"
        )
    return found


def _target_rule(config: Mapping[str, object]) -> TargetRule:
    targets = config.get("target_modules")
    by_pattern = targets is None or isinstance(targets, str)
    excluded = config.get("exclude_modules")
    layers = config.get("layers_to_transform")
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = [layers]
    if layers and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
        raise _bad_field("layers_to_transform", layers, "a list of layer numbers")
    lists = config.get("layers_pattern") or ()
    return TargetRule(
        names=None if by_pattern else frozenset(_names(targets, "target_modules")),
        # A string would be a regular expression; the tensors in the file already show what it left out.
        excluded=frozenset() if isinstance(excluded, str) else frozenset(_names(excluded or [], "exclude_modules")),
        layers=frozenset(layers) if isinstance(layers, list) and layers else None,
        layer_lists=tuple(_names([lists] if isinstance(lists, str) else list(_listed(lists)), "layers_pattern")),
    )


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _names(value: object, field: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and _DOTTED.fullmatch(item) for item in value):
        raise _bad_field(field, value, "a list of module names")
    return value


def _ends_with_any(module: str, names: frozenset[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[index:]) in names for index in range(len(parts)))


def _rank(value: object, field: str) -> int:
    if type(value) is not int or value < 1:
        raise _bad_field(field, value, "a whole number above zero")
    return value


def _alpha(value: object, field: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= 1e6:
        raise _bad_field(field, value, "a number of at most a million")
    return value


def _flag(config: Mapping[str, object], field: str) -> bool:
    value = config.get(field)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _bad_field(field, value, "true or false")


def _base_name(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 1024 or not value.isprintable():
        raise _bad_field("base_model_name_or_path", value, "the base model's name")
    return value


def _is_neutral(value: object) -> bool:
    return value is None or value is False or value == "" or value == [] or value == {}


def _bad_field(field: str, value: object, expected: str) -> AdapterRefused:
    return AdapterRefused("bad_field", f"{field} is {_shown(value)} and must be {expected}; fix adapter_config.json")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
