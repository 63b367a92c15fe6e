"""A merged adapter is what its method's formula says, as near as its rank allows, and PEFT itself loads it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import ties
from safetensors import safe_open
from torch import Tensor

from adapters.canonical_made import IN, OUT, a_delta, additive, dense_delta, everything, randn
from adapters.canonical_made import Weights as Matrices
from adapters.peft_made import Weights, load, lora_layers, make, tiny_base, tiny_model
from engine.families import VOCABULARY
from livery_adapters.base_model import BaseShapes, ExpertsShape, ModuleShape
from livery_adapters.canonical import CanonicalAdapter, EmbeddingChange, ExpertsChange, LinearChange, LowRank
from livery_adapters.compose import compose
from livery_adapters.formats import convert
from livery_adapters.making.combine import Method, combined, drop, elect, trim
from livery_adapters.making.merge import MergePart, merge
from livery_adapters.manifest import check_against, read_manifest
from livery_adapters.measure import BaseNorms, effective, measure
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.tensor_file import WEIGHTS_NAME

A, B = "a" * 64, "b" * 64
UNTIED = "llama-dynamic-rope"
MOE = "qwen3-moe"
DENSE: tuple[Method, ...] = ("ties", "dare_linear", "dare_ties")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


def matrices(**weights: Tensor) -> Matrices:
    """A base of linear modules alone."""
    base = Matrices(weights)
    base.shapes = BaseShapes({p: ModuleShape("linear", w.shape[1], w.shape[0]) for p, w in weights.items()})
    return base


def one_module(seed: int = 9) -> Matrices:
    return matrices(m=randn(OUT, IN, seed=seed))


def converted(folder: Path, family: str) -> CanonicalAdapter:
    manifest = read_manifest(folder)
    check_against(manifest, tiny_base(family))
    return convert(folder, manifest, Weights(family))


def written(out: Path, path: str = "m") -> Tensor:
    """ΔW of one linear module of an adapter just written, read straight from its file: alpha is the rank."""
    with safe_open(str(out / WEIGHTS_NAME), framework="pt") as file:
        a, b = (file.get_tensor(f"base_model.model.{path}.lora_{half}.weight") for half in "AB")
    return b.double() @ a.double()


def dense_of(adapter: CanonicalAdapter) -> Tensor:
    return sum((dense_delta(delta) for delta in adapter.linears["m"].deltas), torch.zeros(OUT, IN).double())


# -- the formulas ----------------------------------------------------------------------------------


def test_trimming_keeps_the_largest() -> None:
    delta = torch.tensor([[1.0, -4.0, 0.5], [2.0, -2.0, 0.0]])
    trim(delta, 0.5)  # three of six; the two of equal size stay together
    assert delta.tolist() == [[0.0, -4.0, 0.0], [2.0, -2.0, 0.0]]
    trim(delta, 0.01)
    assert delta.tolist() == [[0.0, -4.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_sign_with_more_mass_is_elected() -> None:
    deltas = [torch.tensor([3.0, 1.0, 2.0, 0.0, 0.0]), torch.tensor([-1.0, -4.0, -2.0, 5.0, 0.0])]
    deltas.append(torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]))
    assert elect(deltas).tolist() == [2.0, -4.0, 0.0, 3.0, 0.0]


def test_a_drop_keeps_the_expectation_and_draws_by_its_key() -> None:
    one, same, other = (torch.ones(400, 500) for _ in range(3))
    drop(one, 0.3, "x")
    drop(same, 0.3, "x")
    drop(other, 0.3, "y")
    assert torch.equal(one, same)
    assert one.unique().tolist() == [0.0, pytest.approx(1 / 0.3)]
    assert float(one.mean()) == pytest.approx(1.0, abs=0.01)
    both = float(((one > 0) & (other > 0)).float().mean())
    assert both == pytest.approx(0.09, abs=0.005)  # the draws of two keys are independent


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.4, 0.4, 0.4)])
def test_ties_is_pefts_for_equal_weights(weights: tuple[float, ...]) -> None:
    deltas = [randn(OUT, IN, seed=seed) for seed in range(3)]
    theirs = ties([delta.clone() for delta in deltas], torch.tensor(weights), 0.4)
    ours = combined("ties", [delta.clone() for delta in deltas], weights, 0.4, ["", "", ""])
    torch.testing.assert_close(ours, theirs)


def test_a_part_counts_in_the_election_by_its_weight() -> None:
    deltas = [torch.tensor([[2.0]]), torch.tensor([[-3.0]])]
    assert combined("ties", [delta.clone() for delta in deltas], (1.0, 0.1), 1.0, ["", ""]).item() == 2.0
    assert combined("ties", [delta.clone() for delta in deltas], (1.0, -1.0), 1.0, ["", ""]).item() == 2.5


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.75, -0.5)])
def test_linear_without_a_rank_is_exact(weights: tuple[float, float], tmp_path: Path) -> None:
    one, two = additive(A, "low rank", "shared basis"), additive(B, "low rank", seed=50, rank=2)
    parts = [MergePart(one, weights[0]), MergePart(two, weights[1])]
    report = merge(parts, one_module(), "linear", out=tmp_path / "out")
    expected = weights[0] * dense_of(one) + weights[1] * dense_of(two)
    torch.testing.assert_close(written(tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)
    assert report.modules["m"].rank == 3 + 3 + 2
    assert report.error == report.modules["m"].error == 0.0
    assert report.parents == ((A, weights[0]), (B, weights[1]))


@pytest.mark.parametrize("method", ["linear", *DENSE])
@pytest.mark.parametrize("rank", [2, 5, IN])
def test_a_rank_keeps_the_best_of_the_formula(method: Method, rank: int, tmp_path: Path) -> None:
    """Kronecker products have full rank, so that every rank loses something but the last."""
    density = 1.0 if method == "linear" else 0.5
    adapters = [additive(digest, "kronecker", "low rank", seed=ord(digest[0])) for digest in (A, B)]
    parts = [MergePart(adapter, weight) for adapter, weight in zip(adapters, (1.0, 0.7), strict=True)]
    report = merge(parts, one_module(), method, density=density, rank=rank, seed=3, out=tmp_path / "out")
    keys = [f"livery dare 1 3 {adapter.digest} 0 m" for adapter in adapters]
    full = combined(method, [dense_of(adapter).float() for adapter in adapters], (1.0, 0.7), density, keys)
    values = torch.linalg.svdvals(full.double())
    best = float(values[rank:].norm() / values.norm())
    true = float((written(tmp_path / "out") - full).norm() / full.norm())
    assert report.error == pytest.approx(true, rel=1e-3, abs=1e-5)
    assert report.error == pytest.approx(best, rel=1e-3, abs=1e-5)
    assert report.modules["m"].error == pytest.approx(report.error)
    weight = one_module().weight("m")
    kept = float(written(tmp_path / "out").norm() / weight.norm())
    assert report.modules["m"].relative == pytest.approx(kept, rel=1e-3)


def test_pairs_are_cut_to_a_rank_as_well(tmp_path: Path) -> None:
    parts = [MergePart(additive(digest, "low rank", seed=ord(digest[0])), 1.0) for digest in (A, B)]
    full = sum((dense_of(part.adapter) for part in parts), torch.zeros(OUT, IN).double())
    report = merge(parts, one_module(), "linear", rank=4, out=tmp_path / "out")
    assert report.modules["m"].rank == 4
    assert report.error == pytest.approx(float((written(tmp_path / "out") - full).norm() / full.norm()), rel=1e-4)
    assert 0.01 < report.error < 0.9


def test_errors_of_all_modules_are_weighed_by_their_size(tmp_path: Path) -> None:
    big, small = a_delta("kronecker"), replace(a_delta("kronecker", 5), scale=1e-3)
    adapter = CanonicalAdapter(A, {"m": LinearChange((big,)), "n": LinearChange((small,))})
    base = matrices(m=randn(OUT, IN, seed=1), n=randn(OUT, IN, seed=2))
    report = merge([MergePart(adapter, 1.0)], base, "linear", rank=2, out=tmp_path / "out")
    lost = [dense_delta(delta) - written(tmp_path / "out", path) for path, delta in (("m", big), ("n", small))]
    whole = torch.stack([dense_delta(big), dense_delta(small)])
    assert report.error == pytest.approx(float(torch.stack(lost).norm() / whole.norm()), rel=1e-4)
    assert report.modules["n"].error != pytest.approx(report.error, rel=1e-2)


@pytest.mark.parametrize("method", ["linear", *DENSE])
def test_the_same_arguments_write_the_same_bytes(method: Method, tmp_path: Path) -> None:
    parts = [MergePart(additive(digest, "low rank", seed=ord(digest[0])), 0.5) for digest in (A, B)]
    density = 1.0 if method == "linear" else 0.4
    files = {}
    for name, order, seed in (("one", 1, 0), ("two", -1, 0), ("other", 1, 1)):
        torch.manual_seed(order)
        merge(parts[::order], one_module(), method, density=density, seed=seed, out=tmp_path / name)
        data = (tmp_path / name / WEIGHTS_NAME).read_bytes()
        files[name] = data[8 + int.from_bytes(data[:8], "little") :]
    assert files["one"] == files["two"]
    assert (files["one"] == files["other"]) == (not method.startswith("dare"))


def test_a_change_that_does_more_than_add_is_merged_by_its_difference(tmp_path: Path) -> None:
    change, base = replace(everything(), bias=None), one_module()
    adapter = CanonicalAdapter(A, {"m": change})
    merge([MergePart(adapter, 0.5)], base, "linear", rank=IN, out=tmp_path / "out")
    difference = effective(change, base.weight("m"))[0] - base.weight("m")
    torch.testing.assert_close(written(tmp_path / "out"), 0.5 * difference.double(), rtol=1e-4, atol=1e-4)


def test_parents_and_arguments_are_recorded_in_the_file(tmp_path: Path) -> None:
    parts = [MergePart(additive(B, "low rank"), 0.25), MergePart(additive(A, "low rank"), 1.0)]
    merge(parts, one_module(), "dare_ties", density=0.5, rank=2, seed=7, out=tmp_path / "out", base_name="org/base")
    with safe_open(str(tmp_path / "out" / WEIGHTS_NAME), framework="pt") as file:
        facts = json.loads(file.metadata()["merge"])
    expected = {"parents": [[A, 1.0], [B, 0.25]], "method": "dare_ties", "density": 0.5, "rank": 2, "seed": 7}
    assert facts == expected
    assert read_manifest(tmp_path / "out").base_name == "org/base"


def test_progress_counts_modules(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    adapter = CanonicalAdapter(A, {path: LinearChange((a_delta("low rank"),)) for path in ("m", "n")})
    base = matrices(m=randn(OUT, IN, seed=1), n=randn(OUT, IN, seed=2))
    merge([MergePart(adapter, 1.0)], base, "linear", out=tmp_path / "out", progress=lambda *at: seen.append(at))
    assert seen == [(0, 2), (1, 2), (2, 2)]


# -- what is refused -------------------------------------------------------------------------------

GAINED = CanonicalAdapter(A, {"m": LinearChange(gain=torch.ones(OUT))})


@pytest.mark.parametrize(
    ("adapter", "arguments", "code", "said"),
    [
        (additive(A, "low rank"), {"density": 0.0}, "bad_merge", "density is 0.0"),
        (additive(A, "low rank"), {"density": 1.5}, "bad_merge", "density is 1.5"),
        (additive(A, "low rank"), {"method": "linear", "density": 0.5}, "bad_merge", "linear keeps everything"),
        (additive(A, "low rank"), {"rank": 0}, "bad_merge", "rank is 0"),
        (additive(A, "low rank"), {"weight": 0.0}, "bad_merge", "nothing is left"),
        (additive(A, "low rank"), {"weight": float("inf")}, "bad_merge", "not finite"),
        (additive(A, "kronecker"), {"method": "linear"}, "bad_merge", "no low rank of its own for m; give the rank"),
        (GAINED, {}, "bad_merge", "no low rank of its own for m"),
        (CanonicalAdapter(A, {"m": everything()}), {"rank": 4}, "not_mergeable", "changes the bias of m"),
        (
            CanonicalAdapter(A, plain={"n": {"weight": torch.ones(1)}}),
            {},
            "not_mergeable",
            r"\(weight\) of n",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    adapter: CanonicalAdapter, arguments: dict[str, Any], code: str, said: str, tmp_path: Path
) -> None:
    arguments = {"method": "ties", "weight": 1.0, **arguments}
    part = MergePart(adapter, arguments.pop("weight"))
    with pytest.raises(AdapterRefused, match=said) as caught:
        merge([part], one_module(), out=tmp_path / "out", **arguments)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        (Limits(max_rank=4), "rank_over_limit", "m would have rank 5, and the limit is 4; give --rank 4 or less"),
        (Limits(max_weight_bytes=20 * (IN + OUT) - 1), "too_large", f"would have {20 * (IN + OUT)} bytes"),
    ],
)
def test_what_would_be_over_the_limits_is_refused_before_anything_is_merged(
    limits: Limits, code: str, words: str, tmp_path: Path
) -> None:
    parts = [MergePart(additive(name, "low rank", rank=rank), 1.0) for name, rank in ((A, 2), (B, 3))]
    done: list[int] = []

    def merged(limits: Limits, rank: int | None = None) -> None:
        out = tmp_path / "out"
        merge(parts, one_module(), "linear", rank=rank, out=out, limits=limits, progress=lambda at, _: done.append(at))

    with pytest.raises(AdapterRefused, match=words) as caught:
        merged(limits)
    assert (caught.value.code, done, list(tmp_path.iterdir())) == (code, [], [])
    merged(limits, rank=4)
    assert done == [0, 1]


def test_nothing_is_overwritten_and_an_empty_directory_is_taken(tmp_path: Path) -> None:
    parts = [MergePart(additive(A, "low rank"), 1.0)]
    (tmp_path / "empty").mkdir()
    merge(parts, one_module(), "linear", out=tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(AdapterRefused, match="something at") as caught:
            merge(parts, one_module(), "linear", out=out)
        assert caught.value.code == "output_exists"


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    adapter = CanonicalAdapter(A, {path: LinearChange((a_delta("low rank"),)) for path in ("m", "n")})
    base = matrices(m=randn(OUT, IN, seed=1), n=randn(OUT, IN, seed=2))
    with pytest.raises(KeyboardInterrupt):
        merge([MergePart(adapter, 1.0)], base, "linear", out=tmp_path / "out", progress=stop)
    assert not list(tmp_path.iterdir())


# -- as PEFT sees it -------------------------------------------------------------------------------


def merged(family: str, folder: Path, method: Method, loras: list[dict[str, Any]], **arguments: Any) -> list[Path]:
    """Adapters made by PEFT, and last the one merged from them, weighted 0.75 and -0.5."""
    folders = [folder / str(index) for index in range(len(loras))]
    for seed, (target, lora) in enumerate(zip(folders, loras, strict=True)):
        make(target, family, seed=seed, **lora)
    weights = arguments.pop("weights", (0.75, -0.5))
    parts = [MergePart(converted(path, family), weight) for path, weight in zip(folders, weights, strict=True)]
    merge(parts, Weights(family), method, out=folder / "out", **arguments)
    return [*folders, folder / "out"]


def logits(model: Any) -> Tensor:
    tokens = torch.arange(3, 23).reshape(2, 10) % VOCABULARY
    with torch.no_grad():
        result: Tensor = model(tokens).logits
    return result


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        (UNTIED, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, {"r": 2, "use_rslora": True}),
        ("llama", {"target_modules": ["down_proj", "up_proj"]}, {"r": 5, "target_modules": ["down_proj", "q_proj"]}),
        ("gpt2", {"target_modules": ["c_attn", "wte"]}, {"target_modules": ["c_attn", "c_fc"]}),
        (
            MOE,
            {"target_modules": ["q_proj"]},
            {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
        ),
    ],
)
def test_peft_loads_the_merged_adapter_as_the_sum_of_the_parents(
    family: str, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    extra = {"fan_in_fan_out": True} if family == "gpt2" else {}
    folders = merged(family, tmp_path, "linear", [{**first, **extra}, {**second, **extra}])
    adapters = [converted(folder, family) for folder in folders]
    sum_of_parents = compose([(adapters[0], 0.75), (adapters[1], -0.5)], "c")
    model = load(folders[-1], family).eval()
    base = copy.deepcopy(tiny_model(family))
    parameters = dict(base.named_modules())
    with torch.no_grad():
        for path, change in {**sum_of_parents.linears, **sum_of_parents.embeddings}.items():
            weight = parameters[path].weight
            natural = weight.T if tiny_base(family).modules[path].input_first else weight
            adapted = effective(change, natural)[0] - natural
            delta = adapted.T if natural is not weight else adapted
            parameters[path].weight = torch.nn.Parameter(weight + delta)
        for path, stack in sum_of_parents.experts.items():
            parameter = base.get_parameter(path)
            parameter.copy_(effective(stack, parameter)[0])
    difference = (logits(model) - logits(base)).abs().max()
    assert difference < 1e-4
    assert (logits(base) - logits(tiny_model(family))).abs().max() > 0.05
    ours = measure(adapters[-1], Weights(family), BaseNorms(Weights(family)))
    theirs = measure(sum_of_parents, Weights(family), BaseNorms(Weights(family)))
    assert ours.modules.keys() == theirs.modules.keys()
    for path, module in theirs.modules.items():
        assert ours.modules[path].relative == pytest.approx(module.relative, rel=1e-4)


def test_ranks_differ_from_module_to_module(tmp_path: Path) -> None:
    second = {"r": 3, "target_modules": ["q_proj", "k_proj"], "rank_pattern": {"layers.1.self_attn.k_proj": 2}}
    folders = merged("llama", tmp_path, "linear", [{}, second])
    for path, layer in lora_layers(load(folders[-1])).items():
        expected = {"q_proj": 7, "v_proj": 4, "k_proj": 2 if ".1." in path else 3}[path.rpartition(".")[2]]
        assert layer.r["default"] == expected
        assert layer.scaling["default"] == 1.0
    manifest = read_manifest(folders[-1])
    assert {target.rank for target in manifest.targets} == {7, 4, 3, 2}


def test_all_experts_of_two_parameters_are_merged(tmp_path: Path) -> None:
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    loras = [
        {"target_modules": [], "target_parameters": both, "r": 2},
        {"target_modules": [], "target_parameters": both, "r": 3},
    ]
    folders = merged(MOE, tmp_path, "linear", loras, rank=6)
    parents = [load(folder, MOE) for folder in folders]
    layers = [
        {path: layer for path, layer in lora_layers(model).items() if hasattr(layer, "parameter_name")}
        for model in parents
    ]
    assert len(layers[-1]) == 6
    for path, layer in layers[-1].items():
        one, two, ours = (found[path].get_delta_weight("default") for found in layers)
        assert layer.parameter_name == layers[0][path].parameter_name
        torch.testing.assert_close(ours, 0.75 * one - 0.5 * two, rtol=1e-4, atol=1e-5)


def test_experts_keep_what_their_rank_holds(tmp_path: Path) -> None:
    """TIES on each expert's matrix by itself."""
    a, b = randn(3, 2, IN, seed=1), randn(3, OUT, 2, seed=2)
    parts = [
        MergePart(CanonicalAdapter(A, experts={"x.w": ExpertsChange(a, b, 1.5)}), 1.0),
        MergePart(CanonicalAdapter(B, experts={"x.w": ExpertsChange(a.flip(0), b, 0.5)}), 1.0),
    ]
    base = Matrices({"x.w": randn(3, OUT, IN, seed=3)})
    base.shapes = BaseShapes({}, experts={"x.w": ExpertsShape(3, IN, OUT)})
    report = merge(parts, base, "ties", density=0.5, rank=3, out=tmp_path / "out")
    with safe_open(str(tmp_path / "out" / WEIGHTS_NAME), framework="pt") as file:
        stacked_a, stacked_b = (file.get_tensor(f"base_model.model.x.lora_{half}.weight") for half in "AB")
    ours = torch.einsum("ore,eri->eoi", stacked_b.reshape(OUT, 3, 3), stacked_a.reshape(3, 3, IN))
    full = torch.stack(
        [combined("ties", [1.5 * b[e] @ a[e], 0.5 * b[e] @ a[2 - e]], (1.0, 1.0), 0.5, ["", ""]) for e in range(3)]
    )
    assert report.error == pytest.approx(float((ours - full).norm() / full.norm()), rel=1e-3)
    assert 0 < report.error < 0.8


@pytest.mark.parametrize("method", DENSE)
def test_the_dense_methods_are_pefts(method: Method, tmp_path: Path) -> None:
    """At density 1 DARE drops nothing, so that even its draws agree; rank 32 holds everything."""
    density = 0.4 if method == "ties" else 1.0
    loras = [{"target_modules": ["q_proj", "o_proj"]}, {"target_modules": ["q_proj", "down_proj"]}]
    folders = merged("llama", tmp_path, method, loras, density=density, rank=32, weights=(0.6, 0.6))
    theirs = PeftModel.from_pretrained(copy.deepcopy(tiny_model()), folders[0], adapter_name="a")
    theirs.load_adapter(folders[1], adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.6, 0.6], "both", f"{method}_svd", svd_rank=32, density=density)
    expected = lora_layers(theirs)
    ours = lora_layers(load(folders[-1]))
    assert ours.keys() == {path for path, layer in expected.items() if "both" in layer.lora_A}
    for path, layer in ours.items():
        delta = expected[path].get_delta_weight("both")
        torch.testing.assert_close(layer.get_delta_weight("default"), delta, rtol=1e-4, atol=1e-5)


def test_a_low_rank_embedding_is_merged_by_any_method(tmp_path: Path) -> None:
    base = Matrices({"e": randn(9, 4, seed=1)})
    base.shapes = BaseShapes({"e": ModuleShape("embedding", 9, 4)})
    pair = LowRank(randn(2, 9, seed=2), randn(4, 2, seed=3), 0.5)
    part = MergePart(CanonicalAdapter(A, embeddings={"e": EmbeddingChange(pair)}), 2.0)
    merge([part], base, "ties", out=tmp_path / "out")
    with safe_open(str(tmp_path / "out" / WEIGHTS_NAME), framework="pt") as file:
        a, b = (file.get_tensor(f"base_model.model.e.lora_embedding_{half}") for half in "AB")
    torch.testing.assert_close(b @ a, pair.b @ pair.a, rtol=1e-4, atol=1e-5)
