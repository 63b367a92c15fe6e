"""A sum of adapters is written one way, named one way whatever its order, and is the sum of what they add."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from adapters.canonical_made import (
    IN,
    KINDS,
    OUT,
    a_transform,
    additive,
    dense_delta,
    randn,
)
from adapters.peft_made import Weights, lora_layers, make, tiny_base, tiny_model
from livery_adapters.canonical import (
    CanonicalAdapter,
    EmbeddingChange,
    ExpertsChange,
    LinearChange,
    LowRank,
    Rows,
    tensors_of,
)
from livery_adapters.compose import compose
from livery_adapters.composition import (
    MAX_PARTS,
    added_up,
    composition_digest,
    format_composition,
    parse_composition,
)
from livery_adapters.formats import convert
from livery_adapters.manifest import check_against, read_manifest
from livery_adapters.measure import effective
from livery_adapters.refusal import AdapterRefused

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,20}(@[0-9a-f]{8,64})?", fullmatch=True)
WEIGHTS = st.integers(-(10**8), 10**8).map(lambda million: million / 10**6)
PARTS = st.lists(st.tuples(NAMES, WEIGHTS), min_size=1, max_size=MAX_PARTS)
A, B = "a" * 64, "b" * 64


# -- how it is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("a+b", [("a", 1.0), ("b", 1.0)]),
        ("a+0.5*b", [("a", 1.0), ("b", 0.5)]),
        ("0.3*a + b@3f2a9c11", [("a", 0.3), ("b@3f2a9c11", 1.0)]),
        ("2*a", [("a", 2.0)]),
        ("a+-0.5*b", [("a", 1.0), ("b", -0.5)]),
        (" .25*org/a:v1 + a", [("org/a:v1", 0.25), ("a", 1.0)]),
        ("0.5 * 0.3+-0*b", [("0.3", 0.5), ("b", 0.0)]),
    ],
)
def test_parts_are_read(model: str, parts: list[tuple[str, float]]) -> None:
    assert parse_composition(model) == parts


@pytest.mark.parametrize("model", ["a", "a-0.5", "a@3f2a9c11", "", "org/a:v1", "a b", "\0"])
def test_a_single_name_is_none(model: str) -> None:
    assert parse_composition(model) is None


@given(PARTS)
def test_what_is_written_is_read_back(parts: list[tuple[str, float]]) -> None:
    assert parse_composition(format_composition(parts)) == parts


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("a+", "no adapter at character 3"),
        ("+a", "no adapter at character 1"),
        ("a++b", "no adapter at character 3"),
        ("0.5*", "no adapter at character 1"),
        ("a+*b", "'' before the .* of the part at character 3 is not a weight"),
        ("a-0.5*b", "'a-0.5' before the .* and -0.5.NAME after a . to subtract"),
        ("a*0.5", "'a' before the .* plain decimal"),
        ("1e3*a", "'1e3' before the"),
        ("nan*a", "'nan' before the"),
        ("+".join(["a"] * 9), "adds up 9 adapters and at most 8"),
        ("101*a", "the weight 101 of the part at character 1 is out of range"),
        ("a+-100.01*b", "the weight -100.01 of the part at character 3"),
        ("0.5*a*b", "a weight comes first"),
        ("a+_b", "'_b' in the part at character 3 is not an adapter's name"),
        ("a+b@xyz", "'b@xyz' in the part"),
        ("a+" + "b" * 129, "is not an adapter's name"),
        ("a+" + "b" * 300, "over 256 characters"),
        ("٣*a", "is not a weight"),
        ("0.5*a\n", "is not an adapter's name"),
        ("a+b c", "is not an adapter's name"),
        ("0" * 33 + "*a", "is not a weight"),
    ],
)
def test_what_is_no_sum_is_refused_with_its_position(model: str, said: str) -> None:
    with pytest.raises(AdapterRefused, match=said) as caught:
        parse_composition(model)
    assert caught.value.code == "bad_composition"
    assert len(caught.value.message) < 400


@given(st.text(alphabet=st.sampled_from("aZ09._:/-@+* \n\0é٣e"), max_size=60) | st.text())
def test_any_text_is_read_or_refused(model: str) -> None:
    try:
        parts = parse_composition(model)
    except AdapterRefused:
        return
    assert (parts is None) == ("+" not in model and "*" not in model)
    if parts is not None:
        assert parse_composition(format_composition(parts)) == parts


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["a", "+", "*", "0", ".", "a+", "0.", "-", " ", "1*", "@0", "a:/"])
def test_the_time_grows_with_the_length(piece: str) -> None:
    """Lengths that anything worse than linear would not get through before the test's time limit."""
    for model in (piece * 300_000, piece * 300_000 + "+a", "a+" + piece * 300_000 + "!"):
        try:
            parse_composition(model)
        except AdapterRefused as refused:
            assert len(refused.message) < 400


# -- how it is named -------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abcdef"), WEIGHTS), max_size=8), st.randoms())
def test_the_digest_knows_no_order(parts: list[tuple[str, float]], random: Any) -> None:
    shuffled = random.sample(parts, len(parts))
    assert composition_digest(parts) == composition_digest(shuffled)


@given(PARTS, PARTS)
def test_other_sums_have_other_digests(one: list[tuple[str, float]], two: list[tuple[str, float]]) -> None:
    assert (composition_digest(one) == composition_digest(two)) == (added_up(one) == added_up(two))


def test_fields_of_a_digest_do_not_run_into_each_other() -> None:
    assert composition_digest([("a", 1.0), ("b1", 2.0)]) != composition_digest([("a1", 1.0), ("b", 2.0)])
    assert composition_digest([("a", 12.0), ("b", 1.0)]) != composition_digest([("a", 1.0), ("2b", 1.0)])


def test_what_amounts_to_one_adapter_is_that_adapter() -> None:
    assert composition_digest([(A, 0.5), (B, 1.0), (A, 0.5), (B, -1.0)]) == A
    assert composition_digest([(A, 0.5)]) != A


def test_the_digest_never_changes() -> None:
    """It names cached blocks that outlive the process: a new meaning needs a new tag."""
    golden = "e036d86f7e347e6f8839ac9bdbd7507b41abd0e3ad5dd3caa67fceac37918214"
    assert composition_digest([(A, 1.0), (B, 0.5)]) == golden


# -- what it does ----------------------------------------------------------------------------------


def dense_sum(adapter: CanonicalAdapter, module: str = "m") -> torch.Tensor:
    return sum((dense_delta(delta) for delta in adapter.linears[module].deltas), torch.zeros(OUT, IN))


@given(
    weights=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from(KINDS), min_size=4, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_the_sum_is_that_of_the_dense_weights(weights: list[float], kinds: list[str], seed: int) -> None:
    adapters = [additive(f"{i}" * 64, kinds[i], seed=seed + 7 * i, rank=i + 1) for i in range(len(weights))]
    parts = list(zip(adapters, weights, strict=True))
    composed = compose(parts, "c")
    expected = sum((weight * dense_sum(adapter) for adapter, weight in parts), torch.zeros(OUT, IN))
    if composed.linears:
        torch.testing.assert_close(dense_sum(composed), expected, rtol=1e-9, atol=1e-9)
    else:
        assert not any(weights)
    assert composed.exact


def test_any_order_gives_the_same_bits() -> None:
    parts = [(additive(digest * 64, "low rank", seed=ord(digest)), 0.1 * ord(digest)) for digest in "bca"]
    one, two = compose(parts, "c"), compose(parts[::-1], "c")
    assert all(torch.equal(left, right) for left, right in zip(tensors_of(one), tensors_of(two), strict=True))
    assert [delta.scale for delta in one.linears["m"].deltas] == [delta.scale for delta in two.linears["m"].deltas]


def test_the_same_adapter_twice_adds_its_weights_and_zero_drops_it() -> None:
    one, two = additive(A, "low rank"), additive(B, "kronecker", module="n")
    composed = compose([(one, 0.5), (two, 1.0), (one, 0.25), (two, -1.0)], "c")
    (delta,) = composed.linears["m"].deltas
    assert delta.scale == 1.5 * 0.75
    assert set(composed.linears) == {"m"}
    assert compose([(one, 0.0)], "c").linears == {}


def test_an_adapter_dropped_by_its_weight_may_hold_anything() -> None:
    compose(
        [(additive(A, "low rank"), 2.0), (CanonicalAdapter(B, plain={"norm": {"weight": torch.ones(1)}}), 0.0)], "c"
    )


def test_a_single_adapter_is_taken_as_it_is() -> None:
    gained = CanonicalAdapter(A, linears={"m": LinearChange(gain=torch.ones(OUT))})
    assert compose([(gained, 1.0)], "c") == replace(gained, digest="c")


@pytest.mark.parametrize("scales", [(0.5, 0.5), (0.5, 0.3)])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_embeddings_and_experts_become_one(
    scales: tuple[float, float], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    table, experts = randn(9, 4, seed=50), randn(3, OUT, IN, seed=51)
    parts = []
    expected_table, expected_experts = torch.zeros(9, 4).double(), torch.zeros(3, OUT, IN).double()
    for index, (scale, dtype, weight) in enumerate(zip(scales, dtypes, (1.0, -2.0), strict=True)):
        # Seen from outside both parts have the scale `scale`: the weight is taken out of it first.
        pair = LowRank(randn(2, 9, seed=index, dtype=dtype), randn(4, 2, seed=index + 5, dtype=dtype), scale / weight)
        a, b = randn(3, 2, IN, seed=index + 10, dtype=dtype), randn(3, OUT, 2, seed=index + 15, dtype=dtype)
        expected_table += scale * (pair.b.double() @ pair.a.double()).T
        expected_experts += scale * b.double() @ a.double()
        adapter = CanonicalAdapter(
            "ab"[index] * 64,
            embeddings={"e": EmbeddingChange(delta=pair)},
            experts={"x": ExpertsChange(a, b, scale / weight)},
        )
        parts.append((adapter, weight))
    composed = compose(parts, "c")
    for change, weight, expected in (
        (composed.embeddings["e"], table, expected_table),
        (composed.experts["x"], experts, expected_experts),
    ):
        torch.testing.assert_close(effective(change, weight)[0] - weight, expected.float(), rtol=1e-4, atol=1e-5)
    delta = composed.embeddings["e"].delta
    assert delta is not None
    if scales[0] == scales[1] and dtypes[0] == dtypes[1]:
        assert delta.b.dtype == delta.a.dtype == dtypes[0]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"linears": {"m": LinearChange(transform=a_transform())}}, "an input transform for m"),
        ({"linears": {"m": LinearChange(weight=torch.ones(OUT, IN))}}, "a replaced weight for m"),
        ({"linears": {"m": LinearChange(bias=torch.ones(OUT))}}, "a bias for m"),
        (
            {"linears": {"m": LinearChange(gain=torch.ones(OUT), bias=torch.ones(OUT))}},
            "an output gain and a bias for m",
        ),
        ({"embeddings": {"e": EmbeddingChange(rows=Rows(torch.tensor([1]), torch.ones(1, 4)))}}, "replaced rows for e"),
        ({"plain": {"norm": {"weight": torch.ones(4)}}}, r"replaced parameters \(weight\) for norm"),
    ],
)
def test_what_does_more_than_add_is_refused_by_name(held: dict[str, Any], said: str) -> None:
    other = CanonicalAdapter(B, **held)
    with pytest.raises(AdapterRefused, match=f"adapter {'b' * 12} can't be added .* holds {said}.*alone") as caught:
        compose([(additive(A, "low rank"), 1.0), (other, 0.5)], "c")
    assert caught.value.code == "not_additive"


def test_errors_of_the_parts_bound_that_of_the_sum() -> None:
    full = {digest: randn(OUT, IN, seed=seed) for seed, digest in enumerate((A, B))}
    parts, kept = [], {}
    for digest, delta in full.items():
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        pair = LowRank(right[:3], left[:, :3] * values[:3], 1.0)
        kept[digest] = pair
        error = float(values[3:].norm() / values.norm())
        parts.append((CanonicalAdapter(digest, linears={"m": LinearChange(deltas=(pair,))}, errors={"m": error}), 0.7))
    composed = compose(parts, "c")
    lost = 0.7 * sum(delta - kept[digest].b @ kept[digest].a for digest, delta in full.items())
    true = float(torch.as_tensor(lost).norm() / dense_sum(composed).norm())
    assert true <= composed.errors["m"] <= 2 * true
    assert compose([parts[0], (additive("c" * 64, "low rank", module="n"), 1.0)], "c").errors["m"] == pytest.approx(
        parts[0][0].errors["m"] / (1 - parts[0][0].errors["m"] ** 2) ** 0.5
    )


# -- as PEFT adds them up --------------------------------------------------------------------------


def converted(folder: Path, family: str) -> CanonicalAdapter:
    manifest = read_manifest(folder)
    check_against(manifest, tiny_base(family))
    return convert(folder, manifest, Weights(family))


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("llama-dynamic-rope", {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "lora_alpha": 3}, {"r": 2}),
        ("gpt2", {"target_modules": ["c_attn", "wte"]}, {"target_modules": ["c_attn", "c_fc"], "use_rslora": True}),
    ],
)
def test_a_sum_is_what_peft_concatenates(
    family: str, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    """Were the first one rsLoRA, PEFT would keep that for the sum and scale it by √rank."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, (folder, lora) in enumerate(zip(folders, (first, second), strict=True)):
        make(folder, family, seed=seed, **{"fan_in_fan_out": family == "gpt2", **lora})
    composed = compose([(converted(folders[0], family), 0.75), (converted(folders[1], family), -0.5)], "c")
    model = _peft(tiny_model(family), folders)
    model.add_weighted_adapter(["a", "b"], [0.75, -0.5], "sum", combination_type="cat")
    checked = 0
    for path, layer in lora_layers(model).items():
        change = composed.linears.get(path) or composed.embeddings[path]
        embedding = isinstance(change, EmbeddingChange)
        weight = torch.zeros_like(layer.get_delta_weight("sum"))
        transposed = not embedding and family == "gpt2"
        ours = effective(change, weight.T if transposed else weight)[0]
        theirs = layer.get_delta_weight("sum")
        torch.testing.assert_close(ours.T if transposed else ours, theirs, rtol=1e-4, atol=1e-5)
        checked += 1
    assert checked == len(composed.linears) + len(composed.embeddings)


def _peft(model: Any, folders: list[Path]) -> Any:
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), folders[0], adapter_name="a")
    loaded.load_adapter(folders[1], adapter_name="b")
    return loaded
