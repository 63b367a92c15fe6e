"""Other PEFT types whose parts don't fit each other, the configuration or the base."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hostile.base import VOCABULARY, kinds
from hostile.base import good as good_files
from hostile.case import Q0, Build, Case, Stage, config, tensors, write

_ATTENTION = "base_model.model.model.layers.0.self_attn"
_MLP = "base_model.model.model.layers.0.mlp"
_EMBEDDING = "base_model.model.model.embed_tokens"
Tensors = dict[str, Tensor]
Change = Callable[[Tensors], object]


def _drop(*ends: str) -> Change:
    """Every tensor whose name ends so taken out."""

    def change(found: Tensors) -> None:
        for name in [name for name in found if name.endswith(ends)]:
            del found[name]

    return change


def _put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda found: found.update({name: torch.full(shape, 0.25, dtype=dtype)})


def _case(name: str, build: Build, code: str, says: str, stage: Stage = "read") -> Case:
    return Case("types", name, build, code, says, stage)


LYCORIS = (
    _case("LoHa without one of four", tensors(_drop("hada_w2_b"), "loha"), "missing_half", "lacks hada_w2_b"),
    _case(
        "LoHa of pairs that differ",
        tensors(_put(f"{Q0}.hada_w2_a", 32, 2), "loha"),
        "wrong_shape",
        "hada_w2_a is [32, 2]",
    ),
    _case("LoHa with another r", config("loha", r=2), "rank_mismatch", "have rank 3 and adapter_config.json says 2"),
    _case(
        "LoHa of another width",
        tensors(lambda t: (_put(f"{Q0}.hada_w1_b", 3, 48)(t), _put(f"{Q0}.hada_w2_b", 3, 48)(t)), "loha"),
        "wrong_shape",
        "linear 48 -> 32",
        "check",
    ),
    _case(
        "LoKr with both w1 and w1_a", tensors(_put(f"{Q0}.lokr_w1_a", 4, 2), "lokr"), "wrong_shape", "lokr_w1 [out, in]"
    ),
    _case("LoKr without w2_b", tensors(_drop("lokr_w2_b"), "lokr"), "missing_half", "lacks lokr_w2_b"),
    _case(
        "LoKr of another width",
        tensors(_put(f"{Q0}.lokr_w2_b", 2, 9), "lokr"),
        "wrong_shape",
        "linear 36 -> 32",
        "check",
    ),
)

VERA = (
    _case(
        "VeRA without shared projections",
        tensors(_drop("vera_A", "vera_B"), "vera"),
        "missing_half",
        "vera_A",
        "convert",
    ),
    _case("VeRA with half of them", tensors(_drop("vera_B"), "vera"), "missing_half", "vera_B", "convert"),
    _case(
        "VeRA with projections that are too small",
        tensors(_put("base_model.vera_A", 4, 8), "vera"),
        "wrong_shape",
        "vera_A",
        "convert",
    ),
    _case(
        "VeRA without the vector of the ranks",
        tensors(_drop("vera_lambda_d"), "vera"),
        "missing_half",
        "lacks vera_lambda_d",
    ),
    _case("VeRA with another r", config("vera", r=8), "rank_mismatch", "says 8 (r)"),
    _case(
        "VeRA of rank 70,000 by its seed",
        tensors(
            lambda t: (
                _drop("vera_A", "vera_B")(t),
                *(_put(name, 70_000)(t) for name in list(t) if name.endswith("_d")),
            ),
            "vera",
            r=70_000,
            save_projection=False,
        ),
        "rank_over_limit",
        "rank 70000",
        "check",
    ),
    _case(
        "VeRA's shared tensors alone",
        tensors(_drop("vera_lambda_b", "vera_lambda_d"), "vera"),
        "no_matching_module",
        "nothing but tensors that all modules share",
    ),
)

IA3 = (
    _case(
        "IA3 of another width",
        tensors(_put(f"{_ATTENTION}.k_proj.ia3_l", 48, 1), "ia3"),
        "wrong_shape",
        "any -> 48 and the base has linear 32 -> 16",
        "check",
    ),
    _case("IA3 on the wrong side", tensors(_put(f"{_MLP}.down_proj.ia3_l", 32, 1), "ia3"), "wrong_shape", "[1, in]"),
    _case("IA3 of a matrix", tensors(_put(f"{_MLP}.down_proj.ia3_l", 2, 48), "ia3"), "wrong_shape", "ia3_l is [2, 48]"),
    _case(
        "IA3 with a path as feed-forward module", config("ia3", feedforward_modules=["/mlp"]), "bad_field", "['/mlp']"
    ),
)

ROTATIONS = (
    _case(
        "OFT of blocks that don't divide",
        tensors(_put(f"{Q0}.oft_R.weight", 5, 28), "oft"),
        "wrong_shape",
        "40 -> any",
        "check",
    ),
    _case("OFT of no triangular number", tensors(_put(f"{Q0}.oft_R.weight", 4, 27), "oft"), "wrong_shape", "[4, 27]"),
    _case(
        "OFT of other blocks than it says",
        config("oft", oft_block_size=16),
        "wrong_shape",
        "adapter_config.json says 16",
        "check",
    ),
    _case("OFT with both r and block size", config("oft", r=4), "bad_field", "one of them must be zero"),
    _case("OFT of an old PEFT", config("oft", drop=("oft_block_size",)), "unsupported_field", "PEFT before 0.14"),
    _case(
        "OFT of a PEFT that doesn't say which",
        config("oft", drop=("peft_version",)),
        "unsupported_field",
        "peft_version is None",
    ),
    _case(
        "OFT with a block size of 2^60",
        config("oft", oft_block_size=10**17),
        "wrong_shape",
        "says 32 for 32 features",
        "check",
    ),
    _case(
        "OFT with 2^60 terms", config("oft", num_cayley_neumann_terms=10**17), "bad_field", "num_cayley_neumann_terms"
    ),
    _case("BOFT without its scale", tensors(_drop("boft_s"), "boft"), "missing_half", "lacks boft_s"),
    _case(
        "BOFT of blocks that are not square",
        tensors(_put(f"{Q0}.boft_R", 2, 8, 4, 3), "boft"),
        "wrong_shape",
        "[2, 8, 4, 3]",
    ),
    _case(
        "BOFT of three factors where two are said",
        tensors(_put(f"{Q0}.boft_R", 3, 8, 4, 4), "boft"),
        "wrong_shape",
        "one factor or 2",
    ),
)

LORA = (
    _case("AdaLoRA without E", tensors(_drop("lora_E"), "adalora"), "missing_half", "lacks lora_E"),
    _case("AdaLoRA with a longer E", tensors(_put(f"{Q0}.lora_E", 5, 1), "adalora"), "wrong_shape", "lora_E is [5, 1]"),
    _case("AdaLoRA with another rank", config("adalora", init_r=6), "rank_mismatch", "says 6 (rank_pattern or init_r)"),
    _case(
        "AdaLoRA with a mask of numbers",
        config("adalora", rank_pattern={"a.lora_E": [1]}),
        "bad_field",
        "rank_pattern[",
    ),
    _case(
        "DoRA without magnitudes", tensors(_drop("lora_magnitude_vector"), "dora"), "missing_half", "lacks magnitude"
    ),
    _case(
        "DoRA with a magnitude too short",
        tensors(_put(f"{Q0}.lora_magnitude_vector", 31), "dora"),
        "wrong_shape",
        "magnitude is [31]",
    ),
    _case("magnitudes without DoRA", config("dora", use_dora=False), "unknown_tensor", "use_dora is not true"),
    _case(
        "DoRA that is activated",
        config("dora", alora_invocation_tokens=[1]),
        "unsupported_combination",
        "use_dora and alora_invocation_tokens",
    ),
    _case("lora_bias without biases", config(lora_bias=True), "missing_half", "lacks lora_B_bias"),
    _case(
        "activated by a token beyond the vocabulary",
        config("alora", alora_invocation_tokens=[7, VOCABULARY]),
        "token_out_of_range",
        f"has token {VOCABULARY} and the base's vocabulary has {VOCABULARY} rows",
        "check",
    ),
    _case("activated by a token below zero", config("alora", alora_invocation_tokens=[-1]), "bad_field", "is [-1]"),
    _case("activated by text", config("alora", alora_invocation_tokens="<|think|>"), "bad_field", "'<|think|>'"),
    _case(
        "activated by 20,000 tokens",
        config("alora", alora_invocation_tokens=[1] * 20_000),
        "bad_field",
        "has 20000 entries; at most 512 are accepted",
    ),
)

TOKENS = (
    _case(
        "a trained token beyond the vocabulary",
        config("tokens", token_indices=[3, VOCABULARY]),
        "resized_vocabulary",
        f"token {VOCABULARY} has no row in lm_head",
        "check",
    ),
    _case("a trained token twice", config("tokens", token_indices=[3, 3]), "bad_field", "[3, 3]"),
    _case("a trained token below zero", config("tokens", token_indices=[-1, 3]), "bad_field", "[-1, 3]"),
    _case("more trained tokens than rows", config("tokens", token_indices=[3, 5, 7]), "wrong_shape", "[3, width]"),
    _case(
        "trained tokens of another width",
        tensors(_put(f"{_EMBEDDING}.trainable_tokens_delta", 2, 48), "tokens"),
        "wrong_shape",
        "32",
        "check",
    ),
    _case(
        "beside LoRA, beyond the vocabulary",
        config("tokens beside lora", trainable_token_indices=[3, VOCABULARY]),
        "resized_vocabulary",
        f"token {VOCABULARY} has no row in lm_head",
        "check",
    ),
    _case(
        "beside LoRA, twice", config("tokens beside lora", trainable_token_indices=[3, 3]), "bad_field", "token 3 twice"
    ),
    _case(
        "beside LoRA, more than rows",
        config("tokens beside lora", trainable_token_indices=[3, 5, 7]),
        "wrong_shape",
        "names 3 trained tokens",
    ),
    _case(
        "beside LoRA, of an embedding nobody has",
        config("tokens beside lora", trainable_token_indices={"wte": [3, 5]}),
        "wrong_shape",
        "names 0 trained tokens",
    ),
)


def _fine(kind: str) -> Case:
    return Case("fine", f"a good one: {kind}", lambda path: write(path, *good_files(kind)), "")


_MASKS = {f"model.layers.{n}.mlp.up_proj.lora_E": [True] * 12 for n in range(1000)}
FINE = (
    *(_fine(kind) for kind in kinds() if kind != "lora"),
    Case("fine", "an AdaLoRA with masks of 100 KB", config("adalora", rank_pattern=_MASKS), ""),
)

CASES = (*LYCORIS, *VERA, *IA3, *ROTATIONS, *LORA, *TOKENS, *FINE)
