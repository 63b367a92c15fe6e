"""Floors, ratios and verdicts by hand-computed numbers."""

from __future__ import annotations

import pytest

from livery.bench.bars import Row
from livery.bench.physics import Base, Peak, Work, bytes_ratio, physical_ratio
from livery.bench.plot import goodness
from livery_adapters.base_model import BaseShapes, ModuleShape
from livery_loadtest.bars import Bar, Verdict
from livery_loadtest.measures import Spread

# One layer of two modules, 10 -> 20 -> 10, and a vocabulary of 50.
MODULES = {
    "model.embed_tokens": ModuleShape("embedding", 50, 10),
    "model.layers.0.up_proj": ModuleShape("linear", 10, 20),
    "model.layers.0.down_proj": ModuleShape("linear", 20, 10),
    "lm_head": ModuleShape("linear", 10, 50),
}
TARGETS = ("up_proj", "down_proj")


def base(tied: bool, held: int) -> Base:
    shapes = BaseShapes(MODULES, tied={"lm_head": "model.embed_tokens"} if tied else {})
    return Base.of(shapes, held, 8, 6, embedding_itemsize=4, targets=TARGETS)


def test_a_step_reads_what_is_held_but_not_an_embedding_that_is_looked_up() -> None:
    held = 4 * (200 + 200 + 500)
    assert base(tied=True, held=held).weight_bytes == held
    assert base(tied=False, held=held + 4 * 500).weight_bytes == held


def test_decode_counts_weights_keys_adapters_and_operations() -> None:
    costs = base(tied=True, held=3600)
    work = costs.decode(rows=3, context=7, ranks=[2, 4], row_ranks=[2, 2, 4])
    assert work.weight_bytes == 3600
    assert work.kv_bytes == 3 * 7 * 8
    assert work.adapter_bytes == 2 * (2 + 4) * 60  # bf16, and 10 + 20 + 20 + 10 numbers a rank
    assert work.flops == 2 * 3 * 900 + 3 * 7 * 6 + 2 * 8 * 60
    assert work.nbytes == 3600 + 168 + 720
    assert costs.share(2) == pytest.approx(240 / 3600)


def test_prefill_reads_the_weights_once_a_step_and_sees_every_key_once_a_row() -> None:
    costs = base(tied=True, held=3600)
    work = costs.prefill(tokens=5, chunk=2, rank=3)
    assert work.weight_bytes == 3 * 3600
    assert work.kv_bytes == (2 + 4 + 5) * 8
    assert work.adapter_bytes == 3 * 2 * 3 * 60
    keys = 1 + 2 + 3 + 4 + 5
    assert work.flops == 2 * 5 * (400 + 3 * 60) + 2 * 500 + keys * 6


def test_the_floor_is_the_larger_of_reading_and_computing() -> None:
    work = Work(weight_bytes=60, kv_bytes=30, adapter_bytes=10, flops=1000)
    assert work.seconds(Peak(bandwidth=100, flops=10_000)) == pytest.approx(1.0)
    assert work.seconds(Peak(bandwidth=100, flops=500)) == pytest.approx(2.0)


def test_what_disturbs_one_measurement_or_lends_it_more_moves_no_floor() -> None:
    found = [Peak(30, 200), Peak(56, 199), Peak(31, 90), Peak(5, 201), Peak(32, 202)]
    assert Peak.typical(found) == Peak(31, 200)


def test_what_is_physical_follows_what_binds() -> None:
    plain, mixed = Work(weight_bytes=90, kv_bytes=10, flops=100), Work(90, 10, 25, 101)
    assert bytes_ratio(plain, mixed) == pytest.approx(100 / 125)
    assert physical_ratio(plain, mixed, Peak(bandwidth=1, flops=1e9)) == pytest.approx(100 / 125)
    assert physical_ratio(plain, mixed, Peak(bandwidth=1e9, flops=1)) == pytest.approx(100 / 101)


@pytest.mark.parametrize(
    ("bar", "value", "verdict"),
    [
        (Bar(0.9, 0.95), 0.89, Verdict.FAIL),
        (Bar(0.9, 0.95), 0.9, Verdict.PASS),
        (Bar(0.9, 0.95), 0.95, Verdict.AIM),
        (Bar(1.15, 1.03, lower=True), 1.16, Verdict.FAIL),
        (Bar(1.15, 1.03, lower=True), 1.15, Verdict.PASS),
        (Bar(1.15, 1.03, lower=True), 0.99, Verdict.AIM),
    ],
)
def test_verdicts(bar: Bar, value: float, verdict: Verdict) -> None:
    assert Row("row", Spread(value, 0, 9), bar).verdict is verdict
    assert Row("row", Spread(value, 0, 9)).verdict is Verdict.SHOWN
    assert (goodness(value, bar) < 1) == (verdict is Verdict.FAIL)
