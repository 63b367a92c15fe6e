"""What may be asked for of quantised bases, what is refused before a byte is loaded, and how a library's modules fit.

Adapters over what real libraries quantise: tests/quantization, which needs those libraries.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engine.families import save
from engine.kernels_under_test import KERNELS, only_native
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.base_bytes import expected_bytes
from livery.engine.kernels import Layout
from livery.engine.kernels.library import LibraryWeight
from livery.engine.model import base_shapes, load_model
from livery.engine.packed_bytes import packed_bytes
from livery.engine.quantization import METHODS, SCHEMES, Chosen, check_flag, checkpoint_method, choose_quantization
from livery.engine.quantized import QuantizedLinear, wrap_quantized
from livery.engine.structure import discover
from livery.settings import Settings

CPU = torch.device("cpu")


def marked(base: Path, **told: object) -> Path:
    """The model as a checkpoint that says it is quantised."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    return base


def refused(config: EngineConfig, device: str = "cpu") -> str:
    with pytest.raises(ModelRefused) as caught:
        choose_quantization(config, device)
    return str(caught.value)


def test_the_flag_may_say_what_there_are_schemes_for() -> None:
    assert set(get_args(Settings.model_fields["quantization"].annotation)) == {"auto", *SCHEMES}


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed here")
def test_a_library_that_is_missing_is_named_with_the_extra(tmp_path: Path) -> None:
    expected = r"--quantization bnb-nf4, which needs bitsandbytes: pip install 'livery\[quantization\]'"
    with pytest.raises(ModelRefused, match=expected):
        check_flag("bnb-nf4", "auto")
    with pytest.raises(ModelRefused, match=expected):
        load_model(EngineConfig(str(save("llama", tmp_path)), quantization="bnb-nf4"), CPU, torch.float32)
    checkpoint = marked(tmp_path / "llama", quant_method="bitsandbytes", load_in_4bit=True)
    with pytest.raises(ModelRefused, match="llama is a checkpoint in bitsandbytes, which needs bitsandbytes: pip"):
        load_model(EngineConfig(str(checkpoint)), CPU, torch.float32)
    assert "needs gptqmodel and optimum: install" in refused(EngineConfig(str(marked(checkpoint, quant_method="gptq"))))


def test_what_doesnt_run_on_a_cpu_is_refused_by_name_before_it_is_looked_for(tmp_path: Path) -> None:
    for name in ("torchao-int4", "bnb-int8"):
        with pytest.raises(ModelRefused, match=f"--quantization {name}, which isn't for CPUs: .* Serve it on a GPU"):
            check_flag(name, "cpu")
    base = save("llama", tmp_path)
    assert "llama is a checkpoint in fp8, which isn't for CPUs" in refused(
        EngineConfig(str(marked(base, quant_method="fp8")))
    )
    assert "bitsandbytes int8, which isn't" in refused(
        EngineConfig(str(marked(base, quant_method="bitsandbytes", load_in_8bit=True)))
    )
    assert (chosen := choose_quantization(EngineConfig(str(marked(base, quant_method="fp8"))), "cuda")) is not None
    assert (chosen.scheme, chosen.on_load) == (METHODS["fp8"], "")


def test_contradictions_are_refused_by_name(tmp_path: Path) -> None:
    base = marked(save("llama", tmp_path), quant_method="some-new-method")
    assert (
        "--quantization bnb-nf4 is for models in full precision, and llama is quantised already (some-new-m"
        in refused(EngineConfig(str(base), quantization="bnb-nf4"))
    )
    assert "a checkpoint in some-new-method and --weights int4 are two ways" in refused(
        EngineConfig(str(base), weights="int4")
    )
    assert "so --deterministic can't be kept" in refused(EngineConfig(str(base), deterministic=True))
    assert choose_quantization(EngineConfig(str(tmp_path / "nowhere")), "cpu") is None
    assert checkpoint_method(tmp_path / "nowhere") == ""


class Rows8(nn.Module):
    """A linear module as libraries make them: int8 codes and a scale per row, its bias where the base had it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("codes", torch.round(linear.weight.detach() / self.scale).to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.codes.to(x.dtype) * self.scale).T
        return y if self.bias is None else y + self.bias


def test_modules_of_any_library_take_their_places_in_the_groups(tmp_path: Path) -> None:
    base = save("qwen2", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    plain = discover(model)
    ids = torch.arange(3, 9)[None]
    for path in list(plain.modules):
        if path.endswith(("q_proj", "v_proj", "down_proj")):
            model.set_submodule(path, Rows8(model.get_submodule(path)))
    with torch.no_grad():
        expected = model(ids).logits
    own = model.get_submodule("model.layers.0.self_attn.v_proj")
    kept, bias = own.codes * own.scale, own.bias.detach().clone()
    wrap_quantized(model, torch.float32, "int8 of this test")
    assert discover(model) == plain
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
    wrapped = model.get_submodule("model.layers.0.self_attn.v_proj")
    assert isinstance(wrapped, QuantizedLinear)
    assert torch.equal(wrapped.bias, bias)
    assert torch.allclose(wrapped.weight, kept, atol=1e-6)  # read by multiplying, in several pieces
    assert wrapped.held.nbytes == kept.numel() + 4 * len(kept)
    assert wrapped.held.layout == "Rows8"


def test_a_model_that_came_out_in_full_precision_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save("llama", tmp_path), dtype=torch.float32)
    with pytest.raises(ModelRefused, match="came out of transformers in full precision instead of int8 of this test"):
        wrap_quantized(model, torch.float32, "int8 of this test")


def test_weights_of_several_modules_are_one_below_the_other() -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(6, outs, bias=False) for outs in (4, 2, 5)]
    wholes = [Rows8(linear) for linear in linears]
    weight = LibraryWeight(tuple(QuantizedLinear(whole, 6, len(whole.codes), False).held.parts[0] for whole in wholes))
    dense = torch.cat([whole.codes * whole.scale for whole in wholes])
    x, bias = torch.randn(3, 6), torch.randn(11)
    assert torch.allclose(weight.dense(), dense, atol=1e-6)
    assert torch.allclose(weight.product(x, bias), x @ dense.T + bias, atol=1e-5)
    for start, stop in ((0, 4), (4, 6), (5, 7), (6, 11), (0, 11), (7, 8)):
        part, skip = weight.covering(start, stop)
        assert torch.allclose(part.dense()[skip : skip + stop - start], dense[start:stop], atol=1e-6)
        assert part.out_features < 11 or (start, stop) in {(0, 11), (5, 7)} or skip
    assert weight.covering(4, 6)[0].out_features == 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_bytes_are_foretold_from_headers(family: str, tmp_path: Path) -> None:
    base = save(family, tmp_path)
    shapes = base_shapes(str(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    full = sum(parameter.numel() for parameter in model.parameters())
    linear = {path: shape for path, shape in shapes.modules.items() if shape.kind == "linear" and path != "lm_head"}
    weights = sum(shape.in_features * shape.out_features for shape in linear.values())
    told = expected_bytes(base, shapes, None, 2)
    assert (told.held, told.full) == (2 * full, 2 * full)
    chosen = choose_quantization(EngineConfig(str(base)), "cpu")
    assert chosen is None
    for name, bits in (("bnb-nf4", 4.5), ("torchao-int8", 8)):
        told = expected_bytes(base, shapes, Chosen(SCHEMES[name], name), 4)
        scales = 4 * sum(shape.out_features for shape in linear.values()) if bits == 8 else 0
        assert told.full == 4 * full
        assert told.held == pytest.approx(4 * (full - weights) + weights * bits / 8 + scales, abs=len(linear))


@only_native
@pytest.mark.parametrize(("layout", "bits"), [("int4", 5), ("int8", 8.5), ("bf16", 16), ("fp32", 32)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])  # the last one's head is its own
def test_a_head_is_foretold_as_it_will_be_held(family: str, layout: Layout, bits: float, tmp_path: Path) -> None:
    """In numbers that fit into so many bits, scales included."""
    base = save(family, tmp_path)
    file = base / "model.safetensors"
    weights = load_file(file)
    name = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight", "mistral": "lm_head.weight"}[family]
    held = KERNELS[0].pack(weights[name], layout)
    weights[name] = held.dense()
    save_file(weights, file, {"format": "pt"})
    shapes, chosen = base_shapes(str(base)), Chosen(SCHEMES["bnb-nf4"], "bnb-nf4")
    wide, told = (expected_bytes(base, shapes, chosen, 4, way) for way in (None, packed_bytes))
    count = weights[name].numel()
    assert told.full == wide.full
    assert packed_bytes(file, name) == count * bits / 8
    assert wide.held - told.held == 4 * count - count * bits / 8
    assert KERNELS[0].pack(weights[name], "exact").nbytes == pytest.approx(count * bits / 8, rel=0.35)  # a last panel


def test_what_was_never_computed_is_said_to_be_untested() -> None:
    """By the log, by doctor, and by --help."""
    untested = {name for name, scheme in (SCHEMES | METHODS).items() if not scheme.tried}
    tried = {
        "bnb-nf4",
        "bnb-nf4-double",
        "torchao-int8",
        "torchao-fp8",
        "bitsandbytes",
        "torchao",
        "compressed-tensors",
    }
    assert untested == {*SCHEMES, *METHODS} - tried
    assert "untested" in SCHEMES["bnb-int8"].untested
    assert SCHEMES["bnb-nf4"].untested == ""
    told = Settings.model_fields["quantization"].description or ""
    after = told.partition("livery[quantization];")[2]
    assert all(name in after for name in untested & set(SCHEMES))
    assert not any(name in after for name in tried & set(SCHEMES))
