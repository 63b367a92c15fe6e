"""LoRA and its variants: fields of LoraConfig and the tensors of one module."""

from __future__ import annotations

import math
from dataclasses import dataclass

from livery_adapters.layout import TargetTensors
from livery_adapters.patterns import NamePattern
from livery_adapters.peft_config import Config, FieldRules, flag, number, patterns, shown, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, need, one_dtype, wrong_shape

RULES = FieldRules(
    read=frozenset(
        {
            "r",
            "lora_alpha",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "init_lora_weights",
        }
    ),
    # Training, merging, or settings of an initialisation or variant that its own switch turns on.
    harmless=frozenset(
        {
            "lora_dropout",
            "megatron_core",
            "loftq_config",
            "eva_config",
            "corda_config",
            "lora_ga_config",
            "qalora_group_size",
            "runtime_config",
        }
    ),
    refused={
        "use_dora": "DoRA",
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
    },
)
EXACT_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})  # they leave the base's weights alone
RESIDUAL_INITS = ("pissa", "olora", "corda", "lora_ga")  # they train against a base with weights taken out


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A LoRA configuration, validated. Patterns keep the file's order: the first that matches counts."""

    rank: int
    alpha: float
    rslora: bool
    rank_patterns: tuple[tuple[NamePattern, int], ...]
    alpha_patterns: tuple[tuple[NamePattern, float], ...]

    def rank_of(self, module: str) -> int:
        return next((rank for pattern, rank in self.rank_patterns if pattern.matches(module)), self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """PEFT's `scaling` of a module whose tensors have this rank."""
        found = (alpha for pattern, alpha in self.alpha_patterns if pattern.matches(module))
        alpha = next(found, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def parse(config: Config) -> LoraSettings:
    """Validate the fields of a LoRA configuration. Raises AdapterRefused."""
    _check_init(config.get("init_lora_weights"))
    return LoraSettings(
        rank=whole(config.get("r", 8), "r"),
        alpha=number(config.get("lora_alpha", 8), "lora_alpha"),
        rslora=flag(config, "use_rslora"),
        rank_patterns=patterns(config, "rank_pattern", whole),
        alpha_patterns=patterns(config, "alpha_pattern", number),
    )


def _check_init(init: object) -> None:
    name = init.lower() if isinstance(init, str) else ""
    if init is None or isinstance(init, bool) or name in EXACT_INITS:
        return
    if name.startswith(RESIDUAL_INITS):
        raise AdapterRefused(
            "unconverted_init",
            f"init_lora_weights is {shown(init)}: these weights fit only the base that training changed; save them "
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
        f"init_lora_weights is {shown(init)}, which is not known here; convert the adapter to plain LoRA with PEFT",
    )


def target(module: str, roles: Roles, settings: LoraSettings) -> TargetTensors:
    """Check the pair of one module. Raises AdapterRefused."""
    embedding = any(role.startswith("lora_embedding_") for role in roles)
    a, b = need(module, roles, *(("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape + b.shape:
        raise wrong_shape(module, roles, "[rank, in] and [out, rank]")
    rank = a.shape[0]
    if rank != settings.rank_of(module):
        raise AdapterRefused(
            "rank_mismatch",
            f"{module}: the tensors have rank {rank} and adapter_config.json says {settings.rank_of(module)} (r or "
            "rank_pattern); the two files don't belong together",
        )
    one_dtype(module, roles)
    return TargetTensors(
        module=module,
        kind="embedding" if embedding else "linear",
        tensors=roles,
        rank=rank,
        scale=settings.scale_of(module, rank),
        in_features=a.shape[1],
        out_features=b.shape[0],
    )


LORA = PeftType(
    name="LORA",
    rules=RULES,
    suffixes={
        "lora_A.weight": "lora_A",
        "lora_B.weight": "lora_B",
        "lora_embedding_A": "lora_embedding_A",
        "lora_embedding_B": "lora_embedding_B",
    },
    prefixes=("lora_",),
    parse=parse,
    target=target,
)
