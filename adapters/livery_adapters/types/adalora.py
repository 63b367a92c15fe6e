"""AdaLoRA: triplets B·diag(E)·A whose rank training has pruned module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, bad_field, number, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, need, one_dtype, wrong_shape

# PEFT divides by the rank that training began with, kept from being zero by this much.
_EPSILON = 1e-5

RULES = FieldRules(
    read=frozenset({"init_r", "lora_alpha", "rank_pattern"}),
    # Training and its schedule, and fields of LoraConfig that AdaLoRA's layers never look at.
    harmless=frozenset(
        {
            "r",
            "target_r",
            "tinit",
            "tfinal",
            "deltaT",
            "beta1",
            "beta2",
            "orth_reg_weight",
            "total_step",
            "alpha_pattern",
            "use_rslora",
            "init_lora_weights",
            "lora_dropout",
            "lora_bias",
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
        "use_dora": "DoRA on top of AdaLoRA",
        "alora_invocation_tokens": "activation by tokens on top of AdaLoRA",
        "trainable_token_indices": "trained token embeddings beside AdaLoRA",
        "ensure_weight_tying": "tying an adapted embedding and head",
        "layer_replication": "replicated layers",
        "target_parameters": "AdaLoRA on parameters (fused experts)",
        "use_qalora": "QA-LoRA",
        "use_bdlora": "block-diagonal LoRA",
        "arrow_config": "Arrow routing",
        "kasa_config": "KaSA",
        "velora_config": "VeLoRA",
        "monteclora_config": "Monte Carlo LoRA",
        "megatron_config": "Megatron layers",
    },
)


@dataclass(frozen=True, slots=True)
class AdaLoraSettings:
    """`kept` is the rank that pruning left to each module it looked at; the others have `rank`."""

    rank: int
    alpha: float
    kept: Mapping[str, int]

    def rank_of(self, module: str) -> int:
        return self.kept.get(module, self.rank)

    def scale_of(self, rank: int) -> float:
        """An alpha of zero or less stands for the module's rank."""
        return (self.alpha if self.alpha > 0 else rank) / (self.rank + _EPSILON)


def parse(config: Config) -> AdaLoraSettings:
    """Validate the fields of an AdaLoRA configuration. Raises AdapterRefused."""
    return AdaLoraSettings(
        rank=whole(config.get("init_r", 12), "init_r"),
        alpha=number(config.get("lora_alpha", 8), "lora_alpha"),
        kept=_kept(config.get("rank_pattern") or {}),
    )


def _kept(value: object) -> dict[str, int]:
    """`rank_pattern` maps the path of every lora_E to a truth value per rank; here no key is a pattern."""
    expected = "an object of lora_E names to lists of true and false"
    if not isinstance(value, dict):
        raise bad_field("rank_pattern", value, expected)
    kept = {}
    for name, mask in value.items():
        module = name.removesuffix(".default").removesuffix(".lora_E")
        if module == name or not isinstance(mask, list) or not all(isinstance(item, bool) for item in mask):
            raise bad_field(f"rank_pattern[{name[:80]!r}]", mask, expected)
        kept[module] = sum(mask)
    return kept


def target(module: str, roles: Roles, settings: AdaLoraSettings) -> TargetTensors:
    """Check the triplet of one module; pruning may have left it no rank at all. Raises AdapterRefused."""
    a, b, e = need(module, roles, "lora_A", "lora_B", "lora_E")
    rank = e.shape[0] if len(e.shape) == 2 else -1
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank or e.shape[1] != 1:
        raise wrong_shape(module, roles, "[rank, in], [out, rank] and [rank, 1]")
    if rank != settings.rank_of(module):
        raise AdapterRefused(
            "rank_mismatch",
            f"{module}: the tensors have rank {rank} and adapter_config.json says {settings.rank_of(module)} "
            "(rank_pattern or init_r); the two files don't belong together",
        )
    one_dtype(module, roles)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        rank=rank,
        scale=settings.scale_of(rank),
        in_features=a.shape[1],
        out_features=b.shape[0],
    )


ADALORA = PeftType(
    name="ADALORA",
    rules=RULES,
    suffixes={"lora_A": "lora_A", "lora_B": "lora_B", "lora_E": "lora_E"},
    prefixes=("lora_",),
    parse=parse,
    target=target,
)
