"""The adapters of the table of PEFT types: what PEFT is asked to make on each family, and how it is applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import (
    AdaLoraConfig,
    BeftConfig,
    BOFTConfig,
    C3AConfig,
    DeftConfig,
    DeloraConfig,
    FourierFTConfig,
    GloraConfig,
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    OSFConfig,
    PeanutConfig,
    PeftConfig,
    PveraConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    SupertuningConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
)

from engine.families import embedding_name, linear_targets
from engine.oracle import ref
from livery.engine.base import AdapterPart, AdapterRef

FAMILIES = ("llama", "qwen3", "gpt2", "qwen3-moe")
TOKENS = [3, 9, 14, 50, 77]
FULL = 32  # the width of the tiny models: at this rank a factorisation loses nothing
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

ANY = frozenset(FAMILIES)
PLAIN = ANY - {"qwen3-moe"}
LINEAR = PLAIN - {"gpt2"}  # PEFT doesn't put these on GPT-2's Conv1D

Make = Callable[[list[str]], PeftConfig]


@dataclass(frozen=True)
class Row:
    """One line: `families` are those that PEFT makes it for; `approximate` the rank it is factorised to, 0 for none."""

    name: str
    peft_type: str
    how: str
    make: Callable[[str, list[str]], PeftConfig]
    families: frozenset[str] = LINEAR
    approximate: int = 0

    def config(self, family: str) -> PeftConfig | None:
        return self.make(family, linear_targets(family)) if family in self.families else None


def on(kind: Any, **settings: Any) -> Callable[[str, list[str]], PeftConfig]:
    """A configuration over every linear module of a layer."""
    return lambda _, linear: kind(target_modules=linear, **settings)  # type: ignore[no-any-return]


def lora(**settings: Any) -> Callable[[str, list[str]], PeftConfig]:
    return on(LoraConfig, **{"r": 3, "lora_alpha": 5, **settings})


def beside(**settings: Any) -> Callable[[str, list[str]], PeftConfig]:
    """A small LoRA and something else."""
    return lambda _, linear: LoraConfig(r=2, target_modules=linear[:1], **settings)


def norms(family: str) -> list[str]:
    return ["ln_1", "ln_2"] if family == "gpt2" else ["input_layernorm", "post_attention_layernorm"]


EXACT = "low rank, exact"
DENSE = "full rank: `--approximate RANK`, here the full one"
TRANSFORM = "rotated inputs, exact"

ROWS = (
    Row("LoRA", "LORA", EXACT, lora(), ANY),
    Row("LoRA, rsLoRA scale", "LORA", EXACT, lora(use_rslora=True), ANY),
    Row(
        "LoRA, rank and alpha patterns",
        "LORA",
        EXACT,
        lora(rank_pattern={"layers.0": 5}, alpha_pattern={"1": 3}),
        LINEAR,
    ),
    Row("LoRA, `lora_bias`", "LORA", "low rank and bias, exact", lora(lora_bias=True)),
    Row("LoRA, `bias=all`", "LORA", "low rank and biases, exact", lora(bias="all"), PLAIN),
    Row("LoRA, PiSSA (unconverted)", "LORA", "twice the rank, exact", lora(init_lora_weights="pissa")),
    Row("LoRA, OLoRA (unconverted)", "LORA", "twice the rank, exact", lora(init_lora_weights="olora")),
    Row("LoRA on experts", "LORA", "per expert, exact", lora(target_parameters=EXPERTS), frozenset({"qwen3-moe"})),
    Row(
        "LoRA + `modules_to_save` (head, norms)", "LORA", "replaced, exact", beside(modules_to_save=["lm_head", "norm"])
    ),
    Row("LoRA + trainable tokens", "LORA", "replaced rows, exact", beside(trainable_token_indices=TOKENS), PLAIN),
    Row(
        "LoRA on embeddings",
        "LORA",
        EXACT,
        lambda family, linear: LoraConfig(r=3, target_modules=[linear[0], embedding_name(family)]),
        PLAIN,
    ),
    Row("DoRA", "LORA", "low rank and gain, exact", lora(use_dora=True), ANY),
    Row("AdaLoRA", "ADALORA", EXACT, on(AdaLoraConfig, r=3, init_r=3, target_r=2, total_step=10)),
    Row(
        "VeRA",
        "VERA",
        "shared basis, exact",
        lambda _, linear: VeraConfig(r=6, target_modules=linear[-1:], d_initial=0.5),
        PLAIN,
    ),
    Row("LoHa", "LOHA", "rank r², exact", on(LoHaConfig, r=3, alpha=2)),
    Row(
        "LoKr",
        "LOKR",
        "Kronecker product, exact",
        on(LoKrConfig, r=2, alpha=2, decompose_factor=4, decompose_both=True),
    ),
    Row(
        "IA3",
        "IA3",
        "gains, exact",
        lambda _, linear: IA3Config(target_modules=linear, feedforward_modules=linear[-1:]),
        PLAIN,
    ),
    Row("OFT", "OFT", TRANSFORM, on(OFTConfig, r=0, oft_block_size=8)),
    Row("BOFT", "BOFT", TRANSFORM, on(BOFTConfig, boft_block_size=4, boft_n_butterfly_factor=2)),
    Row("HRA", "HRA", EXACT, on(HRAConfig, r=4)),
    Row(
        "LN tuning",
        "LN_TUNING",
        "replaced norms, exact",
        lambda family, _: LNTuningConfig(target_modules=norms(family)),
        PLAIN,
    ),
    Row(
        "Trainable tokens",
        "TRAINABLE_TOKENS",
        "replaced rows, exact",
        lambda *_: TrainableTokensConfig(token_indices=TOKENS),
        PLAIN,
    ),
    Row("VB-LoRA", "VBLORA", EXACT, on(VBLoRAConfig, r=2, num_vectors=9, vector_length=8)),
    Row("PVeRA", "PVERA", "shared basis, exact", lambda _, linear: PveraConfig(r=6, target_modules=linear[-1:])),
    Row("GraLoRA", "GRALORA", EXACT, on(GraloraConfig, r=4, gralora_k=2)),
    Row("DeLoRA", "DELORA", EXACT, on(DeloraConfig, r=3)),
    Row("DEFT", "DEFT", EXACT, on(DeftConfig, r=3)),
    Row("MiSS", "MISS", EXACT, on(MissConfig, r=4)),
    Row("PEANuT", "PEANUT", EXACT, on(PeanutConfig, r=4)),
    Row("BEFT", "BEFT", "biases, exact", on(BeftConfig)),
    Row("GLoRA", "GLORA", "low rank and bias, exact", on(GloraConfig, r=3, config_A_B="vector", config_C="lora")),
    Row("HiRA", "HIRA", DENSE, on(HiraConfig, r=3), LINEAR, FULL),
    Row("RandLoRA", "RANDLORA", DENSE, on(RandLoraConfig, r=5, randlora_alpha=2), LINEAR, FULL),
    Row("FourierFT", "FOURIERFT", DENSE, on(FourierFTConfig, n_frequency=40, scaling=20.0), LINEAR, FULL),
    Row("C3A", "C3A", DENSE, on(C3AConfig, block_size=8), LINEAR, FULL),
    Row("RoAd", "ROAD", DENSE, on(RoadConfig, variant="road_1", group_size=8), LINEAR, FULL),
    Row("SHiRA", "SHIRA", DENSE, on(ShiraConfig, r=3), LINEAR, FULL),
    Row("Super-Tuning", "SUPERTUNING", DENSE, on(SupertuningConfig, sparsity=0.8), LINEAR, FULL),
    Row("OSF", "OSF", DENSE, on(OSFConfig, effective_rank=10), LINEAR, FULL),
)


def reference(folder: Path, approximate: int) -> AdapterRef:
    """What the engine is asked for; an approximation has a digest of its own."""
    digest = ref(folder).digest
    return AdapterRef(digest, (AdapterPart(digest, str(folder), approximate=approximate),))
