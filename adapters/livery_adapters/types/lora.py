"""LoRA and its variants: fields of LoraConfig and the tensors of one module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import TargetTensors
from livery_adapters.patterns import NamePatterns
from livery_adapters.peft_config import Config, FieldRules, flag, number, patterns, shown, token_ids, too_many, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types import lora_parts as parts
from livery_adapters.types.base import PeftType, Roles, vocabulary_of

RULES = FieldRules(
    read=frozenset(
        {
            "r",
            "lora_alpha",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "init_lora_weights",
            "use_dora",
            "lora_bias",
            "alora_invocation_tokens",
            "trainable_token_indices",
            "target_parameters",
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
        "layer_replication": "a base with repeated layers, which this server doesn't run,",
        "use_qalora": "QA-LoRA, which pools the inputs of a quantised layer,",
        "use_bdlora": "block-diagonal LoRA",
        "arrow_config": "Arrow, which mixes other adapters by a router,",
        "kasa_config": "KaSA, which takes the smallest singular values out of the base,",
        "velora_config": "VeLoRA",
        "monteclora_config": "Monte Carlo LoRA, which draws its weights at random,",
        "megatron_config": "a model of Megatron's parallel layers",
    },
)
EXACT_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})  # they leave the base's weights alone
RESIDUAL_INITS = ("pissa", "olora", "corda", "lora_ga")  # they train against a base with weights taken out

_MAX_INVOCATION = 512  # PEFT's are the few tokens of a turn's beginning
_MAX_EMBEDDINGS = 64  # with trained tokens of their own

Init = Literal["plain", "pissa", "olora"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A LoRA configuration, validated. Patterns keep the file's order: the first that matches counts.

    `init` is "pissa" or "olora" for weights that were trained against a base without its principal components, or
    without the leading columns of its QR factorisation. `tokens` are the trained rows by the end of the embedding's
    path; the empty name stands for the input embedding. `parameters` are the names of parameters by the end of their
    module's path.
    """

    rank: int
    alpha: float
    rslora: bool
    rank_patterns: NamePatterns[int]
    alpha_patterns: NamePatterns[float]
    init: Init = "plain"
    dora: bool = False
    bias: bool = False
    invocation: tuple[int, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] | None = None
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        return self.rank_patterns.first(module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """PEFT's `scaling` of a module whose tensors have this rank."""
        alpha = self.alpha_patterns.first(module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def tokens_of(self, module: str) -> tuple[int, ...]:
        """The token ids of the rows that are trained in this embedding or head, in the file's order."""
        return next((ids for name, ids in (self.tokens or {}).items() if module.endswith(name)), ())


def parse(config: Config) -> LoraSettings:
    """Validate the fields of a LoRA configuration. Raises AdapterRefused."""
    settings = LoraSettings(
        rank=whole(config.get("r", 8), "r"),
        alpha=number(config.get("lora_alpha", 8), "lora_alpha"),
        rslora=flag(config, "use_rslora"),
        rank_patterns=patterns(config, "rank_pattern", whole),
        alpha_patterns=patterns(config, "alpha_pattern", number),
        init=_init(config.get("init_lora_weights")),
        dora=flag(config, "use_dora"),
        bias=flag(config, "lora_bias"),
        invocation=_invocation(config.get("alora_invocation_tokens") or []),
        tokens=_tokens(config.get("trainable_token_indices")),
        parameters=parts.parameter_names(config.get("target_parameters") or []),
    )
    _check_together(settings)
    return settings


def _init(init: object) -> Init:
    name = init.lower() if isinstance(init, str) else ""
    if init is None or isinstance(init, bool) or name in EXACT_INITS:
        return "plain"
    if init == "pissa":
        return "pissa"
    if name == "olora":
        return "olora"
    if name.startswith(RESIDUAL_INITS):
        raise AdapterRefused(
            "unconverted_init",
            f"init_lora_weights is {shown(init)}: these weights fit only the base that training changed, and how it "
            "was changed depends on chance or data; save them again with save_pretrained(DIR, "
            "path_initial_model_for_weight_conversion=INITIAL_ADAPTER_DIR)",
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


def _invocation(value: object) -> tuple[int, ...]:
    ids = token_ids(value, "alora_invocation_tokens")
    if len(ids) > _MAX_INVOCATION:
        raise too_many("alora_invocation_tokens", len(ids), _MAX_INVOCATION)
    return ids


def _tokens(value: object) -> dict[str, tuple[int, ...]] | None:
    if value is None:
        return None
    named = value if isinstance(value, dict) else {"": value}
    if len(named) > _MAX_EMBEDDINGS:
        raise too_many("trainable_token_indices", len(named), _MAX_EMBEDDINGS)
    return {str(name): _distinct(token_ids(ids, "trainable_token_indices")) for name, ids in named.items()}


def _distinct(ids: tuple[int, ...]) -> tuple[int, ...]:
    seen: set[int] = set()
    for token in ids:
        if token in seen:
            raise AdapterRefused("bad_field", f"trainable_token_indices names token {token} twice; remove one")
        seen.add(token)
    return ids


def _check_together(settings: LoraSettings) -> None:
    """Combinations that PEFT refuses as well. Raises AdapterRefused."""
    on = [
        name
        for name, switch in (
            ("use_dora", settings.dora),
            ("lora_bias", settings.bias),
            ("alora_invocation_tokens", settings.invocation),
            ("target_parameters", settings.parameters),
        )
        if switch
    ]
    if len(on) > 1 and not (on == ["lora_bias", "alora_invocation_tokens"]):
        raise AdapterRefused(
            "unsupported_combination",
            f"{' and '.join(on)} are both on, which PEFT itself doesn't combine; train with one of them",
        )
    if settings.init != "plain" and (settings.parameters or settings.bias):
        raise AdapterRefused(
            "unsupported_combination",
            f"init_lora_weights is {settings.init!r} and {on[0]} is on, which PEFT itself doesn't combine",
        )


def target(module: str, roles: Roles, settings: LoraSettings) -> TargetTensors:
    """Check the tensors of one module. Raises AdapterRefused."""
    if "trainable_tokens" in roles:
        return parts.token_rows(module, roles, settings.tokens_of(module))
    if settings.parameters:
        found = parts.parameter_of(module, settings.parameters)
        if found is not None:
            return parts.parameter_pair(*found, roles, settings.rank_of, settings.scale_of)
    embedding = "lora_embedding_A" in roles or "lora_embedding_B" in roles
    parts.check_variant(module, roles, embedding, settings.dora, settings.bias, bool(settings.invocation))
    a, b = parts.pair(module, roles, embedding)
    rank = a.shape[0]
    if rank != settings.rank_of(module):
        overlapping = list(islice(settings.rank_patterns.matching(module), 2))
        raise parts.rank_mismatch(module, rank, settings.rank_of(module), overlapping)
    scale = settings.scale_of(module, rank)
    if settings.init != "plain" and scale <= 0:
        raise AdapterRefused(
            "bad_field",
            f"{module}: lora_alpha gives a scale of {scale}, with which {settings.init!r} weights can't be made; "
            "correct lora_alpha or alpha_pattern",
        )
    return TargetTensors(
        module=module,
        kind="embedding" if embedding else "linear",
        tensors=roles,
        rank=rank,
        scale=scale,
        in_features=a.shape[1],
        out_features=b.shape[0],
    )


def check(target: TargetTensors, shapes: BaseShapes, settings: LoraSettings) -> None:
    """What only the base can tell. Raises AdapterRefused."""
    if target.kind == "rows":
        parts.check_rows(target, shapes, settings.tokens_of(target.module), settings.tokens or {})
    elif target.kind == "experts":
        parts.check_experts(target, shapes)
    elif target.named and shapes.modules[target.module].input_first:
        raise AdapterRefused(
            "unsupported_field",
            f"target_parameters adapts the weight of {target.module}, which lies transposed in this base; use "
            "target_modules for linear modules",
        )
    elif settings.init != "plain" and target.module in shapes.tied:
        raise AdapterRefused(
            "unconverted_init",
            f"init_lora_weights is {settings.init!r} and {target.module} shares its weight with "
            f"{shapes.tied[target.module]}, which that initialisation changes too; save the adapter again with "
            "save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL_ADAPTER_DIR)",
        )


def check_settings(settings: LoraSettings, shapes: BaseShapes) -> None:
    """Can the base's text hold the invocation tokens at all? Raises AdapterRefused."""
    vocabulary = vocabulary_of(shapes)
    beyond = next((token for token in settings.invocation if token >= vocabulary > 0), None)
    if beyond is not None:
        raise AdapterRefused(
            "token_out_of_range",
            f"alora_invocation_tokens has token {beyond} and the base's vocabulary has {vocabulary} rows, so no text "
            "would ever switch the adapter on; correct the tokens, or use the base it was trained on",
        )


def warn(targets: tuple[TargetTensors, ...], settings: LoraSettings) -> tuple[str, ...]:
    """What is allowed and may surprise."""
    found = []
    for name, listed in (("rank_pattern", settings.rank_patterns), ("alpha_pattern", settings.alpha_patterns)):
        for target in targets if len(listed) > 1 else ():
            matching = list(islice(listed.matching(target.module), 2))
            if len(matching) > 1:
                found.append(
                    f"{name}: {matching[0]!r} and {matching[1]!r} both match {target.module}; the first counts"
                )
                break
    if settings.init != "plain":
        found.append(
            f"init_lora_weights is {settings.init!r}: every load factorises the base's weights again; converted "
            "ahead by PEFT's save_pretrained it loads faster"
        )
    return tuple(found)


LORA = PeftType(
    name="LORA",
    rules=RULES,
    suffixes={
        "lora_A.weight": "lora_A",
        "lora_B.weight": "lora_B",
        "lora_B.bias": "lora_B_bias",
        "lora_embedding_A": "lora_embedding_A",
        "lora_embedding_B": "lora_embedding_B",
        "lora_magnitude_vector": "magnitude",
        "lora_magnitude_vector.weight": "magnitude",
        "token_adapter.trainable_tokens_delta": "trainable_tokens",
    },
    prefixes=("lora_", "token_adapter", "trainable_tokens"),
    parse=parse,
    target=target,
    check=check,
    check_settings=check_settings,
    warn=warn,
    invocation=lambda settings: settings.invocation,
)
