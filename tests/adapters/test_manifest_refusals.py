"""Everything that is refused: each with its own code, the thing that is wrong, and what to do about it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.peft_made import Q0, Q0_TENSORS, check_directory, edit_config, edit_tensors, make, tiny_base, write_header
from livery_adapters.manifest import AdapterRefused, Limits, read_manifest
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

Damage = Callable[[Path], object]


def _config(**fields: object) -> Damage:
    return lambda folder: edit_config(folder, **fields)


def _config_text(text: str | bytes) -> Damage:
    return lambda folder: (folder / CONFIG_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())


def _tensors(**changes: torch.Tensor | None) -> Damage:
    return lambda folder: edit_tensors(folder, **{Q0_TENSORS + half: value for half, value in changes.items()})


def _other_module(module: str) -> Damage:
    pair = {f"base_model.model.{module}.lora_A.weight": torch.ones(4, 32)}
    pair[f"base_model.model.{module}.lora_B.weight"] = torch.ones(32, 4)
    return lambda folder: edit_tensors(folder, **pair)


def _trained_router(folder: Path) -> None:
    _other_module("model.layers.0.mlp.gate")(folder)
    targets = json.loads((folder / CONFIG_NAME).read_text())["target_modules"]
    edit_config(folder, target_modules=[*targets, "gate"])


def _only_other_modules(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    make(folder, "gpt2", target_modules=["c_attn"])


def _header(text: bytes, body: bytes = b"") -> Damage:
    return lambda folder: write_header(folder, text, body)


def _shorten(name: str, to: int) -> Damage:
    return lambda folder: os.truncate(folder / name, to)


def _pickle_only(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")


def _linked(name: str) -> Damage:
    def damage(folder: Path) -> None:
        real = (folder / name).rename(folder / "elsewhere")
        (folder / name).symlink_to(real)

    return damage


def _fifo(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    os.mkfifo(folder / WEIGHTS_NAME)


def _directory(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    (folder / WEIGHTS_NAME).mkdir()


def _biases(folder: Path, size: int) -> None:
    pairs = [name for name in load_file(folder / WEIGHTS_NAME) if name.endswith("lora_B.weight")]
    edit_tensors(folder, **{name.replace("B.weight", "B.bias"): torch.ones(size) for name in pairs})


def _norm(folder: Path, size: int) -> None:
    edit_tensors(folder, **{"base_model.model.model.norm.weight": torch.ones(size)})


def _value(number: float) -> torch.Tensor:
    return torch.tensor([[number] + [0.0] * 31] * 4)


A, B = "A.weight", "B.weight"
ONE = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
# What is done to a good adapter; the code; what the message names; the remedy it gives.
REFUSALS: dict[str, tuple[Damage, str, str, str]] = {
    "no config": (lambda f: (f / CONFIG_NAME).unlink(), "missing_config", CONFIG_NAME, "save_pretrained"),
    "no weights": (lambda f: (f / WEIGHTS_NAME).unlink(), "missing_weights", WEIGHTS_NAME, "save_pretrained"),
    "only a pickle": (_pickle_only, "pickle_only", "pickle", "safe_serialization=True"),
    "empty config": (_config_text(""), "incomplete", CONFIG_NAME, "still be being copied"),
    "empty weights": (_shorten(WEIGHTS_NAME, 0), "incomplete", "0 bytes", "copy it again"),
    "truncated header": (_shorten(WEIGHTS_NAME, 100), "incomplete", "100 bytes", "copy it again"),
    "truncated weights": (_shorten(WEIGHTS_NAME, 5000), "incomplete", "5000 bytes", "copy it again"),
    "bytes after the weights": (
        lambda f: (f / WEIGHTS_NAME).open("ab").write(b"!"),
        "bad_header",
        "accounts for",
        "save",
    ),
    "huge header": (
        lambda f: (f / WEIGHTS_NAME).write_bytes(b"\xff" * 8 + b"{}"),
        "bad_header",
        str(2**64 - 1),
        "limit",
    ),
    "header of no JSON": (_header(b"{nonsense"), "bad_header", "not valid JSON", "save_pretrained"),
    "header without tensors": (_header(b"{}"), "bad_header", "0 tensors", "accepted"),
    "header with bad metadata": (_header(b'{"__metadata__":[]}'), "bad_header", "__metadata__", "save"),
    "header with a gap": (_header(ONE.replace(b"0,4", b"4,8"), bytes(8)), "bad_header", "gap", "save"),
    "header with a lying range": (_header(ONE.replace(b"0,4", b"0,8"), bytes(8)), "bad_header", "8 bytes", "save"),
    "header with a bad name": (_header(ONE.replace(b"x", b"../x"), bytes(4)), "bad_header", "'../x'", "dotted path"),
    "config of no JSON": (_config_text("{'r': 8}"), "bad_json", "line 1", "save_pretrained"),
    "config that is a list": (_config_text("[]"), "bad_json", "not a JSON object", "save_pretrained"),
    "config not in UTF-8": (_config_text(b'{"a": "\xff"}'), "bad_json", "UTF-8", "save_pretrained"),
    "duplicate keys": (_config_text('{"r": 8, "r": 4}'), "bad_json", "same key twice", "save_pretrained"),
    "deep nesting": (_config_text('{"a":' * 9 + "1" + "}" * 9), "bad_json", "nested deeper", "save_pretrained"),
    "bottomless nesting": (_config_text("[" * 60000), "bad_json", "nested too deeply", "save_pretrained"),
    "NaN in the config": (_config_text('{"lora_alpha": NaN}'), "bad_json", "NaN", "save_pretrained"),
    "infinity in the config": (_config_text('{"lora_alpha": 1e999}'), "bad_json", "too large", "save_pretrained"),
    "an endless integer": (_config_text('{"r": ' + "9" * 5000 + "}"), "bad_json", "5000 digits", "save_pretrained"),
    "large config": (_config_text(" " * (2 << 20)), "too_large", "1048576 bytes", "PEFT writes"),
    "another method": (
        _config(peft_type="PROMPT_TUNING"),
        "unsupported_peft_type",
        "'PROMPT_TUNING'",
        "Train it as LORA",
    ),
    "no method": (_config(peft_type=None), "unsupported_peft_type", "None", "Train it as LORA"),
    "DoRA without magnitudes": (_config(use_dora=True), "missing_half", "lacks magnitude", "save the adapter again"),
    "a bias that isn't there": (_config(lora_bias=True), "missing_half", "lacks lora_B_bias", "save the adapter again"),
    "a bias that nobody asked for": (
        _tensors(**{"B.bias": torch.ones(32)}),
        "unknown_tensor",
        "lora_bias is not true",
        "don't belong together",
    ),
    "a bias of another width": (
        lambda f: (_config(lora_bias=True)(f), _biases(f, 31)),
        "wrong_shape",
        "lora_B_bias is [31]",
        "[out]",
    ),
    "two variants": (
        _config(use_dora=True, lora_bias=True),
        "unsupported_combination",
        "use_dora and lora_bias",
        "train with one",
    ),
    "repeated layers": (
        _config(layer_replication=[[0, 2], [1, 3]]),
        "unsupported_field",
        "repeated layers",
        "merge the adapter",
    ),
    "a router": (_config(arrow_config={"top_k": 2}), "unsupported_field", "Arrow", "merge the adapter"),
    "KaSA": (_config(kasa_config={"beta": 1}), "unsupported_field", "KaSA", "merge the adapter"),
    "tokens that aren't there": (
        _config(alora_invocation_tokens=[-1]),
        "bad_field",
        "alora_invocation_tokens is [-1]",
        "fix adapter_config.json",
    ),
    "a token trained twice": (
        _config(trainable_token_indices={"embed_tokens": [5, 7, 5]}),
        "bad_field",
        "token 5 twice",
        "remove one",
    ),
    "an activated adapter that replaces a norm": (
        lambda f: (_config(alora_invocation_tokens=[3], modules_to_save=["norm"])(f), _norm(f, 32)),
        "unsupported_combination",
        "model.norm.weight",
        "low-rank pairs",
    ),
    "a classification head": (
        lambda f: (
            _config(task_type="CAUSAL_LM")(f),
            edit_tensors(f, **{"base_model.model.score.weight": torch.ones(2, 32)}),
        ),
        "unsupported_combination",
        "base_model.model.score.weight",
        "correct task_type",
    ),
    "a norm of another width": (lambda f: _norm(f, 31), "wrong_shape", "[31]", "use an adapter trained on it"),
    "a smaller vocabulary": (
        lambda f: edit_tensors(f, **{"base_model.model.lm_head.weight": torch.ones(96, 32)}),
        "resized_vocabulary",
        "[96, 32]",
        "never shrunk",
    ),
    "a parameter that a module lacks": (
        lambda f: edit_tensors(f, **{"base_model.model.model.norm.bias": torch.ones(32)}),
        "unknown_tensor",
        "no parameter 'bias'",
        "use an adapter trained on it",
    ),
    "a bias of a linear module without one": (
        lambda f: edit_tensors(f, **{f"base_model.model.{Q0}.base_layer.bias": torch.ones(32)}),
        "unknown_tensor",
        "no parameter 'bias'",
        "use an adapter trained on it",
    ),
    "a parameter twice": (
        lambda f: edit_tensors(
            f,
            **{f"base_model.model.{Q0}.{name}": torch.ones(32, 32) for name in ("weight", "base_layer.weight")},
        ),
        "duplicate_tensor",
        "q_proj.weight is there twice",
        "keep one",
    ),
    "modules to save": (_config(modules_to_save=["lm_head"]), "missing_tensor", "lm_head", "save the adapter again"),
    "residual init": (
        _config(init_lora_weights="pissa_niter_4"),
        "unconverted_init",
        "'pissa_niter_4'",
        "path_initial_model_for_weight_conversion",
    ),
    "CorDA": (_config(init_lora_weights="corda"), "unconverted_init", "'corda'", "save_pretrained"),
    "LoRA-GA": (_config(init_lora_weights="lora_ga"), "unconverted_init", "'lora_ga'", "save_pretrained"),
    "LoftQ": (_config(init_lora_weights="loftq"), "unconverted_init", "'loftq'", "serve that base"),
    "an unknown init": (_config(init_lora_weights="magic"), "unsupported_field", "'magic'", "convert the adapter"),
    "PiSSA at no scale": (
        _config(init_lora_weights="pissa", lora_alpha=0),
        "bad_field",
        "a scale of 0",
        "correct lora_alpha",
    ),
    "unknown field": (_config(use_magic=3), "unknown_field", "'use_magic' is 3", "remove it"),
    "rank of text": (_config(r="8"), "bad_field", "r is '8'", "fix adapter_config.json"),
    "rank of true": (_config(r=True), "bad_field", "r is True", "fix adapter_config.json"),
    "huge alpha": (_config(lora_alpha=1e7), "bad_field", "lora_alpha is 10000000.0", "fix adapter_config.json"),
    "unsafe pattern": (_config(rank_pattern={"(a+)+$": 4}), "unsafe_pattern", "'(a+)+$'", "write module names"),
    "too many repetitions": (
        _config(rank_pattern={f"x{i}.*": 4 for i in range(17)}),
        "unsafe_pattern",
        "rank_pattern",
        "write module names",
    ),
    "rank over limit": (
        lambda f: make(f, r=17, target_modules=["q_proj"]),
        "rank_over_limit",
        "rank 17 and the limit is 16",
        "train a smaller one",
    ),
    "rank lie": (_config(r=3), "rank_mismatch", "rank 4 and adapter_config.json says 3", "don't belong together"),
    "rank lie of a pattern": (_config(rank_pattern={"v_proj": 2}), "rank_mismatch", "v_proj", "don't belong together"),
    "rank patterns that overlap": (
        _config(rank_pattern={"v_proj": 2, "layers.0.self_attn.v_proj": 4}, r=4),
        "rank_mismatch",
        "'v_proj' of rank_pattern says 2",
        "put the one that was meant first",
    ),
    "missing half": (_tensors(**{B: None}), "missing_half", f"{Q0} has only", "save the adapter again"),
    "both halves of other ranks": (_tensors(**{B: torch.ones(32, 5)}), "wrong_shape", "[32, 5]", "are needed"),
    "wrong shape": (_tensors(**{B: torch.ones(31, 4)}), "wrong_shape", "32 -> 31", "use an adapter trained on it"),
    "halves of two dtypes": (_tensors(**{A: torch.ones(4, 32).half()}), "bad_dtype", "F16", "one dtype"),
    "F64": (_tensors(**{A: torch.ones(4, 32).double()}), "bad_dtype", "'F64'", "save the adapter in one of them"),
    "unknown module": (
        _other_module("model.layers.9.self_attn.q_proj"),
        "unknown_tensor",
        "model.layers.9",
        "use an adapter trained on it",
    ),
    "a trained router": (
        _trained_router,
        "unknown_tensor",
        "a router can't be served",
        "exclude_modules=['gate']",
    ),
    "module not targeted": (
        _other_module("model.layers.0.self_attn.o_proj"),
        "untargeted_tensor",
        "o_proj",
        "correct adapter_config.json",
    ),
    "unknown tensor": (_tensors(**{"E.weight": torch.ones(32)}), "unknown_tensor", "lora_E.weight", "expected"),
    "DoRA's magnitudes without DoRA": (
        _tensors(magnitude_vector=torch.ones(32)),
        "unknown_tensor",
        "use_dora is not true",
        "don't belong together",
    ),
    "another model's modules": (_only_other_modules, "no_matching_module", "transformer.h.0", "use an adapter trained"),
    "NaN": (_tensors(**{A: _value(float("nan"))}), "nonfinite_weights", f"{Q0_TENSORS}A", "earlier checkpoint"),
    "infinity": (_tensors(**{A: _value(float("-inf"))}), "nonfinite_weights", "4 values", "earlier checkpoint"),
    "linked config": (_linked(CONFIG_NAME), "not_regular", CONFIG_NAME, "cp -L"),
    "linked weights": (_linked(WEIGHTS_NAME), "not_regular", WEIGHTS_NAME, "cp -L"),
    "weights that are a pipe": (_fifo, "not_regular", WEIGHTS_NAME, "copy the real file"),
    "weights that are a directory": (_directory, "not_regular", WEIGHTS_NAME, "copy the real file"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_thing_and_the_remedy(case: str, tmp_path: Path) -> None:
    damage, code, thing, remedy = REFUSALS[case]
    limits = Limits(max_rank=16)
    make(tmp_path)
    check_directory(tmp_path, tiny_base(), limits)
    damage(tmp_path)
    with pytest.raises(AdapterRefused) as caught:
        check_directory(tmp_path, tiny_base(), limits)
    assert caught.value.code == code
    assert thing in caught.value.message
    assert remedy in caught.value.message


def test_refusing_what_is_no_file_keeps_no_descriptor_open(tmp_path: Path) -> None:
    make(tmp_path)
    _directory(tmp_path)
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        with pytest.raises(AdapterRefused):
            read_manifest(tmp_path)
    assert len(os.listdir("/dev/fd")) < before + 20


def test_a_linked_directory_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(AdapterRefused, match="'link' is a symbolic link") as caught:
        read_manifest(tmp_path / "link")
    assert caught.value.code == "not_regular"
