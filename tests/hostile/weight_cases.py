"""Tensors that don't belong to the base, to each other or to the configuration; and numbers that are none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from hostile.base import VOCABULARY, good
from hostile.case import A0, B0, Build, Case, Stage, config, tensors, write

_NORM = "base_model.model.model.norm.weight"
_HEAD = "base_model.model.lm_head"
_EMBEDDING = "base_model.model.model.embed_tokens"
Tensors = dict[str, Tensor]


def _case(name: str, build: Build, code: str, says: str, stage: Stage = "read", mistake: str = "") -> Case:
    return Case("tensors", name, build, code, says, stage, mistake=mistake)


def _move(before: str, after: str) -> Callable[[Tensors], None]:
    """Every tensor under another name."""

    def change(found: Tensors) -> None:
        moved = {name.replace(before, after): tensor for name, tensor in found.items()}
        found.clear()
        found.update(moved)

    return change


def _swap(found: Tensors) -> None:
    found[A0], found[B0] = found[B0], found[A0]


def _transpose(found: Tensors) -> None:
    for name, tensor in found.items():
        found[name] = tensor.T.contiguous()


def _drop(name: str) -> Callable[[Tensors], object]:
    return lambda found: found.pop(name)


def _put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], object]:
    return lambda found: found.update({name: torch.full(shape, 0.25, dtype=dtype)})


_SCORE = "base_model.model.score.weight"


def _head(*shape: int) -> Build:
    """A classifier's head of this shape beside a good adapter."""
    return tensors(_put(_SCORE, *shape), modules_to_save=["score"], task_type="SEQ_CLS")


def _nan_head(found: Tensors) -> None:
    found[_SCORE] = torch.full((2, 32), math.nan)


def _with_bias(found: Tensors) -> None:
    found[_SCORE], found["base_model.model.score.bias"] = torch.ones(2, 32), torch.ones(2)


def _rank(size: int) -> Callable[[Tensors], object]:
    """All pairs of this rank, whatever the configuration says."""

    def change(found: Tensors) -> None:
        for name, tensor in found.items():
            shape = (size, tensor.shape[1]) if "lora_A" in name else (tensor.shape[0], size)
            found[name] = torch.full(shape, 0.01)

    return change


def _width(size: int) -> Callable[[Tensors], object]:
    """All pairs for a base of another width."""

    def change(found: Tensors) -> None:
        for name, tensor in found.items():
            found[name] = torch.ones((tensor.shape[0], size) if "lora_A" in name else (size, tensor.shape[1]))

    return change


def _as(dtype: torch.dtype) -> Callable[[Tensors], object]:
    """Every tensor of the first module in another dtype."""
    return lambda found: found.update({name: found[name].to(dtype) for name in (A0, B0)})


def _old_spelling(found: Tensors) -> None:
    found[A0.replace(".weight", ".default.weight")] = found[A0].clone()


BELONGING = (
    _case("A without its B", tensors(_drop(B0)), "missing_half", "lacks lora_B"),
    _case("B without its A", tensors(_drop(A0)), "missing_half", "lacks lora_A"),
    _case(
        "a tensor of no LoRA", tensors(_put(A0.replace("lora_A", "lora_C"), 4, 32)), "unknown_tensor", "lora_C.weight"
    ),
    _case("a tensor outside of the model", tensors(_put("optimizer.state", 4)), "unknown_tensor", "optimizer.state is"),
    _case(
        "a name that is only the prefix", tensors(_put("base_model.model.weight", 4)), "unknown_tensor", "model.weight"
    ),
    _case("A twice, in an older spelling", tensors(_old_spelling), "duplicate_tensor", "has lora_A twice"),
    _case("A and B swapped", tensors(_swap), "rank_mismatch", "have rank 32", mistake="A is B"),
    _case("every tensor transposed", tensors(_transpose), "rank_mismatch", "have rank 32", mistake="A is B"),
    _case("A of one dimension", tensors(_put(A0, 128)), "wrong_shape", "lora_A is [128]"),
    _case("A of no dimension", tensors(_put(A0)), "wrong_shape", "lora_A is []"),
    _case("A of a convolution", tensors(_put(A0, 4, 32, 1, 1)), "wrong_shape", "lora_A is [4, 32, 1, 1]"),
    _case("rank 0", tensors(_rank(0)), "wrong_shape", "lora_A is [0, 32], lora_B is [32, 0]"),
    _case("A and B of different ranks", tensors(_put(B0, 32, 8)), "wrong_shape", "lora_B is [32, 8]"),
    _case("A and B of different dtypes", tensors(_put(B0, 32, 4, dtype=torch.bfloat16)), "bad_dtype", "lora_B is BF16"),
    *(
        _case(f"a pair of {name}", tensors(_as(dtype)), "bad_dtype", f"is '{name}'; F32, F16 and BF16 are accepted")
        for name, dtype in {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}.items()
    ),
    _case(
        "a module left out by target_modules",
        config(target_modules=["v_proj"]),
        "untargeted_tensor",
        "which target_modules doesn't name",
    ),
    _case(
        "a module excluded",
        config(exclude_modules=["q_proj"]),
        "untargeted_tensor",
        "self_attn.q_proj, which exclude_modules leaves out",
    ),
    _case(
        "a layer left out",
        config(layers_to_transform=[1]),
        "untargeted_tensor",
        "whose layer is not among layers_to_transform",
    ),
    _case("r is less than the tensors'", config(r=2), "rank_mismatch", "have rank 4 and adapter_config.json says 2"),
    _case("r is more than the tensors'", config(r=200), "rank_mismatch", "adapter_config.json says 200"),
    _case(
        "rank_pattern hides a higher rank",
        tensors(_put(A0, 4, 32), rank_pattern={"layers.0.self_attn.q_proj": 64}),
        "rank_mismatch",
        "adapter_config.json says 64",
    ),
    _case("rank 300", tensors(_rank(300), r=300), "rank_over_limit", "has rank 300 and the limit is 256", "check"),
)

BASE = (
    _case(
        "the names of another family",
        tensors(_move("model.layers", "transformer.h")),
        "no_matching_module",
        "none of",
        "check",
    ),
    _case("another width", tensors(_width(64)), "wrong_base", "64 -> 64 and the base has linear 32 -> 32", "check"),
    _case(
        "a layer that the base lacks", tensors(_move("layers.1.", "layers.99.")), "unknown_tensor", "layers.99", "check"
    ),
    _case(
        "one module of another width",
        tensors(_put(B0, 48, 4)),
        "wrong_shape",
        "32 -> 48 and the base has linear",
        "check",
    ),
    _case(
        "a pair on a norm",
        tensors(
            _move("layers.1.self_attn.v_proj", "layers.1.input_layernorm"),
            target_modules=["q_proj", "v_proj", "input_layernorm"],
        ),
        "unknown_tensor",
        "no adaptable module model.layers.1.input_layernorm",
        "check",
    ),
    _case(
        "wrapped twice",
        tensors(_move("base_model.model.", "base_model.model.base_model.model.")),
        "no_matching_module",
        "base_model.model.model.layers.0",
        "check",
    ),
    _case("a router", tensors(_put("base_model.model.gate.weight", 2, 32)), "unknown_tensor", "a router", "check"),
    _case(
        "a head in an adapter for text",
        tensors(_put(_SCORE, 2, 32), modules_to_save=["score"], task_type="CAUSAL_LM"),
        "unsupported_combination",
        "the head of a classifier",
    ),
    _case(
        "a classifier without its head", tensors(lambda found: None, task_type="SEQ_CLS"), "missing_tensor", "SEQ_CLS"
    ),
    _case(
        "a class per token",
        tensors(_put(_SCORE, 2, 32), modules_to_save=["score"], task_type="TOKEN_CLS"),
        "unsupported_task",
        "a class for every token",
    ),
    _case("a task that is none", tensors(lambda found: None, task_type=[1]), "bad_field", "task_type is [1]"),
    _case("a head of another width", _head(2, 48), "wrong_shape", "is [2, 48]", "check"),
    _case("a head of one axis", _head(32), "wrong_shape", "is [32]", "check"),
    _case("a head without classes", _head(0, 32), "wrong_shape", "is [0, 32]", "check"),
    _case("a head of too many classes", _head(4097, 32), "wrong_shape", "4097 labels", "check"),
    _case(
        "a head with a NaN",
        tensors(_nan_head, modules_to_save=["score"], task_type="SEQ_CLS"),
        "nonfinite_weights",
        "score.weight",
        "finite",
    ),
    _case(
        "a head with a bias",
        tensors(_with_bias, modules_to_save=["score"], task_type="SEQ_CLS"),
        "unknown_tensor",
        "score.bias",
        "check",
    ),
    _case("a norm of another width", tensors(_put(_NORM, 48), "saved norm"), "wrong_shape", "weight is [32]", "check"),
    _case(
        "a norm's parameter that it hasn't",
        tensors(_put(_NORM.replace("weight", "beta"), 32), "saved norm"),
        "unknown_tensor",
        "has no parameter 'beta'",
        "check",
    ),
    _case(
        "a bias that the base hasn't",
        tensors(_put(A0.replace("lora_A.weight", "bias"), 32), bias="all"),
        "unknown_tensor",
        "has no parameter 'bias'",
        "check",
    ),
    _case(
        "a larger vocabulary",
        tensors(_put(f"{_EMBEDDING}.weight", VOCABULARY + 8, 32), modules_to_save=["embed_tokens"]),
        "resized_vocabulary",
        f"token {VOCABULARY} has no row in lm_head",
        "check",
    ),
    _case(
        "a larger vocabulary in the head",
        tensors(_put(f"{_HEAD}.weight", VOCABULARY + 8, 32), modules_to_save=["lm_head"]),
        "resized_vocabulary",
        f"token {VOCABULARY} has no row in model.embed_tokens",
        "check",
    ),
    _case(
        "an adapted embedding of a larger vocabulary",
        tensors(_put(f"{_EMBEDDING}.lora_embedding_A", 4, VOCABULARY + 8), "embedding"),
        "resized_vocabulary",
        f"token {VOCABULARY} has no row in model.embed_tokens",
        "check",
    ),
    _case(
        "a linear pair on the embedding",
        tensors(_put(f"{_EMBEDDING}.lora_A.weight", 4, 32), "embedding"),
        "unknown_tensor",
        "doesn't go with the other tensors",
    ),
)


# -- numbers ---------------------------------------------------------------------------------------------

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _number(name: str, place: tuple[int, int], value: float, dtype: str) -> Build:
    """One number of one tensor, in an adapter of this dtype."""

    def build(directory: Path) -> None:
        before, weights = good()
        found = {key: tensor.to(_DTYPES[dtype]) for key, tensor in load(weights).items()}
        found[name][place] = value
        write(directory, before, save(found))

    return build


_LAST = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
_PLACES = {"first": (A0, (0, 0)), "last": (_LAST, (15, 3)), "middle": (B0, (17, 2))}
_VALUES = {"NaN": float("nan"), "infinity": float("inf"), "minus infinity": float("-inf")}


def _finite(value: str, dtype: str, where: str) -> Case:
    name, place = _PLACES[where]
    build = _number(name, place, _VALUES[value], dtype)
    says = f"tensor {name} holds"
    return Case(
        "numbers", f"{value} as {dtype}, {where}", build, "nonfinite_weights", says, "finite", mistake=f"{where} number"
    )


def _fill(value: float, dtype: torch.dtype = torch.float32, only: str = "") -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        for name, tensor in found.items():
            found[name] = torch.full_like(tensor, value, dtype=dtype) if only in name else tensor.to(dtype)

    return change


def _all_nan(found: Tensors) -> None:
    _fill(float("nan"))(found)


NUMBERS = (
    *(_finite("NaN", dtype, where) for dtype, where in zip(_DTYPES, _PLACES, strict=True)),
    *(_finite("infinity", dtype, where) for dtype, where in zip(_DTYPES, ("middle", "first", "last"), strict=True)),
    *(
        _finite("minus infinity", dtype, where)
        for dtype, where in zip(_DTYPES, ("last", "middle", "first"), strict=True)
    ),
    Case("numbers", "nothing but NaN", tensors(_all_nan), "nonfinite_weights", "holds 128 values", "finite"),
    Case(
        "numbers",
        "fp32 that overflows",
        tensors(_fill(1e30)),
        "overflow",
        "q_proj: the numbers",
        "convert",
        mistake="overflow",
    ),
    Case(
        "numbers",
        "bf16 that overflows",
        tensors(_fill(3e38, torch.bfloat16), r=4),
        "overflow",
        "amount to",
        "convert",
        mistake="overflow",
    ),
    Case(
        "numbers",
        "a B of zeros",
        tensors(_fill(0.0, only="lora_B")),
        "zero_effect",
        "changes nothing",
        "effect",
        mistake="no effect",
    ),
    Case(
        "numbers",
        "an A of zeros",
        tensors(_fill(0.0, only="lora_A")),
        "zero_effect",
        "exactly zero",
        "effect",
        mistake="no effect",
    ),
    Case(
        "numbers",
        "an alpha of zero",
        config(lora_alpha=0),
        "zero_effect",
        "changes nothing",
        "effect",
        mistake="no effect",
    ),
    Case(
        "numbers",
        "alphas of zero by pattern",
        config(alpha_pattern={"q_proj": 0, "v_proj": 0}),
        "zero_effect",
        "changes nothing",
        "effect",
        mistake="no effect",
    ),
)


def _without_base_name(directory: Path) -> None:
    before, weights = good()
    fields = {name: value for name, value in json.loads(before).items() if name != "base_model_name_or_path"}
    write(directory, json.dumps(fields).encode(), weights)


FINE = (
    Case("fine", "denormal numbers", tensors(_fill(1e-40, only="lora_A")), ""),
    Case("fine", "fp16 whose product is beyond fp16", tensors(_fill(3e4, torch.float16)), ""),
    Case("fine", "no name of a base", _without_base_name, ""),
    Case("fine", "a negative alpha", config(lora_alpha=-8), ""),
)

CASES = (*BELONGING, *BASE, *NUMBERS, *FINE)
